"""The Prefect way: the same stages, the same lock file, and what a person sees of it."""

import json
import sqlite3
import subprocess
import sys

import pytest
import yaml

from tasks import params as parameters
from tasks.artifacts import PreparedText, Promotion, TrainedModel

pytestmark = pytest.mark.e2e


def _regraft(command, *words, code=0):
    return command("regraft", *words, code=code).stdout


def _lock(root):
    return yaml.safe_load((root / "dvc.lock").read_text())["stages"]


def test_the_flow_and_dvc_leave_the_same_lock_file(project, seed_reproduced, command):
    """`regraft run` first, then `dvc repro` finds nothing to do; MLflow has each stage once; overrides work in a
    workspace; the registry can be rolled back."""
    said = _regraft(command, "run")
    assert "unfrozen" in said
    assert "mlflow ui --backend-store-uri" in said
    after_flow = _lock(project)
    assert _outs(project) == _outs(seed_reproduced), (
        "same params, data and seed: same digests, whoever runs it"
    )
    again = command("dvc", "repro").stdout
    for stage in after_flow.keys() - {"sources", "promotion"}:
        assert f"Stage '{stage}' didn't change, skipping" in again
    assert _lock(project) == after_flow
    runs = _mlflow_runs(project)
    assert sorted(runs) == sorted(set(runs)), "no stage may have two runs"
    assert {"preparation", "finetuning", "evaluation", "promotion"} <= set(runs)
    _everything_is_skipped(project, command)
    _overrides_work_elsewhere(project, command)
    _champion_is_used(project, command)
    _what_the_gate_refuses_is_told_by_the_exit_code(project, command)


def _outs(root):
    return {out["path"]: out["md5"] for stage in _lock(root).values() for out in stage["outs"]}


def _mlflow_runs(root):
    with sqlite3.connect(root / ".regraft" / "mlflow.db") as database:
        return [
            name for (name,) in database.execute("select name from runs where lifecycle_stage = 'active'")
        ]


def _everything_is_skipped(project, command):
    done = command("regraft", "run")
    for stage in ("preparation", "vocabulary", "conversion", "encoding", "finetuning", "evaluation"):
        assert f"{stage}: unchanged" in done.stderr
    with sqlite3.connect(project / ".regraft" / "prefect" / "prefect.db") as database:
        names = [name for (name,) in database.execute("select state_name from task_run")]
    assert names.count("Skipped") >= 6
    assert "Failed" not in names


def _overrides_work_elsewhere(project, command):
    before = {path: (project / path).read_bytes() for path in ("params.yaml", "dvc.lock")}
    weights = TrainedModel.load(project).weights
    planned = _regraft(command, "plan", "-S", "finetuning.seed=5")
    assert "finetuning.seed" in planned
    _regraft(command, "run", "-S", "finetuning.seed=5", "--leaf", "inprocess")
    assert {path: (project / path).read_bytes() for path in before} == before
    (place,) = (project / ".regraft" / "runs").iterdir()
    assert parameters.load(place / "params.yaml").finetuning.seed == 5
    assert TrainedModel.load(place).weights != weights
    assert TrainedModel.load(place).base == TrainedModel.load(project).base
    assert not Promotion.load(place).alias_moved, "what is tried out does not change what serves"
    compared = _regraft(command, "compare")
    assert "seed 5" in compared
    assert "seed 1" in compared


def test_the_plan_says_what_would_run_and_why(reproduced, command):
    def states(*words):
        lines = _regraft(command, "plan", *words).splitlines()
        cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
        return {row[0]: row[1] for row in cells}

    quiet = states()
    assert {name for name, state in quiet.items() if state == "unchanged"} == {
        "preparation", "vocabulary", "conversion", "encoding", "finetuning", "evaluation"
    }  # fmt: skip
    phases = states("-S", "finetuning.phases.0.epochs=1")
    assert [name for name, state in phases.items() if state == "runs"] == ["finetuning", "evaluation"]
    with (reproduced / "reviews.csv").open("a") as stream:
        stream.write("the superb garden,good\n")
    table = states()
    assert all(table[name] == "runs" for name in quiet if quiet[name] == "unchanged")


def _champion_is_used(project, command):
    assert Promotion.load(project).outcome == "promote", Promotion.load(project).reasons
    assert _regraft(command, "predict", "the wonderful food room").startswith("good")
    assert _regraft(command, "predict", "the dreadful food room").startswith("bad")
    _regraft(command, "predict", "reviews.csv", "-o", "labelled.csv")
    lines = (project / "labelled.csv").read_text().splitlines()
    assert lines[0] == "review,verdict,prediction,probability"
    assert len(lines) == 241
    _regraft(command, "promote", code=0)
    told = _regraft(command, "status")
    version = Promotion.load(project).version
    for line in (f"reviews version {version}, of ", f"promote: reviews version {version}", " free\n"):
        assert line in told
    assert f" rows in: {PreparedText.load(project).rows['train']:,} train" in told
    _regraft(command, "report")
    command("regraft", "rollback", "--reason", "a test", code=2)  # there is no champion before the first


def _what_the_gate_refuses_is_told_by_the_exit_code(project, command):
    champion, path = Promotion.load(project).version, project / "params.yaml"
    changes = ["finetuning.seed=6", "promotion.gate.maximum_megabytes=0.001"]
    path.write_text(parameters.dump(parameters.override(parameters.load(path), changes)))
    said = _regraft(command, "run", "--leaf", "inprocess", code=3)
    record = Promotion.load(project)
    assert f"{record.outcome}: reviews version {record.version}" in said
    assert (record.alias_moved, record.version != champion) == (False, True)
    forced = command("regraft", "promote", "--force", "--reason", "the trial went well")
    assert "THE GATE SAID NO: promoted against its verdict" in forced.stderr
    assert Promotion.load(project).alias_moved
    assert "THE GATE SAID NO" not in command("regraft", "rollback").stderr


def test_a_stage_that_refuses_its_input_is_not_tried_again(project, command):
    table = project / "reviews.csv"
    table.write_text(table.read_text().replace("review,verdict", "revue,verdict"))
    told = _refused(project, "run", code=2)
    assert "did you mean 'revue'?" in told
    told = _regraft(command, "status", code=1)
    assert "reviews has none yet" in told
    assert "run `dvc repro promotion` first" in told
    assert _tries_of_failed_tasks(project) == [1]


def test_a_training_that_would_fail_alike_again_is_not_tried_again(project):
    phases = "[{name: deep, depth: 9, learning_rate: 1.0e-3}]"
    told = _refused(project, "run", "-S", f"finetuning.phases={phases}", code=4)
    assert "depth 9: the model has" in told
    assert _tries_of_failed_tasks(project) == [1]


def _refused(project, *arguments, code):
    done = subprocess.run(["regraft", *arguments], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def _tries_of_failed_tasks(project):
    with sqlite3.connect(project / ".regraft" / "prefect" / "prefect.db") as database:
        runs = database.execute("select name, state_name, run_count from task_run").fetchall()
    return [count for name, state, count in runs if state == "Failed"]


def test_the_contract_with_dvc_holds():
    """Flows replace a private function; a new DVC that renames it must fail here."""
    import inspect

    import dvc.stage.run

    assert list(inspect.signature(dvc.stage.run.cmd_run).parameters) == ["stage", "dry", "run_env"]
    assert "cmd_run" in inspect.getsource(dvc.stage.run.run_stage)
    assert list(inspect.signature(dvc.stage.run.prepare_kwargs).parameters) == ["stage", "run_env"]
    assert "exited with" in str(dvc.stage.exceptions.StageCmdFailedError("x", 2))


def test_the_stages_come_in_an_order_that_dvc_agrees_with(project):
    code = "from flows.checkout.stage import in_order; from pathlib import Path; import json; print(json.dumps(in_order(Path())))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True
    )
    order = json.loads(done.stdout)
    lock = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    assert sorted(order) == sorted(lock)
    for stage, description in lock.items():
        for needed in description["deps"]:
            if needed.startswith("data/"):
                assert order.index(needed.split("/")[1]) < order.index(stage)
