"""Killed, interrupted, out of room: nothing half-written, and the same result afterwards."""

import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from tasks.artifacts import TrainedModel
from tasks.stages import STAGES

pytestmark = pytest.mark.e2e


def _until(condition, *, process, patience=120.0):
    ends = time.monotonic() + patience
    while not condition():
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.02)


def _drafts(root):
    return [
        path for top in ("data", "reports") for path in (root / top).glob(".*") if path.name != ".gitignore"
    ]


def test_kill_9_in_the_middle_of_fine_tuning_changes_nothing(project, command):
    command("dvc", "repro", "finetuning")
    undisturbed = TrainedModel.load(project)
    chance = random.Random(5)
    process = subprocess.Popen(
        ["python", "-m", "tasks", "finetuning"], cwd=project, stderr=subprocess.DEVNULL
    )
    kills = 0
    for _ in range(3):
        wanted = _points(project) + chance.randint(1, 4)
        _until(lambda wanted=wanted: _points(project) >= wanted, process=process)
        process.kill()
        process.wait()
        kills += 1
        process = subprocess.Popen(
            ["python", "-m", "tasks", "finetuning"], cwd=project, stderr=subprocess.DEVNULL
        )
    assert process.wait() == 0
    assert kills == 3
    assert TrainedModel.load(project) == undisturbed
    assert _drafts(project) == []


SEEN: dict[str, int] = {}


def _points(root):
    """How many resume points have been written so far, told by the file's change of identity."""
    for point in (root / ".regraft" / "resume").glob("*/point.safetensors"):
        try:
            SEEN.setdefault(f"{root}:{point.stat().st_ino}:{point.stat().st_mtime_ns}", 1)
        except FileNotFoundError:
            continue
    return sum(key.startswith(f"{root}:") for key in SEEN)


def test_a_killed_dvc_leaves_no_orphan(project, command):
    command("dvc", "repro", "encoding")
    process = subprocess.Popen(["dvc", "repro", "finetuning"], cwd=project, stdout=subprocess.DEVNULL)
    _until(lambda: list((project / ".regraft" / "resume").glob("*/point.safetensors")), process=process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    command("dvc", "repro", "finetuning")
    assert _drafts(project) == []


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "sources"])
def test_ctrl_c_leaves_nothing_half_written(project_evaluated, stage):
    """Interrupted at some moment of its work, a stage leaves its former output or none, and runs again."""
    before = _digest(project_evaluated, stage)
    process = subprocess.Popen(
        ["python", "-m", "tasks", stage], cwd=project_evaluated, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "REGRAFT_MESSAGES": str(project_evaluated.parent / f"{stage}.messages")},
    )  # fmt: skip
    messages = project_evaluated.parent / f"{stage}.messages"
    _until(lambda: messages.exists() and '"run"' in messages.read_text(), process=process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; run it again" in said
    assert "Traceback" not in said
    assert _drafts(project_evaluated) == []
    subprocess.run(["python", "-m", "tasks", stage], cwd=project_evaluated, check=True)
    assert _digest(project_evaluated, stage) == before


def _digest(root, stage):
    return STAGES[stage].load(root).digest


@pytest.fixture(scope="module")
def evaluated(seed_project, tmp_path_factory):
    """A project that has run once, shared by the tests of this module that only run stages again."""
    import shutil
    import sys
    from pathlib import Path

    root = tmp_path_factory.mktemp("evaluated") / "a project"
    shutil.copytree(seed_project, root)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for stage in STAGES:
        subprocess.run(
            ["python", "-m", "tasks", stage],
            cwd=root,
            check=True,
            env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
        )
    return root


@pytest.fixture
def project_evaluated(evaluated, variables):
    return evaluated
