"""Each fault is found by itself and names its remedy; servers are real."""

import subprocess
import sys
import time

import pytest

from flows.commands import diagnosis, reach
from tasks import params as parameters
from tasks.errors import ParamsError


def found(checks):
    return {check.name: check for check in checks}


def test_windows_is_sent_to_wsl_and_macos_is_told_what_to_expect():
    assert diagnosis._platform("linux").ok
    assert "best effort" in diagnosis._platform("darwin").finding
    windows = diagnosis._platform("win32")
    assert (windows.ok, "use WSL" in windows.remedy) == (False, True)


def test_one_fault_keeps_no_other_check_from_being_made(project, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    text = (project / "params.yaml").read_text().replace("save_every:", "save_evry:")
    (project / "params.yaml").write_text(text)
    subprocess.run(
        ["dvc", "remote", "add", "store", str(project / "no" / "such" / "place")], cwd=project, check=True
    )
    checks = found(diagnosis.examine(project))
    assert not checks["params.yaml"].ok
    assert checks["prefect"].finding.startswith("http://127.0.0.1:9/api: ")
    assert "`prefect server start`" in checks["prefect"].remedy
    assert "No such file" in checks["remote store"].finding
    assert "`dvc remote modify store" in checks["remote store"].remedy
    assert checks["disk"].ok
    assert checks["git and dvc"].ok


def test_a_remote_is_listed_also_before_the_first_push(project, tmp_path):
    for name in ("made", "to-be-made"):
        subprocess.run(["dvc", "remote", "add", name, str(tmp_path / name)], cwd=project, check=True)
    (tmp_path / "made").mkdir()
    assert [(check.name, check.ok) for check in reach.remotes(project)] == [
        ("remote made", True), ("remote to-be-made", True),
    ]  # fmt: skip


def test_a_remote_that_does_not_answer_is_given_up(project, tmp_path, monkeypatch):
    subprocess.run(["dvc", "remote", "add", "slow", str(tmp_path)], cwd=project, check=True)
    monkeypatch.setattr(reach, "LISTING", 0.01)
    (check,) = reach.remotes(project)
    assert (check.ok, "did not answer within 0.01 s" in check.finding) == (False, True)


def test_a_remotes_password_is_not_shown(project, monkeypatch):
    place = "https://ann:planted-secret@127.0.0.1:9/store"
    subprocess.run(["dvc", "remote", "add", "store", place], cwd=project, check=True)
    monkeypatch.setattr(reach, "LISTING", 0.01)
    (check,) = reach.remotes(project)
    assert "https://127.0.0.1:9/store" in check.finding
    assert "planted" not in check.finding + check.remedy


def test_a_device_that_is_not_there_names_the_param(project):
    import torch

    params = parameters.load(project / "params.yaml")
    if torch.cuda.is_available():
        many = parameters.override(params, ["finetuning.device=cuda", "finetuning.processes=99"])
    else:
        many = parameters.override(params, ["finetuning.device=cuda"])
    check = diagnosis._device(many)
    assert (check.ok, "finetuning." in check.finding) == (False, True)


def test_a_full_disk_is_told_by_the_weights_it_must_hold(project, monkeypatch):
    params = parameters.load(project / "params.yaml")
    size = sum(path.stat().st_size for path in (project / "base").iterdir())
    assert diagnosis._checkpoint_size(params, project) == size
    monkeypatch.setattr(diagnosis, "COPIES", 10**18 // size)
    check = diagnosis._disk(project, params)
    assert (check.ok, "`regraft clean`" in check.remedy) == (False, True)


def test_the_pools_of_prefect_yaml_are_read_through_anchors(project):
    text = (project / "prefect.yaml").read_text()
    found = [one[:3] for one in parameters.deployments(text)]
    assert ("nightly", "flows.pipeline.transfer", "cpu") in found
    assert ("gpu", reach.ELSEWHERE, "gpu") in found
    with pytest.raises(ParamsError, match=r"needs name, entrypoint and work_pool\.name"):
        parameters.deployments("deployments: [{name: nightly}]")


@pytest.mark.e2e
def test_a_prefect_server_is_asked_for_deployments_pools_and_workers(
    project, prefect_server, command, tmp_path, monkeypatch
):
    monkeypatch.setattr(reach, "PATIENCE", 300.0)  # how busy a machine is proves nothing
    prefect = (sys.executable, "-m", "prefect", "--no-prompt")
    checks = found(reach.prefect(project, None))
    assert checks["prefect"].ok
    assert checks["deployments"].finding.startswith("not there: prepare-nightly, nightly")
    assert checks["pool cpu"].remedy == "`prefect work-pool create cpu --type process`"
    assert "pool gpu" not in checks, "nothing is trained elsewhere"
    assert not found(reach.prefect(project, "finetune/gpu"))["pool gpu"].ok
    command(*prefect, "work-pool", "create", "cpu", "--type", "process")
    assert "no worker is online" in found(reach.prefect(project, None))["pool cpu"].finding
    command(*prefect, "work-pool", "pause", "cpu")
    assert found(reach.prefect(project, None))["pool cpu"].remedy == "`prefect work-pool resume cpu`"
    command(*prefect, "work-pool", "resume", "cpu")
    worker = subprocess.Popen(
        [*prefect, "worker", "start", "--pool", "cpu", "--type", "process", "--name", "bee"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(120):
            check = found(reach.prefect(project, None))["pool cpu"]
            if check.ok:
                break
            time.sleep(1)
        assert check.finding == "bee"
    finally:
        worker.terminate()
        worker.wait(timeout=60)
