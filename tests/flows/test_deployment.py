"""A real Prefect server, a real worker and prefect.yaml as shipped: contracts that an upgrade may break."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tasks import params as parameters
from tasks.artifacts import Promotion

pytestmark = pytest.mark.e2e
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def _ask(path, body=None):
    request = urllib.request.Request(
        os.environ["PREFECT_API_URL"] + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def _wait(condition, *, patience, what):
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(1)
    raise AssertionError(f"{what} did not happen within {patience} s")


@pytest.fixture
def server(project, prefect_server):
    return project


def _deploy(project, command):
    for pool in ("cpu", "gpu"):
        command(*PREFECT, "work-pool", "create", pool, "--overwrite", "--type", "process")
    command(*PREFECT, "deploy", "--all")


def test_the_nightly_schedule_makes_runs_and_a_worker_completes_one(server, command, tmp_path):
    _deploy(server, command)
    often = "retrain/retrain-on-new-data"  # might come between
    command(*PREFECT, "deployment", "schedule", "clear", often, "--accept-yes")
    scheduled = _wait(
        lambda: _ask("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}),
        patience=90, what="a run made by the cron schedule",
    )  # fmt: skip
    assert all(run["auto_scheduled"] for run in scheduled)
    log = (tmp_path / "worker.log").open("w")
    worker = subprocess.Popen(
        [*PREFECT, "worker", "start", "--pool", "cpu", "--type", "process"],
        cwd=tmp_path,
        stdout=log,
        stderr=log,
    )
    try:
        said = command(
            *PREFECT, "deployment", "run", "transfer/nightly", "--param", 'leaf="inprocess"'
        ).stdout
        assert "transfer/nightly" in said or "Created flow run" in said
        _wait(lambda: _states(), patience=300, what="the end of the run")
        assert _states() == ["Completed"], (tmp_path / "worker.log").read_text()[-3000:]
    finally:
        worker.terminate()
        worker.wait(timeout=60)
        log.close()
    assert Promotion.load(server).outcome == "promote"
    tasks = _ask("/task_runs/filter", {})
    assert sorted(task["name"].rsplit("-", 1)[0] for task in tasks) == sorted(
        [
            "sources",
            "preparation",
            "vocabulary",
            "conversion",
            "encoding",
            "finetuning",
            "evaluation",
            "promotion",
        ]
    )
    artifacts = {artifact["key"] for artifact in _ask("/artifacts/filter", {})}
    assert {"finetuning-progress", "finetuning-summary", "evaluation-figures", "results"} <= artifacts
    (said,) = [line for line in _ask("/logs/filter", {}) if line["message"] == "finetuning: done"]
    assert said["flow_run_id"] in {task["flow_run_id"] for task in tasks}
    assert said["task_run_id"] in {task["id"] for task in tasks if task["name"].startswith("finetuning")}


def _states():
    runs = _ask(
        "/flow_runs/filter",
        {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}},
    )
    return [run["state_name"] for run in runs]


def test_the_form_of_a_deployment_is_the_schema_of_params(server, command):
    _deploy(server, command)
    refused = subprocess.run(
        [*PREFECT, "deployment", "run", "transfer/transfer", "--param", 'params={"finetuning": {"seed": "many"}}'],
        cwd=server, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "params" in refused.stdout + refused.stderr
    (form,) = [
        d["parameter_openapi_schema"] for d in _ask("/deployments/filter", {}) if d["name"] == "transfer"
    ]
    described = json.dumps(form)
    for section in ("preparation", "finetuning", "promotion"):
        assert f'"{section}"' in described
    sections = form["definitions"]["Params"]["properties"]
    mine = parameters.load(server / "params.yaml").model_dump(mode="json")
    assert {name: about["default"] for name, about in sections.items()} == mine


def test_the_server_refuses_a_wrong_value_before_there_is_a_run(server, command):
    _deploy(server, command)
    deployment = _ask("/deployments/name/transfer/transfer")
    assert deployment["enforce_parameter_schema"]
    params = parameters.load(server / "params.yaml").model_dump(mode="json")
    params["finetuning"]["phases"][0]["learning_rate"] = 5
    with pytest.raises(urllib.error.HTTPError) as refused:
        _ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"params": params}})
    assert refused.value.code == 409
    said = refused.value.read().decode()
    assert "learning_rate" in said
    assert "5 is greater than the maximum of 1" in said
