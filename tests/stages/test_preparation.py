import csv
import io
import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import params
from tasks.artifacts import PreparedText
from tasks.errors import ArtifactError, DataError, ParamsError
from tasks.stages import preparation, sources
from tasks.text import identities, kinds

REPOSITORY = Path(__file__).parents[2]
LIMITS = [f"preparation.subset.{split}=null" for split in ("train", "validation", "test")]
SENTENCE = "number {} of a list of sentences that differ in more than one word {} {}"
LEDGER = Path("data") / "ledger.parquet"


class Recorder:
    def __init__(self):
        self.values, self.files = {}, []

    def metrics(self, values, *, step=0):
        self.values |= values

    def file(self, path, folder=""):
        self.files.append(path.name)


def make(tmp_path, rows, *changes, header="text,label"):
    (tmp_path / "checkpoint").mkdir(exist_ok=True, parents=True)
    (tmp_path / "data.csv").write_text(header + "\n" + "".join(f"{row}\n" for row in rows))
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    mine = [
        "sources.text.path=data.csv", "sources.text.columns={}", "sources.text.licence=MIT",
        "sources.text.undecodable=quarantine", "sources.checkpoint.path=checkpoint",
        "preparation.max_quarantine_fraction=0.1", "preparation.engine=thread", *LIMITS, *changes,
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
    assert sum(record.rows.values()) == 80
    assert json.loads((record.path / "labels.json").read_text()) == ["a", "b"] == list(record.labels)
    assert sorted(path.name for path in record.path.iterdir()) == [
        "drops.parquet", "labels.json", "manifest.json", "quarantine.parquet", "rows.parquet",
    ]  # fmt: skip


def test_columns_come_along_and_change_nothing_else(tmp_path):
    lines = [f"{row},{('web', '', 'shop')[n % 3]},{n}" for n, row in enumerate(sentences(60))]
    lines.append(f"{sentences(1)[0]},late,99")  # a duplicate of the first row, which stays
    header, both = (
        "text,label,place,reason",
        ["sources.text.keep=[reason, place]", "preparation.shard_rows=7"],
    )
    alone = make(tmp_path / "alone", lines, header=header)
    kept = make(tmp_path / "kept", lines, *both, header=header)
    before = preparation.run(alone, tmp_path / "alone", Recorder())
    after = preparation.run(kept, tmp_path / "kept", Recorder())
    rows = table(after, "rows")
    assert list(rows[0]) == ["id", "text", "label", "reason", "place", "cluster", "split"]
    told = {row["reason"]: row["place"] for row in rows}
    assert told == {str(n): ("web", None, "shop")[n % 3] for n in range(60)}
    for row in rows:
        del row["reason"], row["place"]
    assert rows == table(before, "rows")
    assert [after.rows, after.dropped] == [before.rows, before.dropped]
    for name in ("drops.parquet", "quarantine.parquet", "labels.json"):
        assert (after.path / name).read_bytes() == (before.path / name).read_bytes()


def test_a_drop_names_what_it_duplicates_and_how_nearly(tmp_path):
    near = sentences(1)[0].replace(",a", " indeed it is,a")
    record = run(tmp_path, [*sentences(60), near, "x,a"], "preparation.threshold=0.7")
    ids = {row["text"]: row["id"] for row in table(record, "rows")}
    short, duplicate = sorted(table(record, "drops"), key=lambda drop: len(drop["text"]))
    assert (short["reason"], short["step"], short["duplicate_of"], short["similarity"]) == (
        "too_short", "filters", None, None,
    )  # fmt: skip
    assert (duplicate["reason"], duplicate["step"]) == ("near_duplicate", "dedup")
    assert duplicate["duplicate_of"] == ids[sentences(1)[0].removesuffix(",a")]
    assert duplicate["similarity"] == pytest.approx(14 / 17)
    assert duplicate["detail"] == f"0.824 similar to {duplicate['duplicate_of']}"


def test_a_quarantined_row_says_where_it_stood_and_what_it_was(tmp_path):
    record = run(tmp_path, [*sentences(60), "no label here,", "Thanks a lot!,a", "thanks A LOT,b"])
    unread, one, other = table(record, "quarantine")
    assert (unread["stage"], unread["reason"], unread["file"], unread["line"]) == (
        "sources", "no_label", "data.csv", 62,
    )  # fmt: skip
    assert unread["raw"].rstrip() == b"no label here,"
    assert (one["stage"], one["reason"], one["line"], one["raw"]) == (
        "dedup", "conflicting_labels", 63, b"Thanks a lot!",
    )  # fmt: skip
    assert one["detail"] == f"labelled a, but {other['id']} (1.000 similar) is labelled b"


def test_figures_and_report_are_told(tmp_path):
    recorder = Recorder()
    preparation.run(make(tmp_path, sentences(60)), tmp_path, recorder)
    assert recorder.values["rows_in"] == 60
    assert recorder.files == ["preparation.html"]
    assert "MIT" in (tmp_path / "reports" / "preparation.html").read_text()


def test_the_same_input_twice_gives_the_same_bytes(tmp_path):
    rows = [*sentences(60), "a &amp; b  c,a"]
    before = run(tmp_path, rows)
    ledger = (tmp_path / LEDGER).read_bytes()
    assert run(tmp_path, rows).digest == before.digest
    page = (tmp_path / "reports" / "preparation.html").read_bytes()
    assert run(tmp_path, rows).digest == before.digest
    assert (tmp_path / "reports" / "preparation.html").read_bytes() == page
    assert (tmp_path / LEDGER).read_bytes() == ledger


def test_engine_workers_and_shard_size_leave_no_trace(tmp_path):
    rows = [*sentences(60), *sentences(5), "a &amp; b  c,a", "no label,"]
    before = run(tmp_path, rows)
    changes = ["preparation.engine=process", "preparation.workers=2", "preparation.shard_rows=7"]
    assert run(tmp_path, rows, *changes).digest == before.digest


def test_the_order_of_the_file_leaves_no_trace_in_the_rows(tmp_path):
    before = table(run(tmp_path, sentences(60)), "rows")
    (tmp_path / LEDGER).unlink()
    assert table(run(tmp_path, sentences(60)[::-1]), "rows") == before


def test_new_rows_move_no_old_row(tmp_path):
    before = {row["id"]: row["split"] for row in table(run(tmp_path, sentences(60)), "rows")}
    after = {row["id"]: row["split"] for row in table(run(tmp_path, sentences(90)), "rows")}
    assert {id: after[id] for id in before} == before
    assert len(after) == 90


def test_a_lost_ledger_is_never_replaced_by_another_split(tmp_path):
    chosen = make(tmp_path, sentences(60))
    (tmp_path / "dvc.lock").write_text(
        "stages:\n  preparation:\n    params:\n      params.yaml:\n        preparation:\n          salt: regraft\n"
        "    outs:\n    - path: data/ledger.parquet\n"
    )
    with pytest.raises(ArtifactError, match=r"data/ledger.parquet is missing.*dvc pull.*preparation.salt"):
        preparation.run(chosen, tmp_path, Recorder())
    assert not PreparedText.folder(tmp_path).exists()
    preparation.run(make(tmp_path, sentences(60), "preparation.salt=anew"), tmp_path, Recorder())


def test_a_subset_drops_the_rest_by_name(tmp_path):
    record = run(tmp_path, sentences(80), "preparation.subset.train=20")
    assert record.rows["train"] == 20
    assert record.dropped["outside_subset"] == 80 - sum(record.rows.values())
    assert table(record, "drops")[0]["detail"] == "train takes 20 rows"


def test_replaced_bytes_are_counted(tmp_path):
    chosen = make(tmp_path, sentences(60), "sources.text.undecodable=replace")
    with (tmp_path / "data.csv").open("ab") as stream:
        stream.write(b"caf\xe9 noir,a\n")
    sources.run(chosen, tmp_path, Recorder())
    assert preparation.run(chosen, tmp_path, Recorder()).repaired == 1


def test_too_many_quarantined_rows_fail_with_an_example_and_leave_no_trace(tmp_path):
    with pytest.raises(
        DataError, match=r"20 of 80 rows \(25.0%\) are set aside \(no_label 20; data.csv:62: "
    ):
        run(tmp_path, [*sentences(60), *["one,"] * 20])
    assert not PreparedText.folder(tmp_path).exists()
    assert not (tmp_path / LEDGER).exists()


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
        (["the same,a"] * 60, "'a' is the only label"),
        (["the same,a", "the same,b"], "2 of 2 rows"),
    ],
)
def test_classes_that_cannot_be_learned_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        run(tmp_path, rows)


def test_where_no_row_passes_the_filters_they_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none of the 20 rows passes the filters.*minimum_characters"):
        run(tmp_path, sentences(20), "preparation.minimum_characters=500")


def test_a_split_without_a_row_is_refused_for_every_kind(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "data.csv").write_text("text\none two\nthree four\nfive six\n")
    source = params.TextSource.model_validate({"path": "data.csv", "kind": "text"})
    with pytest.raises(DataError, match=r"no row is left in validation \(3 in all\)"):
        preparation.prepare(
            tmp_path / "data.csv", source, params.PreparationParams.model_validate({"engine": "thread"}),
            into=tmp_path / "out", remembered=tmp_path / "ledger.parquet",
        )  # fmt: skip
    assert not (tmp_path / "ledger.parquet").exists()


def test_another_cleaning_moves_no_row(tmp_path):
    rows = [row.replace("sentences", "séntences") for row in sentences(60)]
    before = {row["id"]: row["split"] for row in table(run(tmp_path, rows), "rows")}
    steps = "preparation.clean=[unicode, accents, whitespace]"
    assert {row["id"]: row["split"] for row in table(run(tmp_path, rows, steps), "rows")} == before


def test_an_evaluation_is_cleaned_as_the_rows_are(tmp_path):
    rows = [row.replace("number", "Tom &amp; Jerry").replace(" one ", " &lt;3 ") for row in sentences(60)]
    (tmp_path / "exam.csv").write_text("text\n" + "".join(f"{row[:-2]}\n" for row in rows[:10]))
    record = run(tmp_path, rows, "sources.evaluations=[{path: exam.csv}]")
    assert record.contaminated == {"exam.csv": 10}


def test_an_unknown_cleaning_step_is_refused(tmp_path):
    with pytest.raises(ParamsError, match=r"unknown step 'emoji'"):
        run(tmp_path, sentences(60), "preparation.clean=[emoji]")


def test_rows_that_an_evaluation_elsewhere_holds_leave_train(tmp_path):
    rows = sentences(60)
    (tmp_path / "exam.csv").write_text("question\n" + "".join(f"{row[:-2]}\n" for row in rows[:30]))
    record = run(tmp_path, rows, "sources.evaluations=[{path: exam.csv, text: question}]")
    gone = [drop["text"] for drop in table(record, "drops") if drop["reason"] == "contaminates_evaluation"]
    assert record.contaminated == {"exam.csv": 30}
    assert gone
    assert set(gone) <= {row[:-2] for row in rows[:30]}
    kept = {row["text"]: row["split"] for row in table(record, "rows")}
    assert {kept.get(row[:-2], "gone") for row in rows[:30]} <= {"validation", "test", "gone"}


def test_what_is_to_be_forgotten_does_not_come_back(tmp_path):
    rows = [*sentences(60), "a secret of mine,a"]
    before = run(tmp_path, rows)
    id = next(row["id"] for row in table(before, "rows") if row["text"] == "a secret of mine")
    digest = identities.forgotten({"id": None, "content": int(id.partition("-")[0], 16)})
    (tmp_path / "forgotten.txt").write_text(f"# digests\n{digest}\n")
    after = run(tmp_path, rows)
    assert dict(after.dropped) == {"forgotten": 1}
    drop = table(after, "drops")[0]
    assert (drop["step"], drop["text"]) == ("forget", "")


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("labels", {"text": "text {n}", "labels": ["a"]}),
        ("score", {"text": "text {n}", "score": 0.5}),
        ("pair", {"text": "text {n}", "pair": "other {n}", "label": "a"}),
        ("text", {"text": "text {n}"}),
        ("completion", {"prompt": "ask {n}", "completion": "say"}),
        ("chat", {"messages": [{"role": "user", "content": "{n}"}, {"role": "assistant", "content": "yes"}]}),
        ("translation", {"source": "one {n}", "target": "eins"}),
        ("prefix-remainder", {"text": "{n} one two three"}),
        ("tags", {"tokens": ["one", "{n}"], "tags": ["O", "O"]}),
        ("answer", {"context": "one {n}", "question": "which", "answers": {"text": ["one"], "answer_start": [0]}}),
        ("preference", {"prompt": "ask {n}", "chosen": "a", "rejected": "b"}),
        ("rating", {"prompt": "ask {n}", "completion": "a", "score": 1.0}),
    ],
)  # fmt: skip
def test_every_kind_of_row_is_prepared_and_keeps_its_columns(tmp_path, kind, row):
    lines = [json.dumps(row).replace("{n}", f"number{n} {n * n} words{n}") for n in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    source = params.TextSource.model_validate({"path": "data.jsonl", "kind": kind})
    into = tmp_path / "out"
    into.mkdir()
    rules = params.PreparationParams.model_validate({"engine": "thread", "minimum_characters": 1})
    if kind in ("labels", "pair"):
        lines = [line.replace('"a"', '"b"') if n % 2 else line for n, line in enumerate(lines)]
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
    preparation.prepare(
        tmp_path / "data.jsonl", source, rules, into=into, remembered=tmp_path / "ledger.parquet"
    )
    rows = parquet.read_table(into / "rows.parquet").to_pylist()
    assert len(rows) == 20
    assert set(rows[0]) == {"id", "text", *kinds.KINDS[kind].columns, "cluster", "split"}
    assert {row["split"] for row in rows} == {"train", "validation", "test"}


def test_tags_are_numbered_by_name_also_those_of_test_alone(tmp_path):
    (tmp_path / "data").mkdir()
    for split, tags in (("train", ["O", "I-Y"]), ("validation", ["O", "O"]), ("test", ["B-X", "O"])):
        rows = [{"tokens": [f"{split}{n}", f"w{n * n}"], "tags": tags} for n in range(8)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = params.TextSource.model_validate({"path": "data", "kind": "tags"})
    into = tmp_path / "out"
    into.mkdir()
    page = preparation.prepare(
        tmp_path / "data",
        source,
        params.PreparationParams(),
        into=into,
        remembered=tmp_path / "ledger.parquet",
    )
    assert json.loads((into / "labels.json").read_text()) == ["B-X", "I-Y", "O"]
    assert "In 8 rows a tag I-X follows neither B-X nor I-X" in page


def test_tags_that_differ_in_their_order_alone_contradict_without_a_name(tmp_path):
    rows = [{"tokens": [f"one{n}", f"two{n * n}"], "tags": ["O", "B"]} for n in range(30)]
    rows.append({"tokens": ["one7", "two49"], "tags": ["B", "O"]})
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = params.TextSource.model_validate({"path": "data.jsonl", "kind": "tags"})
    into = tmp_path / "out"
    into.mkdir()
    preparation.prepare(
        tmp_path / "data.jsonl", source, params.PreparationParams(), into=into, remembered=tmp_path / "ledger"
    )
    details = parquet.read_table(into / "quarantine.parquet")["detail"].to_pylist()
    assert len(details) == 2
    assert all(detail.startswith("labelled otherwise, but ") for detail in details)


TEXTS = st.sampled_from(
    [
        SENTENCE.format(1, 2, 3),
        SENTENCE.format(1, 2, 4),
        "Yes!",
        "yes",
        "",
        "no",
        "&amp;&amp;&amp;",
        "a\nb",
        '"',
    ]
)
EXTRA = st.lists(st.tuples(TEXTS, st.sampled_from(["a", "b", "", "c"])), max_size=15)
ONCE = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ONCE
@given(
    EXTRA, st.sampled_from(["quarantine", "majority", "keep"]), st.binary(max_size=20), st.integers(15, 80)
)
def test_rows_in_are_rows_kept_dropped_and_quarantined(tmp_path_factory, extra, conflicts, noise, size):
    folder = tmp_path_factory.mktemp("law")
    text = io.StringIO()
    base = [(text, label) for text, _, label in (row.rpartition(",") for row in sentences(60))]
    csv.writer(text).writerows([("text", "label"), *base, *[row for row in extra if row[1] != "c"]])
    (folder / "data.csv").write_bytes(text.getvalue().encode() + noise.replace(b"\0", b""))
    changes = {
        "max_quarantine_fraction": 1.0, "conflicts": conflicts, "subset": {"train": 30}, "engine": "thread",
        "shard_rows": size, "labels": ["a", "b"],
    }  # fmt: skip
    settings = params.PreparationParams.model_validate(changes)
    source = params.TextSource.model_validate({"path": "data.csv"})
    into = folder / "out"
    into.mkdir()
    preparation.prepare(
        folder / "data.csv", source, settings, into=into, remembered=folder / "ledger.parquet"
    )
    manifest = json.loads((into / "manifest.json").read_text())
    rows, drops, aside = (
        pl.read_parquet(into / f"{name}.parquet") for name in ("rows", "drops", "quarantine")
    )
    assert manifest["rows_in"] == len(rows) + len(drops) + len(aside)
    assert len(set(rows["id"]) | set(drops["id"]) | set(aside["id"])) == manifest["rows_in"]
    assert rows.select(pl.col("split").n_unique().over("cluster")).max().item() == 1
