import json
import platform
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks import files, params
from tasks.artifacts import EncodedDataset, Sources
from tasks.errors import TrackingError
from tasks.tracking import circumstances, live, metrics, runs, server, spool

REPOSITORY = Path(__file__).parents[2]
SHIPPED = params.load(REPOSITORY / "params.yaml")


def changed(*assignments):
    return params.override(SHIPPED, ["promotion.model=reviews", *assignments])


PARAMS = changed()


def write_sources(root, *, text="sha256:1"):
    with files.replace_directory(Sources.folder(root)) as draft:
        Sources.save(draft, text=text, checkpoint="sha256:2")


def write_encoding(root):
    sizes = {"train": 8, "validation": 2, "test": 4}
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        counts = dict.fromkeys(("rows", "tokens", "truncated", "lost", "unknown"), sizes)
        EncodedDataset.save(draft, kind="label", labels=("bad", "good"), max_length=16, **counts)


@pytest.fixture
def root(tracked):
    write_sources(tracked)
    return tracked


@pytest.fixture
def client(root):
    return MlflowClient(tracking_uri=server.uri(root))


def every(client, name="reviews"):
    experiment = client.get_experiment_by_name(name).experiment_id
    return {run.info.run_id: run for run in client.search_runs([experiment])}


def fail(error, *, before):
    before()
    raise error


def states(client):
    """(stage, state, superseded) of every run, in order."""
    found = every(client).values()
    return sorted(
        (run.data.tags["regraft.stage"], run.info.status, "regraft.superseded" in run.data.tags)
        for run in found
    )


def test_a_stage_is_a_child_of_the_pipelines_run(root, client):
    with runs.open_run("preparation", PARAMS, root) as run:
        run.metrics({"loss": 2.0}, step=1)
        run.metrics({"loss": 1.0}, step=2)
    child, parent = client.get_run(run.id), client.get_run(run.parent_id)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.run_name, parent.info.run_name) == ("preparation", "head+upper+whole seed 1")
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert [m.value for m in client.get_metric_history(run.id, "loss")] == [2.0, 1.0]
    sources = [run.data.tags["mlflow.source.name"] for run in (child, parent)]
    assert sources == ["python -m tasks preparation", "dvc.yaml"]
    tags = client.get_experiment(child.info.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"  # else MLflow shows pages of prompts
    assert child.data.params["threshold"] == "0.8"
    assert parent.data.params["finetuning.phases.1.depth"] == "half"
    assert child.data.metrics["system.seconds"] >= 0
    assert child.data.tags["version.torch"]
    told = {name: parent.data.tags.get(f"regraft.{name}") for name in ("method", "checkpoint", "sources")}
    assert told == {
        "method": "3 phases",
        "checkpoint": PARAMS.sources.checkpoint.path,
        "sources": Sources.load(root).digest,
    }
    assert parent.data.tags["regraft.params"] == files.digest_json(PARAMS.contents())


def test_artifacts_land_inside_the_project(root, client, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "curve.csv").write_text("1,2", encoding="utf-8")
    with runs.open_run("preparation", PARAMS, root) as run:
        run.file(tmp_path / "curve.csv", "curves")
    (kept,) = (root / ".regraft" / "mlartifacts" / run.id).rglob("curve.csv")
    assert kept.parent.name == "curves"
    assert params.parse(client_text(client, run.parent_id, tmp_path)) == PARAMS
    assert list(elsewhere.iterdir()) == []


def client_text(client, run_id, folder):
    return Path(client.download_artifacts(run_id, "params.yaml", str(folder))).read_text(encoding="utf-8")


def test_the_same_work_is_never_recorded_twice(root, client):
    for _ in range(2):
        with runs.open_run("preparation", PARAMS, root) as run:
            run.metrics({"loss": 2.0}, step=1)
            run.metrics({"test.accuracy": 0.5})
    assert states(client) == [("pipeline", "FINISHED", False), ("preparation", "FINISHED", False)]
    assert len(client.get_metric_history(run.id, "loss")) == 1
    assert len(client.get_metric_history(run.parent_id, "test.accuracy")) == 1


@pytest.mark.parametrize("broken", ["log_batch", "log_text"])
def test_a_pipelines_run_that_a_server_left_half_told_is_completed(
    root, client, tmp_path, monkeypatch, broken
):
    def gone(*args, **how):
        raise MlflowException("gone")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, broken, gone)
        with runs.open_run("preparation", PARAMS, root):
            pass
    (half,) = [run for run in every(client).values() if run.data.tags["regraft.stage"] == "pipeline"]
    assert not client.list_artifacts(half.info.run_id)
    with runs.open_run("vocabulary", PARAMS, root) as run:
        pass
    assert run.parent_id == half.info.run_id
    told = {metrics.valid_name(name): server.short(str(v)) for name, v in params.flatten(PARAMS).items()}
    assert client.get_run(run.parent_id).data.params == told
    assert params.parse(client_text(client, run.parent_id, tmp_path)) == PARAMS
    assert spool.told(root) == ""


def test_two_stages_share_a_parent_and_other_params_have_another(root):
    with (
        runs.open_run("preparation", PARAMS, root) as first,
        runs.open_run("vocabulary", PARAMS, root) as second,
    ):
        pass
    with runs.open_run("vocabulary", changed("finetuning.seed=2"), root) as other:
        pass
    assert first.parent_id == second.parent_id != other.parent_id


def test_a_workspace_with_the_same_params_and_sources_goes_on_in_the_same_run(root, tmp_path, monkeypatch):
    with runs.open_run("preparation", PARAMS, root) as ours:
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri(root))
    workspace = tmp_path / "workspace"
    write_sources(workspace)
    with runs.open_run("preparation", PARAMS, workspace) as theirs:
        pass
    assert ours.id == theirs.id


def test_keys_follow_what_a_stage_depends_on_and_nothing_else(root):
    def keys(params):
        return runs.parent_key(params, root), runs.child_key("encoding", params, root)

    before = keys(PARAMS)
    other_seed = keys(changed("finetuning.seed=2"))
    assert other_seed[0] != before[0]
    assert other_seed[1] == before[1]
    assert keys(changed("encoding.max_length=64"))[1] != before[1]
    write_sources(root, text="sha256:3")
    assert keys(PARAMS)[0] != before[0]
    preparation = root / "data" / "preparation"
    preparation.mkdir(parents=True)
    (preparation / "manifest.json").write_text('{"digest": "sha256:4"}', encoding="utf-8")
    assert keys(PARAMS)[1] != before[1]


def test_upstream_is_what_dvc_yaml_says():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages.pop("sources")
    for name, stage in stages.items():
        paths = {Path(dep).parts for dep in stage["deps"]}
        assert set(runs.UPSTREAM[name]) >= {parts[1] for parts in paths if parts[0] == "data"}, name
    assert runs.UPSTREAM.keys() == stages.keys()


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (ValueError("row 7"), "FAILED", "ValueError: row 7"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (SystemExit(143), "KILLED", "SystemExit: 143"),
    ],
)
def test_a_run_ends_as_its_body_does(root, client, error, state, message):
    with pytest.raises(type(error)), runs.open_run("preparation", PARAMS, root) as run:
        fail(error, before=lambda: run.metrics({"loss": 2.0}))
    for run_id in (run.id, run.parent_id):
        found = client.get_run(run_id)
        assert (found.info.status, found.data.tags["regraft.message"]) == (state, message)
    assert client.get_run(run.id).data.metrics["loss"] == 2.0


def test_after_a_failure_a_new_run_supersedes_the_old_one(root, client):
    with pytest.raises(ValueError, match="row 7"), runs.open_run("preparation", PARAMS, root) as failed:
        raise ValueError("row 7")
    with runs.open_run("preparation", PARAMS, root) as run:
        pass
    assert client.get_run(failed.id).data.tags["regraft.superseded"] == run.id
    parent = client.get_run(run.parent_id)
    assert (parent.info.status, parent.data.tags["regraft.message"]) == ("FINISHED", "")


def test_a_failed_stage_keeps_the_pipelines_run_failed_when_another_ends_well(root, client):
    with pytest.raises(ValueError, match="row 7"), runs.open_run("preparation", PARAMS, root):
        raise ValueError("row 7")
    with runs.open_run("vocabulary", PARAMS, root) as run:
        pass
    assert client.get_run(run.parent_id).info.status == "FAILED"


def test_the_bodys_own_error_is_told_when_the_server_goes_away_too(root, monkeypatch):
    def gone(*args):
        raise TrackingError("gone")

    with pytest.raises(ValueError, match="row 7"), runs.open_run("preparation", PARAMS, root):
        fail(ValueError("row 7"), before=lambda: monkeypatch.setattr(live.Live, "take", gone))


@pytest.fixture
def crash(root, monkeypatch):
    """Leaves a run RUNNING as a process that was killed does."""
    kept = []

    def leave(stage, params):
        process = subprocess.Popen(["sleep", "60"])
        born = psutil.Process(process.pid).create_time()
        with monkeypatch.context() as patch:
            patch.setattr(
                circumstances, "this_process", lambda: f"{platform.node()}|{process.pid}|{born:.0f}"
            )
            opened = runs.open_run(stage, params, root)
            run = opened.__enter__()
        kept.append(opened)  # else the generator's end would close the run
        return run, process

    return leave


def test_a_run_whose_process_was_killed_is_killed_and_superseded(root, client, crash):
    crashed, process = crash("preparation", PARAMS)
    process.kill()
    process.wait()
    assert client.get_run(crashed.id).info.status == "RUNNING"
    with runs.open_run("preparation", PARAMS, root) as run:
        pass
    assert states(client) == [
        ("pipeline", "FINISHED", False),
        ("preparation", "FINISHED", False),
        ("preparation", "KILLED", True),
    ]
    assert client.get_run(crashed.id).data.tags["regraft.superseded"] == run.id


def test_a_killed_run_of_other_params_does_not_stay_running_for_ever(root, client, crash):
    crashed, process = crash("preparation", changed("finetuning.seed=2"))
    process.kill()
    process.wait()
    with runs.open_run("preparation", PARAMS, root):
        pass
    assert client.get_run(crashed.id).info.status == "KILLED"
    assert client.get_run(crashed.parent_id).info.status == "KILLED"


def test_a_run_whose_process_lives_is_left_alone(root, client, crash):
    living, process = crash("preparation", PARAMS)
    with runs.open_run("preparation", PARAMS, root) as run:
        pass
    assert run.id != living.id
    assert client.get_run(living.id).info.status == "RUNNING"
    assert client.get_run(run.parent_id).info.status == "RUNNING"
    process.kill()
    process.wait()


@pytest.fixture
def elsewhere(root, client):
    """A run that a process of another machine has left open, last heard of some seconds ago; None: it gives
    no signs of life."""

    def leave(params, ago):
        opening = runs.introduction("preparation", params, root)
        run = runs.Run(root, replace(opening, process="another machine|1|1"))
        if ago is None:
            client.delete_tag(run.id, "regraft.seen")
        else:
            client.set_tag(run.id, "regraft.seen", str(int(time.time() - ago)))
        return run

    return leave


@pytest.mark.parametrize(
    ("ago", "state", "of_all"),
    [(5, "RUNNING", "RUNNING"), (None, "RUNNING", "RUNNING"), (3600, "KILLED", "FINISHED")],
)
def test_another_machines_run_is_dead_only_after_a_long_silence(root, client, elsewhere, ago, state, of_all):
    theirs = elsewhere(PARAMS, ago)
    with runs.open_run("preparation", PARAMS, root) as run:
        pass
    assert run.id != theirs.id
    assert client.get_run(theirs.id).info.status == state
    assert client.get_run(run.parent_id).info.status == of_all


def test_a_run_that_fell_silent_after_its_successor_began_gives_way_to_it(root, client, elsewhere):
    theirs = elsewhere(PARAMS, 5)
    with runs.open_run("preparation", PARAMS, root) as run:
        pass
    client.set_tag(theirs.id, "regraft.seen", "1")
    with runs.open_run("preparation", changed("finetuning.seed=2"), root):
        pass
    found = client.get_run(theirs.id)
    assert (found.info.status, found.data.tags["regraft.superseded"]) == ("KILLED", run.id)
    assert client.get_run(run.parent_id).info.status == "FINISHED"


def test_stages_that_begin_at_once_make_one_parent(root, client):
    begin = threading.Barrier(3)

    def work(stage):
        begin.wait()
        with runs.open_run(stage, PARAMS, root) as run:
            run.metrics({"rows": 3})
        return run.parent_id

    with ThreadPoolExecutor(3) as pool:
        parents = set(pool.map(work, ("preparation", "vocabulary", "conversion")))
    assert len(parents) == 1
    assert [entry[0] for entry in states(client)].count("pipeline") == 1


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("sqlite:////proc/no/such/mlflow.db", "/proc/no/such/mlflow.db"),
        ("htp://somewhere", "htp://somewhere"),
        ("postgresql://me:secret@127.0.0.1:9/runs", "postgresql://me:…@127.0.0.1:9/runs"),
    ],
)
def test_without_a_server_the_stage_runs_and_the_server_is_named(root, monkeypatch, caplog, address, named):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with runs.open_run("preparation", PARAMS, root) as run:
        run.metrics({"loss": 1.0})
    assert named in caplog.text
    assert "tracking degraded" in caplog.text
    assert "secret" not in caplog.text
    assert (run.id, run.uri) == ("", str(spool.waiting(root)[0].path))


def test_a_file_that_is_no_database_is_an_error(root):
    (root / ".regraft" / "mlflow.db").write_text("not a database, but long enough to be asked" * 50)
    with pytest.raises(TrackingError, match="file is not a database"):
        server.connect(root)


def test_an_experiment_that_was_deleted_is_told_with_its_remedy(root, client, caplog, tmp_path):
    client.delete_experiment(client.create_experiment("reviews", str(tmp_path / "artifacts")))
    with runs.open_run("preparation", PARAMS, root):
        pass
    assert "mlflow experiments restore" in caplog.text
    client.restore_experiment(client.get_experiment_by_name("reviews").experiment_id)
    runs.send_waiting(client, root)
    assert states(client) == [("pipeline", "FINISHED", False), ("preparation", "FINISHED", False)]


def test_long_params_are_cut_and_stand_whole_in_the_file(root, client, tmp_path):
    long = changed(f"sources.text.licence={'x' * 2000}")
    with runs.open_run("preparation", long, root) as run:
        pass
    assert len(client.get_run(run.parent_id).data.params["sources.text.licence"]) == server.LONGEST
    assert "x" * 2000 in client_text(client, run.parent_id, tmp_path)


def test_the_data_set_is_named_with_its_digest(root, client):
    write_encoding(root)
    with runs.open_run("finetuning", PARAMS, root) as run:
        pass
    (found,) = client.get_run(run.id).inputs.dataset_inputs
    (above,) = client.get_run(run.parent_id).inputs.dataset_inputs
    assert above.dataset.digest == found.dataset.digest
    digest = EncodedDataset.load(root).digest.removeprefix("sha256:")
    assert digest.startswith(found.dataset.digest)
    assert json.loads(found.dataset.source) == {"uri": str((root / "data" / "encoding").resolve())}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def test_names_that_mlflow_refuses_are_written_another_way(root, client):
    with runs.open_run("preparation", PARAMS, root) as run:
        run.metrics({"dropped.too short (<3)": 4.0})
        run.output("sha256:9")
    found = client.get_run(run.id).data
    assert found.metrics["dropped.too short __3_"] == 4.0
    assert found.tags["regraft.output"] == "sha256:9"


def test_the_table_shows_each_pipeline_run_with_its_test_figures(root):
    for seed in (1, 2):
        with runs.open_run("preparation", changed(f"finetuning.seed={seed}"), root) as run:
            run.metrics({"test.accuracy": seed / 10, "loss": 1.0})
    newest, oldest = runs.table(root, "reviews", 10)
    assert (newest["run"], newest["test.accuracy"], newest["finetuning.seed"]) == (
        "head+upper+whole seed 2",
        0.2,
        "2",
    )
    assert (oldest["test.accuracy"], oldest["state"], "loss" in oldest) == (0.1, "finished", False)
    assert len(runs.table(root, "reviews", 1)) == 1
    assert runs.table(root, "unknown", 10) == []


def test_locate_finds_the_run_that_made_an_output_or_says_that_it_was_cached(root, client):
    with runs.open_run("finetuning", PARAMS, root) as run:
        pass
    other = changed("promotion.alpha=0.01")  # another pipeline run, in which DVC skips finetuning
    assert runs.locate("finetuning", other, root) == run.id
    unseen = changed("finetuning.seed=2")
    found = runs.locate("finetuning", unseen, root)
    assert client.get_run(found).data.tags["regraft.cached"] == "true"
    assert runs.locate("finetuning", unseen, root) == found


def test_a_lock_that_is_not_given_back_is_told(root):
    where = server.uri(root)
    with (
        server.lock(where, "runs"),
        pytest.raises(TrackingError, match=r"mlflow\.db\.runs\.lock is held by another process"),
        server.lock(where, "runs", wait=0.1),
    ):
        pass


@pytest.mark.e2e
def test_a_database_is_made_where_there_is_none(root):
    shutil.rmtree(root / ".regraft")
    with runs.open_run("preparation", PARAMS, root):
        pass
    assert (root / ".regraft" / "mlflow.db").exists()
