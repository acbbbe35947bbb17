import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import params
from tasks.artifacts import PreparedText
from tasks.errors import ArtifactError, DataError, ParamsError
from tasks.stages import preparation, sources
from tasks.text.sources import Document, Quarantined, Table

REPOSITORY = Path(__file__).parents[2]
LIMITS = [f"preparation.subset.{split}=null" for split in ("train", "validation", "test")]
SENTENCE = "number {} of a list of sentences that differ in more than one word {} {}"


class Recorder:
    def __init__(self):
        self.values, self.files = {}, []

    def metrics(self, values, *, step=0):
        self.values |= values

    def file(self, path, folder=""):
        self.files.append(path.name)


def make(tmp_path, rows, *changes):
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"{row}\n" for row in rows))
    (tmp_path / "checkpoint").mkdir(exist_ok=True)
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    mine = [
        "sources.text.path=data.csv", "sources.text.label=label", "sources.text.licence=MIT",
        "sources.text.undecodable=quarantine", "sources.checkpoint.path=checkpoint",
        "preparation.maximum_quarantine=0.1", *LIMITS, *changes,
    ]  # fmt: skip
    chosen = params.override(params.load(REPOSITORY / "params.yaml"), mine)
    sources.run(chosen, tmp_path, Recorder())
    return chosen


def sentences(count):
    return [f"{SENTENCE.format(n, n * n, n * 31)},{'ab'[n % 2]}" for n in range(count)]


def run(tmp_path, rows, *changes):
    return preparation.run(make(tmp_path, rows, *changes), tmp_path, Recorder())


def table(record, name):
    return parquet.read_table(record.path / f"{name}.parquet").to_pylist()


def test_every_row_is_in_one_table_with_its_reason(tmp_path):
    faulty = ["x,a", sentences(1)[0], "no label here,", "Thanks a lot!,a", "thanks A LOT,b"]
    record = run(tmp_path, [*sentences(80), *faulty])
    assert record.rows_in == 85
    assert (dict(record.dropped), dict(record.quarantined)) == (
        {"too_short": 1, "exact_duplicate": 1},
        {"no_label": 1, "conflicting_labels": 2},
    )
    rows, drops, quarantined = (table(record, name) for name in ("rows", "drops", "quarantine"))
    assert (len(rows), len(drops), len(quarantined)) == (80, 2, 3)
    assert set(rows[0]) == {"id", "text", "label", "cluster", "split"}
    assert set(drops[0]) == {"id", "step", "reason", "detail", "text"}
    assert set(quarantined[0]) == {"id", "stage", "reason", "detail", "raw"}
    assert sum(record.rows.values()) == 80
    assert json.loads((record.path / "labels.json").read_text()) == ["a", "b"] == list(record.labels)


def test_figures_and_report_are_told(tmp_path):
    recorder = Recorder()
    preparation.run(make(tmp_path, sentences(60)), tmp_path, recorder)
    assert recorder.values["rows_in"] == 60
    assert recorder.files == ["preparation.html"]
    page = (tmp_path / "reports" / "preparation.html").read_text()
    assert "MIT" in page
    assert "All rows that survived are used." in page


def test_the_same_input_twice_gives_the_same_bytes(tmp_path):
    rows = [*sentences(60), "a &amp; b  c,a"]
    before = run(tmp_path, rows)
    page = (tmp_path / "reports" / "preparation.html").read_bytes()
    assert run(tmp_path, rows).digest == before.digest
    assert (tmp_path / "reports" / "preparation.html").read_bytes() == page


def test_the_order_of_the_file_leaves_no_trace_in_the_rows(tmp_path):
    before = table(run(tmp_path, sentences(60)), "rows")
    assert table(run(tmp_path, sentences(60)[::-1]), "rows") == before


def test_new_rows_move_no_old_row(tmp_path):
    before = {row["id"]: row["split"] for row in table(run(tmp_path, sentences(60)), "rows")}
    after = {row["id"]: row["split"] for row in table(run(tmp_path, sentences(90)), "rows")}
    assert {id: after[id] for id in before} == before
    assert len(after) == 90


def test_a_subset_drops_the_rest_by_name(tmp_path):
    record = run(tmp_path, sentences(80), "preparation.subset.train=20")
    assert record.rows["train"] == 20
    assert record.dropped["outside_subset"] == 80 - sum(record.rows.values())
    assert "declared subset, at most 20 train rows" in (tmp_path / "reports" / "preparation.html").read_text()


def test_replaced_bytes_are_counted_among_the_changes(tmp_path):
    chosen = make(tmp_path, sentences(60), "sources.text.undecodable=replace")
    with (tmp_path / "data.csv").open("ab") as stream:
        stream.write(b"caf\xe9 noir,a\n")
    sources.run(chosen, tmp_path, Recorder())
    assert preparation.run(chosen, tmp_path, Recorder()).changed["undecodable"] == 1


def test_too_many_quarantined_rows_fail_with_an_example(tmp_path):
    with pytest.raises(
        DataError, match=r"20 of 80 rows \(25.0%\) are set aside \(no_label 20; data.csv:62: "
    ):
        run(tmp_path, [*sentences(60), *["one,"] * 20])
    assert not PreparedText.folder(tmp_path).exists()


def test_a_file_that_changed_after_sources_is_refused(tmp_path):
    chosen = make(tmp_path, sentences(60))
    (tmp_path / "data.csv").write_text("text,label\none,a\n")
    with pytest.raises(ArtifactError, match=r"data.csv changed since the sources stage looked"):
        preparation.run(chosen, tmp_path, Recorder())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*sentences(60), "one of a kind,rare"], "class 'rare' has "),
        ([row.replace(",b", ",a") for row in sentences(60)], "'a' is the only label"),
    ],
)
def test_classes_that_cannot_be_learned_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        run(tmp_path, rows)


def test_an_unknown_cleaning_step_is_refused(tmp_path):
    with pytest.raises(ParamsError, match=r"unknown step 'emoji'"):
        run(tmp_path, sentences(60), "preparation.clean=[emoji]")


TEXTS = st.sampled_from(
    [SENTENCE.format(1, 2, 3), SENTENCE.format(1, 2, 4), "Yes!", "yes", "", "no", "&amp;&amp;&amp;"]
)
EXTRA = st.lists(st.tuples(TEXTS, st.sampled_from("ab")), max_size=15)


@settings(max_examples=40, deadline=None)
@given(EXTRA, st.integers(0, 3), st.sampled_from(["quarantine", "keep"]))
def test_rows_in_are_rows_kept_dropped_and_quarantined(extra, unread, conflicts):
    base = [(text, label) for text, _, label in (row.rpartition(",") for row in sentences(60))]
    documents = [Document(f"d{n}", text, label, "t") for n, (text, label) in enumerate([*base, *extra])]
    faulty = [Quarantined(f"q{n}", "sources", "no_label", "t:1", "x,") for n in range(unread)]
    changes = {"maximum_quarantine": 1.0, "conflicts": conflicts, "subset": {"train": 30}}
    chosen = params.PreparationParams.model_validate(changes)
    found = preparation.prepare(Table(tuple(documents), tuple(faulty), 0), chosen)
    out = [item.id for part in (found.rows, found.drops, found.quarantined) for item in part]
    assert sorted(out) == sorted(item.id for item in (*documents, *faulty))
    splits = {}
    for row in found.rows:
        assert splits.setdefault(row.cluster, row.split) == row.split
