"""A device is one training's at a time: held by real processes, freed by their end."""

import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tasks.errors import TrainingError
from tasks.training import device, processes

REPOSITORY = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from tasks.training import device
with device.leased(sys.argv[2:], 1, Path(sys.argv[1])) as places:
    print(places[0], flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "devices"


@pytest.fixture
def holder(home):
    """A process that has taken the first free one of the devices that it is told."""
    begun = []

    def begin(*known):
        words = [sys.executable, "-c", HOLD, str(home), *known]
        begun.append(subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True))
        assert begun[-1].stdout.readline()
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def test_the_first_free_device_is_taken_and_death_gives_it_back(holder, home):
    other = holder("0", "1")
    with device.leased(["0", "1"], 1, home) as places:
        assert places == (1,)
    other.kill()
    other.wait()
    with device.leased(["0", "1"], 2, home) as places:
        assert places == (0, 1)


def test_who_waits_for_several_holds_none_and_says_so(holder, home, monkeypatch, caplog):
    other, looks = holder("0"), []

    def pause(seconds):
        with device.leased(["1"], 1, home) as places:
            looks.append(places)
        if len(looks) == 2:
            other.kill()
            other.wait()

    monkeypatch.setattr(device.time, "sleep", pause)
    with caplog.at_level(logging.INFO), device.leased(["0", "1"], 2, home) as places:
        assert places == (0, 1)
    assert looks == [(0,), (0,)]
    assert caplog.messages == ["1 of 2 GPUs are free, 2 needed: waiting"]


def test_a_body_that_fails_gives_the_device_back(home):
    with pytest.raises(ZeroDivisionError), device.leased(["0"], 1, home):
        raise ZeroDivisionError
    with device.leased(["0"], 1, home) as places:
        assert places == (0,)


@pytest.mark.parametrize(
    ("uuids", "visible", "expected"),
    [
        (["5a", "7c"], None, ["GPU-5a", "GPU-7c"]),
        (["7c"], "1", ["GPU-7c"]),
        (["7c"], "GPU-7c", ["GPU-7c"]),
        ([None, None], None, ["0", "1"]),
        ([None, None], "", ["0", "1"]),
        ([None, None], "2,3", ["2", "3"]),
        ([None, None], "GPU-5a, MIG-GPU-7/1/0 ,9", ["GPU-5a", "MIG-GPU-7-1-0"]),
    ],
)
def test_devices_have_one_name_whatever_a_process_sees(uuids, visible, expected):
    assert device.names(uuids, visible) == expected


def test_who_is_done_in_minutes_does_not_wait_for_days(holder, home, monkeypatch, caplog):
    holder("0")
    monkeypatch.setattr(device, "PAUSE", 0)
    with device.leased(["0"], 1, home, patience=0.1) as places:
        assert places == (0,)
    assert caplog.messages[-1] == "no GPU was free within 0.1 s: going on beside another"


def test_locks_are_open_to_every_user_and_nobody_removes_anothers(home):
    former = os.umask(0o077)
    try:
        with device.leased(["0"], 1, home):
            assert stat.S_IMODE(home.stat().st_mode) == 0o1777
            assert {stat.S_IMODE(lock.stat().st_mode) for lock in home.iterdir()} == {0o666}
    finally:
        os.umask(former)


@pytest.mark.parametrize("trap", ["symlink", "closed"])
def test_a_directory_that_somebody_prepared_otherwise_is_refused(home, tmp_path, trap):
    if trap == "symlink":
        (tmp_path / "theirs").mkdir(mode=0o777)
        home.symlink_to(tmp_path / "theirs")
    else:
        home.mkdir(mode=0o755)
    with pytest.raises(TrainingError, match="every user may lock"), device.leased(["0"], 1, home):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_users_process_sees_the_lease():
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder) / "devices"
        with device.leased(["0"], 1, home), pytest.raises(BlockingIOError):
            _lock_as_nobody(home / "0.lock")
        _lock_as_nobody(home / "0.lock")


def _lock_as_nobody(path):
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", code, str(path)], user=65534, group=65534, extra_groups=[],
        env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "BlockingIOError" in done.stderr:
        raise BlockingIOError
    assert done.returncode == 0, done.stderr


def test_a_cpu_is_shared():
    with device.taken("cpu", 2) as one, device.taken("cpu", 1) as two:
        assert (one, two) == (("cpu", "cpu"), ("cpu",))


def test_accelerate_is_told_the_gpu_and_not_the_rank():
    about = processes._about(1, 2, "cuda:3")
    assert (about["RANK"], about["LOCAL_RANK"], about["WORLD_SIZE"]) == ("1", "3", "2")
    assert processes._about(1, 2, "cpu")["LOCAL_RANK"] == "1"
