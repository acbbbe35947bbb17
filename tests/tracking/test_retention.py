"""Which runs may go, against a real database of MLflow's."""

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from tasks.errors import TrackingError
from tasks.tracking import retention, server, spool
from tasks.tracking.registry import Registry

DAY = 86400.0
NOW = 1_900_000_000.0  # later than any test: seconds since 1970
OLD, YOUNG = NOW - 50 * DAY, NOW - DAY
BEFORE = NOW - 30 * DAY


@pytest.fixture
def client(tracked):
    return MlflowClient(tracking_uri=server.uri(tracked))


@pytest.fixture
def experiment(tracked, client):
    return client.create_experiment("reviews", artifact_location=str(tracked / ".regraft" / "mlartifacts"))


@pytest.fixture
def made(client, experiment, tmp_path):
    """A pipeline's run with one stage below it, and a file of 10 kB each."""

    def make(name, *, ended, status="FINISHED"):
        (tmp_path / "page.html").write_bytes(b"x" * 10_000)
        ids, tags = [], {}
        for what in (name, f"{name} stage"):
            run = client.create_run(experiment, int(OLD * 1000), tags, what).info.run_id
            client.log_artifact(run, str(tmp_path / "page.html"))
            client.set_terminated(run, status, int(ended * 1000)) if status != "RUNNING" else None
            tags = {retention.PARENT: run}
            ids.append(run)
        return ids

    return make


@pytest.fixture
def register(tracked, tiny_classifier, tmp_path):
    def make(run_id, seed=0, clean="[]"):
        directory = tmp_path / f"model {seed}"
        if not directory.exists():
            tiny_classifier(directory, seed=seed)
        return Registry(tracked, "reviews").register(
            directory, run_id=run_id, max_length=16, kind="label", reading={"regraft.clean": clean}, tags={}
        )

    return make


def names(found):
    return sorted(tree.name for tree in found)


def promote(root, number):
    registry = Registry(root, "reviews")
    with registry.locked():
        registry.promote(number, reason="better", by="ann")


def test_old_runs_go_whole_and_young_or_working_ones_stay(tracked, client, experiment, made):
    parent, child = made("old", ended=OLD)
    made("young", ended=YOUNG)
    made("working", ended=OLD, status="RUNNING")
    (tree,) = retention.old(tracked, "reviews", BEFORE, champions_only=False)
    assert (tree.name, set(tree.runs), tree.deleted) == ("old", {parent, child}, False)
    assert tree.size >= 20_000
    retention.delete(tracked, "reviews", tree)
    (tree,) = retention.old(tracked, "reviews", BEFORE, champions_only=False)  # as after an interruption
    assert tree.deleted
    assert retention.purge(tracked, [tree]) == ""
    left = {run.info.run_name for run in client.search_runs([experiment], "", ViewType.ALL)}
    assert left == {"young", "young stage", "working", "working stage"}
    assert not (tracked / ".regraft" / "mlartifacts" / parent / "artifacts").exists()


def test_the_runs_of_a_registered_version_stay(tracked, made, register):
    _, stage = made("candidate", ended=OLD)
    register(stage)
    made("tried", ended=OLD)
    assert names(retention.old(tracked, "reviews", BEFORE, champions_only=False)) == ["tried"]


def test_only_versions_that_never_were_champion_go_and_only_when_asked(tracked, client, made, register):
    numbers = {}
    for seed, name in enumerate(("former", "champion", "candidate", "aliased", "judged")):
        numbers[name] = register(made(name, ended=OLD)[1], seed).number
    for name in ("former", "champion"):
        promote(tracked, numbers[name])
    client.set_registered_model_alias("reviews", "shadow", numbers["aliased"])
    asked = {"champions_only": True, "keep": {numbers["judged"]}}
    assert retention.old(tracked, "reviews", BEFORE - 10**9, **asked) == []  # versions as old as runs
    (tree,) = retention.old(tracked, "reviews", BEFORE, **asked)
    assert (tree.name, tree.versions, len(tree.models)) == ("candidate", (numbers["candidate"],), 1)
    retention.delete(tracked, "reviews", tree)
    retention.purge(tracked, [tree])
    registry = Registry(tracked, "reviews")
    assert {version.number for version in registry.versions()} == {"1", "2", "4", "5"}
    assert registry.download(registry.must_have_champion()).is_dir()


def test_a_model_that_another_version_shares_stays(tracked, made, register):
    first = register(made("champion", ended=OLD)[1])
    _, stage = made("the same weights", ended=OLD)
    register(stage, clean='["html"]')
    registry = Registry(tracked, "reviews")
    promote(tracked, first.number)
    (tree,) = retention.old(tracked, "reviews", BEFORE, champions_only=True)
    assert (tree.name, tree.versions, tree.models) == ("the same weights", ("2",), ())
    retention.delete(tracked, "reviews", tree)
    retention.purge(tracked, [tree])
    assert registry.download(registry.must_have_champion()).is_dir()


def test_a_version_that_was_promoted_meanwhile_stays(tracked, made, register):
    number = register(made("candidate", ended=OLD)[1]).number
    promote(tracked, register(made("champion", ended=OLD)[1], 1).number)
    (tree,) = retention.old(tracked, "reviews", BEFORE, champions_only=True)
    promote(tracked, number)
    with pytest.raises(TrackingError, match="version 1 became champion just now"):
        retention.delete(tracked, "reviews", tree)


def _active(client, experiment):
    return {run.info.run_id for run in client.search_runs([experiment])}


def test_a_run_that_is_under_way_again_stays_whole(tracked, client, experiment, made):
    parent, child = made("old", ended=OLD)
    (tree,) = retention.old(tracked, "reviews", BEFORE, champions_only=False)
    client.update_run(child, status="RUNNING")
    with pytest.raises(TrackingError, match="old: old stage is under way again just now: it stays"):
        retention.delete(tracked, "reviews", tree)
    assert _active(client, experiment) == {parent, child}


def test_a_run_that_a_version_was_registered_in_meanwhile_stays(tracked, client, experiment, made, register):
    parent, child = made("old", ended=OLD)
    (tree,) = retention.old(tracked, "reviews", BEFORE, champions_only=False)
    register(child)
    with pytest.raises(TrackingError, match="old: a version was registered in it just now: it stays"):
        retention.delete(tracked, "reviews", tree)
    assert _active(client, experiment) == {parent, child}


def test_a_run_that_a_person_deleted_meanwhile_is_no_fault(tracked, client, experiment, made):
    _, child = made("old", ended=OLD)
    (tree,) = retention.old(tracked, "reviews", BEFORE, champions_only=False)
    client.delete_run(child)
    retention.delete(tracked, "reviews", tree)
    assert _active(client, experiment) == set()


def test_deleted_experiments_are_not_purged_along_with_runs(tracked, client, made):
    made("old", ended=OLD)
    other = client.create_experiment("other", artifact_location=str(tracked / "other"))
    client.delete_experiment(other)
    found = retention.old(tracked, "reviews", BEFORE, champions_only=False)
    for tree in found:
        retention.delete(tracked, "reviews", tree)
    assert "mlflow gc --backend-store-uri sqlite:" in retention.purge(tracked, found)
    assert client.get_experiment(other).lifecycle_stage == "deleted"


def test_nothing_is_looked_at_while_a_run_waits_to_be_sent(tracked, made):
    made("old", ended=OLD)
    folder = tracked / ".regraft" / "spool" / "1-preparation-aa"
    folder.mkdir(parents=True)
    (folder / spool.OPENING).write_text("{}")
    with pytest.raises(TrackingError, match="no run is looked at before that"):
        retention.old(tracked, "reviews", BEFORE, champions_only=False)


def test_every_page_is_read():
    """MLflow tells logged models by the hundred, newest first: the old ones are on the last page."""

    class Page(list):
        token = None

    def search(page_token):
        found = Page([page_token])
        found.token = {None: "second", "second": "third"}.get(page_token)
        return found

    assert retention._all(search) == [None, "second", "third"]
