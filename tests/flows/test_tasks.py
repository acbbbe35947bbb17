"""Several tasks on one checkpoint by one command: places, locks and registered models of their own."""

import csv
import json
import random
import shutil
import subprocess
import time
from types import SimpleNamespace

import polars as pl
import pytest
import yaml

from flows import pipeline
from flows.checkout import places, storage, workspace
from flows.checkout.stage import reproduce
from flows.commands import forget, housekeeping, reproduction
from tasks import environment
from tasks import params as parameters
from tasks.artifacts import PreparedText, Promotion, TrainedModel
from tasks.errors import InputError, ParamsError, RegraftError, WorkspaceError
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
    place, mine = places.of(several, "topic"), parameters.of_task(params, "topic")
    (several / "prefect.yaml").write_text("edited, not committed")
    (several / "compose.yaml").unlink()
    with places.current(place):
        assert parameters.load(place / "params.yaml") == mine
        assert (place / "prefect.yaml").read_text() == "edited, not committed"
        assert not (place / "compose.yaml").exists()
        assert not (several / "locks").exists()
        (place / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {}}))
    assert "stages" in (several / "locks" / "topic.lock").read_text()
    assert _commit(place) == _commit(several), "a version names a commit that others can have"
    workspace.commit(place, "Reproduce")
    assert _git(several, "show", "--name-only", "--format=%s") == "Reproduce\n\nlocks/topic.lock\n"
    assert environment.home(place) == several.resolve()
    assert (places.made_in(several, "topic"), places.made_in(several, "reviews")) == (place, several)
    assert not environment.is_trial(place)
    assert environment.is_trial(workspace.create(place, mine))
    moved = several.rename(several.with_name("moved"))
    with places.current(moved / ".regraft" / "tasks" / "topic"):
        assert storage.home(moved / ".regraft" / "tasks" / "topic") == moved / ".dvc" / "cache"


@pytest.fixture
def prepared(several):
    """The place of the task, with rows."""
    place = places.of(several, "topic")
    _prepare(place)
    return place


def _prepare(place):
    with places.current(place):
        for stage in ("sources", "preparation"):
            reproduce(stage, place, "inprocess", lambda message: None)


def _ledger(place):
    return (place / "data" / "ledger.parquet").read_bytes()


def test_the_ledger_of_a_task_is_the_one_that_its_lock_names(several, prepared):
    """As after `git pull` and `git checkout`, with hooks that would put the project's data in its place."""
    lock = several / "locks" / "topic.lock"
    subprocess.run(["dvc", "install"], cwd=several, check=True, capture_output=True)
    first = lock.read_text(), _ledger(prepared)
    _write_topics(several / "topics.csv", 240)
    _prepare(prepared)
    second = lock.read_text(), _ledger(prepared)
    assert first[1] != second[1]
    for text, ledger in (first, second, second):
        lock.write_text(text)
        with places.current(prepared):
            assert _ledger(prepared) == ledger
        assert lock.read_text() == text


def test_what_a_lock_of_a_task_names_stays_in_the_cache(several, prepared):
    lock, cache = several / "locks" / "topic.lock", several / ".dvc" / "cache" / "files" / "md5"
    first = places.named_by_locks(several)
    assert first
    _git(several, "add", "locks")
    _git(several, "commit", "-q", "-m", "Prepare")
    _write_topics(several / "topics.csv", 240)
    _prepare(prepared)
    second = set(places.NAMED.findall(lock.read_text()))
    assert first - second
    objects = {digest: cache / digest[:2] / digest[2:] for digest in first | second}
    made = {digest for digest, path in objects.items() if path.exists()}
    assert made & (first - second)
    unnamed = storage.unused(several, [prepared], time.time() + 60)
    assert not {objects[digest] for digest in made} & set(unnamed)
    list(forget._delete_copies(several, forget._places(several)))
    assert {digest for digest in made if objects[digest].exists()} == made & second, "the present ones alone"


def test_a_lock_outlives_its_place_and_follows_who_changed_it_meanwhile(several, prepared, caplog):
    lock = several / "locks" / "topic.lock"
    text = lock.read_text()
    with places.current(prepared):
        lock.write_text("schema: '2.0'\n")
    assert lock.read_text() == "schema: '2.0'\n"
    assert "was changed meanwhile" in caplog.text
    lock.write_text(text)
    with places.current(prepared):
        shutil.rmtree(prepared)
    assert lock.read_text() == text
    lock.write_text("<<<<<<< ours\n")
    with pytest.raises(WorkspaceError, match="torn"), places.current(places.of(several, "topic")):
        pass


def test_nobody_changes_a_place_in_which_a_run_is_at_work(several, prepared):
    (several / "prefect.yaml").write_text("edited since")
    with workspace.alone(prepared):
        with (
            pytest.raises(WorkspaceError, match="another run is at work"),
            workspace.visited(prepared, wait=0.1),
        ):
            pytest.fail("two at once")
        assert (prepared / "prefect.yaml").read_text() != "edited since"
    with workspace.visited(prepared, wait=0.1), workspace.visited(several), workspace.visited(several):
        assert (prepared / "prefect.yaml").read_text() == "edited since"


def test_a_version_of_a_task_is_reproduced_by_its_own_ledger(several, prepared, monkeypatch):
    params = parameters.dump(parameters.of_task(parameters.load(several / "params.yaml"), "topic"))
    origin = SimpleNamespace(commit=_commit(several).strip(), params=params, digests={"sources": "another"})
    registry = SimpleNamespace(name="topic", origin=lambda version: origin)
    monkeypatch.setattr(reproduction, "resolve", lambda *given: (registry, SimpleNamespace(number="1")))
    (compared,) = reproduction.rebuild("models:/topic/1", several, lambda line: None)
    assert not compared.agrees
    (rebuilt,) = (several / ".regraft" / "rebuilds").iterdir()
    assert _ledger(rebuilt) == _ledger(prepared)


def test_every_task_has_its_turn_whatever_becomes_of_another(several, monkeypatch):
    params = parameters.load(several / "params.yaml")
    tasks = {"first": {}, "second": {}, "third": {}}
    changed = parameters.override(params, [f"tasks={json.dumps(tasks)}"])
    (several / "params.yaml").write_text(parameters.dump(changed))
    asked, errors = [], {"first": TimeoutError("took too long"), "second": InputError("no such file")}

    def one_task(name, *given):
        asked.append((name, *given))
        if name in errors:
            raise errors[name]

    monkeypatch.setattr(pipeline, "one_task", one_task)
    with pytest.raises(RegraftError, match="task first: took too long\ntask second: no such file"):
        pipeline._every_task(several, "inprocess", "encoding", 0.5)
    assert asked == [(name, "inprocess", several, "encoding", 0.5) for name in tasks]


def test_a_task_whose_rows_are_too_unlike_is_held_before_they_are_prepared(several, monkeypatch):
    begun = []
    monkeypatch.setattr(pipeline, "_too_unlike", lambda place, leaf, maximum: f"above {maximum}")
    monkeypatch.setattr(pipeline, "bring_up_to_date", lambda *given, **more: begun.append(given))
    state = pipeline.one_task.fn("topic", "inprocess", several, "promotion", 0.5)
    assert (state.name, state.message, begun) == ("Held", "above 0.5", [])
    monkeypatch.setattr(pipeline, "_too_unlike", lambda place, leaf, maximum: None)
    assert pipeline.one_task.fn("topic", "inprocess", several, "promotion", None) is None
    assert [place for place, _ in begun] == [places.of(several, "topic")]


def test_the_place_of_a_task_that_is_gone_can_be_cleaned(several, prepared):
    (several / "params.yaml").write_text(
        parameters.dump(parameters.override(parameters.load(several / "params.yaml"), ["tasks={}"]))
    )
    with pytest.raises(InputError, match="has no task 'topic'"), places.current(prepared):
        pass
    ground = housekeeping.ground(several, "0h", champions_only=False)
    found = next(kind for kind in housekeeping.look(ground) if kind.name == "workspaces")
    assert [one.name for one in found.leftovers] == [".regraft/tasks/topic"]


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
        ("{topic: {finetuning.adapter.x.y: 1}}", r"tasks.topic: .*no 'x' here"),
        ("{topic: {tasks: {deep: {}}}}", r"a task has no tasks of its own"),
        ("{tweet-sentiment: {}}", r"two of them would be registered as tweet-sentiment"),
    ],
)
def test_a_task_that_cannot_be_is_refused(tasks, message):
    text = (workspace.Path(__file__).parents[2] / "params.yaml").read_text()
    with pytest.raises(ParamsError, match=message):
        parameters.parse(text.replace("\ntasks: {}", f"\ntasks: {tasks}"))
