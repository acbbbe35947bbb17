"""Several tasks on one checkpoint by one command: places, locks and registered models of their own."""

import csv
import json
import random
import shutil
import subprocess

import polars as pl
import pytest
import yaml

from flows.checkout import workspace
from tasks import environment
from tasks import params as parameters
from tasks.artifacts import PreparedText, Promotion, TrainedModel
from tasks.errors import ParamsError
from tests.flows.conftest import FILLERS

TOPICS = {"sports": ["lovely", "great"], "music": ["awful", "broken"], "food": ["perfect", "charming"]}
KEYS = {"sources.text.path": "topics.csv", "sources.text.columns": {"text": "story", "label": "topic"}}


def _write_topics(path, rows):
    chance = random.Random(5)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["story", "topic"])
        for number in range(rows):
            topic = list(TOPICS)[number % 3]
            words = [*chance.sample(FILLERS, 5), chance.choice(TOPICS[topic]), str(number)]
            writer.writerow([" ".join(words), topic])


@pytest.fixture
def several(project):
    _write_topics(project / "topics.csv", 180)
    shipped = parameters.load(project / "params.yaml")
    changes = [
        "finetuning.adapter={kind: lora}", "promotion.gate.must_beat=[]",
        f"tasks={{topic: {json.dumps(KEYS)}}}",
        "finetuning.phases=[{name: head, depth: 0, epochs: 2, learning_rate: 1.0e-2}, "
        "{name: adapter, depth: all, epochs: 2, learning_rate: 1.0e-3}]",
    ]  # fmt: skip
    (project / "params.yaml").write_text(parameters.dump(parameters.override(shipped, changes)))
    with (project / ".git" / "info" / "exclude").open("a") as stream:
        stream.write("/topics.csv\n")
    return project


def _splits(place):
    rows = pl.read_parquet(PreparedText.load(place).path / "rows.parquet")
    return dict(zip(rows["id"], rows["split"], strict=True))


@pytest.mark.e2e
def test_one_command_trains_all_tasks_and_one_base_serves_them(several, command):
    place = several / ".regraft" / "tasks" / "topic"
    command("regraft", "run", "--leaf", "inprocess")
    assert Promotion.load(several).alias_moved
    assert Promotion.load(place).alias_moved, "a task is no trial"
    assert (Promotion.load(several).model, Promotion.load(place).model) == ("reviews", "topic")
    assert TrainedModel.load(place).base != TrainedModel.load(several).base, "three labels, not two"
    assert not (place / ".regraft" / "mlflow.db").exists(), "all are tracked in one place"
    assert (several / "locks" / "topic.lock").read_text() == (place / "dvc.lock").read_text()
    bundled = command("regraft", "bundle", "--model", "all").stdout
    assert "reviews" in bundled
    assert "topic" in bundled
    _a_lost_place_comes_back(several, place, command)
    _rows_stay_and_a_task_that_fails_hinders_none(several, place, command)


def _a_lost_place_comes_back(several, place, command):
    """As in another clone: what git keeps of a task is its lock, and DVC has the rest."""
    before, weights = (place / "dvc.lock").read_text(), TrainedModel.load(place).weights
    shutil.rmtree(place)
    said = command("regraft", "run", "--leaf", "inprocess").stderr
    assert "finetuning: unchanged" in said
    assert "finetuning: restored from the cache" in said
    assert TrainedModel.load(place).weights == weights
    assert (place / "dvc.lock").read_text() == before
    again = command("dvc", "repro", cwd=place).stdout
    assert "Stage 'finetuning' didn't change, skipping" in again
    assert "topic version 1" in command("regraft", "status").stdout


def _rows_stay_and_a_task_that_fails_hinders_none(several, place, command):
    params, before = parameters.load(several / "params.yaml"), _splits(place)
    tasks = {"lost": {"sources.text.path": "absent.csv"}, **params.tasks}
    changed = parameters.override(params, [f"tasks={json.dumps(tasks)}"])
    (several / "params.yaml").write_text(parameters.dump(changed))
    _write_topics(several / "topics.csv", 240)
    failed = command("regraft", "run", "--leaf", "inprocess", code=2)
    assert "task lost: " in failed.stderr
    assert "absent.csv" in failed.stderr
    after = _splits(place)
    assert after.keys() - before.keys(), "new rows"
    both = before.keys() & after.keys()
    assert len(both) > len(before) / 2, "params.yaml takes some of each split, by hash"
    assert {id: after[id] for id in both} == {id: before[id] for id in both}


def test_the_place_of_a_task_is_as_the_checkout_stands(several):
    params = parameters.load(several / "params.yaml")
    place, mine = workspace.place_of(several, "topic"), parameters.of_task(params, "topic")
    (several / "locks").mkdir()
    (several / "locks" / "topic.lock").write_text("schema: '2.0'\n")
    (several / "prefect.yaml").write_text("edited, not committed")
    (several / "compose.yaml").unlink()
    with workspace.renewed(place, mine):
        assert parameters.load(place / "params.yaml") == mine
        assert (place / "prefect.yaml").read_text() == "edited, not committed"
        assert not (place / "compose.yaml").exists()
        assert (place / "dvc.lock").read_text() == "schema: '2.0'\n"
        (place / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {}}))
    assert "stages" in (several / "locks" / "topic.lock").read_text()
    assert _commit(place) == _commit(several), "a version names a commit that others can have"
    workspace.commit(place, "Reproduce")
    assert _git(several, "show", "--name-only", "--format=%s") == "Reproduce\n\nlocks/topic.lock\n"
    assert environment.home(place) == several.resolve()
    assert not environment.is_trial(place)
    assert environment.is_trial(workspace.create(place, mine))


def _commit(place):
    return _git(place, "rev-parse", "HEAD")


def _git(place, *words):
    return subprocess.run(["git", *words], cwd=place, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("{topic: {sources.text.pth: a.csv}}", r"tasks.topic: unknown key 'sources.text.pth'; .*'path'"),
        ("{topic: {source.text.path: a.csv}}", r"tasks.topic: .*no 'source' here; did you mean 'sources'"),
        ("{../up: {}}", r"tasks.../up"),
        ("{tweet-sentiment: {}}", r"two of them would be registered as tweet-sentiment"),
    ],
)
def test_a_task_that_cannot_be_is_refused(tasks, message):
    text = (workspace.Path(__file__).parents[2] / "params.yaml").read_text()
    with pytest.raises(ParamsError, match=message):
        parameters.parse(text.replace("\ntasks: {}", f"\ntasks: {tasks}"))
