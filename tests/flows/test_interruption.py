"""Killed, interrupted, out of room: nothing half-written, and the same result afterwards."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.checkout.stage import reproduce
from tasks.artifacts import TrainedModel
from tasks.stages import STAGES

pytestmark = pytest.mark.e2e
REPOSITORY = Path(__file__).parents[2]


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


def test_kill_9_in_the_middle_of_fine_tuning_changes_nothing(reproduced):
    project, undisturbed = reproduced, TrainedModel.load(reproduced)
    shutil.rmtree(project / ".regraft" / "resume")
    chance = random.Random(5)
    process = subprocess.Popen(
        ["python", "-m", "tasks", "finetuning"], cwd=project, stderr=subprocess.PIPE, text=True
    )
    for _ in range(3):
        wanted = _points(project) + chance.randint(1, 4)
        _until(lambda wanted=wanted: _points(project) >= wanted, process=process)
        process.kill()
        process.communicate()
        process = subprocess.Popen(
            ["python", "-m", "tasks", "finetuning"], cwd=project, stderr=subprocess.PIPE, text=True
        )
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "going on from phase" in said, "it began anew, which would hide a resume that does not work"
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


def test_a_killed_dvc_leaves_no_orphan(reproduced, command):
    project = reproduced
    shutil.rmtree(project / ".regraft" / "resume")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("seed: 1\n  device", "seed: 3\n  device"))
    process = subprocess.Popen(["dvc", "repro", "finetuning"], cwd=project, stdout=subprocess.DEVNULL)
    _until(lambda: list((project / ".regraft" / "resume").glob("*/point.safetensors")), process=process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    command("dvc", "repro", "finetuning")
    assert _drafts(project) == []


@pytest.mark.parametrize("torn", ["", '{"write": {"/half'])
def test_a_lock_of_dvc_that_was_torn_by_kill_9_stops_no_later_run(shared, command, torn):
    lock = shared / ".dvc" / "tmp" / "rwlock"
    lock.write_text(torn)
    reproduce("vocabulary", shared, "subprocess", lambda message: None)
    assert json.loads(lock.read_text()).keys() <= {"read", "write"}
    command("dvc", "repro", "vocabulary", cwd=shared)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "sources"])
def test_ctrl_c_leaves_nothing_half_written(shared, stage):
    """Interrupted at some moment of its work, a stage leaves its former output or none, and runs again."""
    before = _digest(shared, stage)
    process = subprocess.Popen(
        ["python", "-m", "tasks", stage], cwd=shared, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "REGRAFT_MESSAGES": str(shared.parent / f"{stage}.messages")},
    )  # fmt: skip
    messages = shared.parent / f"{stage}.messages"
    _until(lambda: messages.exists() and '"run"' in messages.read_text(), process=process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; run it again" in said
    assert "Traceback" not in said
    assert _drafts(shared) == []
    subprocess.run(["python", "-m", "tasks", stage], cwd=shared, check=True)
    assert _digest(shared, stage) == before


@pytest.fixture(scope="module")
def copied(seed_reproduced, tmp_path_factory):
    root = tmp_path_factory.mktemp("copied") / "a project"
    shutil.copytree(seed_reproduced, root, symlinks=True)
    shutil.rmtree(root / ".regraft" / "resume")
    return root


@pytest.fixture
def shared(copied, variables):
    """One copy for all tests of this module that only run stages again."""
    return copied


def _digest(root, stage):
    return STAGES[stage].load(root).digest


SLOW = """
import os, signal, sys, time
from pathlib import Path

def saved(number, frame):
    Path("saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, saved)
Path("began").write_text(str(os.getpid()))
time.sleep(600)
"""


IMPATIENT = """
from pathlib import Path
from prefect import flow
from flows import pipeline

pipeline.POLICIES = {"slow": pipeline.Policy(retries=0, hours=10 / 3600)}

@flow
def one_stage():
    pipeline.stage_task("slow")("slow", Path.cwd(), "subprocess")

one_stage()
"""


def test_a_stage_that_takes_too_long_is_ended_as_a_cancelled_one_is(
    tmp_path, command, prefect_server, monkeypatch
):
    """It may save what it has learned; nothing of it goes on."""
    root = tmp_path / "a project"
    root.mkdir()
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        command(*words)
    (root / "slow.py").write_text(SLOW)
    (root / "dvc.yaml").write_text("stages: {slow: {cmd: python slow.py}}\n")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    said = command(sys.executable, "-c", IMPATIENT, code=1).stderr
    assert "Task run exceeded timeout of 10.0 second(s)" in said
    assert (root / "began").exists()
    assert (root / "saved").exists()
    process = int((root / "began").read_text())
    assert not psutil.pid_exists(process)
