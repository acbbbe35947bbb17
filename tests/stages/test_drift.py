import random
import shutil
from pathlib import Path

import pytest

from tasks import params
from tasks.artifacts import ConvertedCheckpoint, Vocabulary
from tasks.errors import ArtifactError, InputError
from tasks.stages import drift, preparation, sources

REPOSITORY = Path(__file__).parents[2]
WORDS = [f"word{number}" for number in range(200)]
HEADER = "text,label\n"


class Silence:
    def metrics(self, values, *, step=0): ...

    def file(self, path, folder=""): ...


def lines(start, count, *, words=WORDS, length=9, labels="ab"):
    for number in range(start, start + count):
        chance = random.Random(number)
        said = " ".join(chance.choices(words, k=chance.randint(length - 3, length + 3)))
        yield f"{said} {number},{chance.choice(labels)}\n"


@pytest.fixture
def root(tmp_path):
    """A root whose 200 rows are prepared."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "data.csv").write_text(HEADER + "".join(lines(0, 200)))
    limits = [f"preparation.subset.{split}=null" for split in ("train", "validation", "test")]
    changes = [
        "sources.text.path=data.csv", "sources.text.columns={}", "sources.checkpoint.path=checkpoint",
        "preparation.max_quarantine_fraction=0.1", "encoding.max_length=32", *limits,
    ]  # fmt: skip
    settings = params.override(params.load(REPOSITORY / "params.yaml"), changes)
    (tmp_path / "params.yaml").write_text(params.dump(settings))
    sources.run(settings, tmp_path, Silence())
    preparation.run(settings, tmp_path, Silence())
    return tmp_path


def compare(root, more=(), *, table=None):
    with (root / "data.csv").open("a") as stream:
        stream.writelines(more)
    return drift.compare(params.load(root / "params.yaml"), root, table)


def named(found):
    return {one.name: one for one in found.measures}


def test_what_preparation_has_seen_is_not_new(root):
    found = compare(root)
    assert (found.rows, found.new, found.passed, found.measures) == (200, 0, 0, ())
    assert "too few rows to say: 0 new" in found.silent["all"]
    assert found.largest == 0


def test_a_second_copy_and_a_row_that_left_are_not_new(root):
    again = (root / "data.csv").read_text().splitlines(keepends=True)[1:6]
    assert compare(root, again).new == 0


def test_new_rows_like_the_old_ones_are_alike_and_others_are_not(root):
    found = compare(root, lines(1000, 60))
    assert (found.rows, found.new, found.passed) == (260, 60, 60)
    assert named(found).keys() == {"length", "words", "classes"}
    assert not any(one.differs for one in found.measures)
    assert found.silent == {"states": "no checkpoint is converted yet"}
    assert "alike in length, words, classes" in (root / "reports" / "drift.html").read_text()


def test_new_rows_of_another_kind_are_told_to_be(root):
    found = compare(root, lines(1000, 60, words=WORDS[:20], length=25, labels="bc"))
    assert all(one.differs for one in found.measures)
    assert named(found)["classes"].told.endswith("new: c")
    assert found.largest == max(one.excess for one in found.measures) > 0.1


def test_rows_that_the_filters_drop_are_new_but_not_compared(root):
    found = compare(root, ["ab,a\n", *lines(1000, 40)])
    assert (found.new, found.passed) == (41, 40)


def test_a_table_without_labels_is_compared_by_its_texts(root):
    (root / "mail.csv").write_text("text\n" + "".join(line.split(",")[0] + "\n" for line in lines(0, 50)))
    found = compare(root, table=root / "mail.csv")
    assert named(found).keys() == {"length", "words"}
    assert found.table == "mail.csv"
    with pytest.raises(InputError, match=r"no such table: .*gone\.csv"):
        compare(root, table=root / "gone.csv")


def test_states_are_those_of_the_converted_checkpoint(root, tiny_classifier):
    folder = ConvertedCheckpoint.folder(root) / "model"
    folder.parent.mkdir()
    tiny_classifier(folder)
    shutil.copytree(folder, Vocabulary.folder(root) / "tokenizer")
    like, unlike = lines(1000, 60), (f"{'good ' * 9}{number},a\n" for number in range(60))
    alike = named(compare(root, table=_table(root, like)))["states"]
    assert not alike.differs
    other = named(compare(root, table=_table(root, unlike)))["states"]
    assert other.differs
    assert other.rows[0] == 60


def _table(root, rows):
    (root / "more.csv").write_text(HEADER + "".join(rows))
    return root / "more.csv"


def test_nothing_is_compared_before_something_is_prepared(root):
    shutil.rmtree(root / "data" / "preparation")
    with pytest.raises(ArtifactError, match="dvc repro preparation"):
        compare(root)


def test_what_was_found_stands_below_the_pipelines_run_in_mlflow_once(root, tracked, monkeypatch):
    from mlflow import MlflowClient

    from tasks.tracking import server

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri(tracked))
    settings = params.load(root / "params.yaml")
    found = compare(root, lines(1000, 60, words=WORDS[:20], length=25, labels="bc"))
    for _ in range(2):
        drift.track(found, settings, root)
    client = MlflowClient(server.uri(tracked))
    experiment = client.get_experiment_by_name(settings.promotion.model)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 2
    told, (pipeline,) = runs.pop("drift"), runs.values()
    assert told.data.tags["mlflow.parentRunId"] == pipeline.info.run_id
    assert told.info.status == pipeline.info.status == "FINISHED"
    words = named(found)["words"]
    assert (words.value, words.chance, words.p_value) == tuple(
        told.data.metrics[name] for name in ("drift.words", "drift.words.by_chance", "drift.words.p")
    )
    assert told.data.params["new"] == "60"
    assert told.data.params["silent.states"] == "no checkpoint is converted yet"
    assert [one.path for one in client.list_artifacts(told.info.run_id)] == ["drift.html"]


def test_what_was_found_without_mlflow_waits_to_be_sent(root, monkeypatch):
    from tasks.tracking import spool

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    drift.track(compare(root, lines(1000, 60)), params.load(root / "params.yaml"), root)
    assert spool.told(root).startswith("tracking degraded: the run of 1 stage waits in ")
