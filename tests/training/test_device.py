"""A device is one training's at a time: held by real processes, freed by their end."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

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
def holder(tmp_path):
    """A process that has taken the first free one of the devices that it is told."""
    begun = []

    def begin(*known):
        words = [sys.executable, "-c", HOLD, str(tmp_path), *known]
        begun.append(subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True))
        assert begun[-1].stdout.readline()
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def test_the_first_free_device_is_taken_and_death_gives_it_back(holder, tmp_path):
    other = holder("0", "1")
    with device.leased(["0", "1"], 1, tmp_path) as places:
        assert places == (1,)
    other.kill()
    other.wait()
    with device.leased(["0", "1"], 2, tmp_path) as places:
        assert places == (0, 1)


def test_who_waits_for_several_holds_none_and_says_so(holder, tmp_path, monkeypatch, caplog):
    other, looks = holder("0"), []

    def pause(seconds):
        with device.leased(["1"], 1, tmp_path) as places:
            looks.append(places)
        if len(looks) == 2:
            other.kill()
            other.wait()

    monkeypatch.setattr(device.time, "sleep", pause)
    with caplog.at_level(logging.INFO), device.leased(["0", "1"], 2, tmp_path) as places:
        assert places == (0, 1)
    assert looks == [(0,), (0,)]
    assert caplog.messages == ["1 of 2 GPUs are free, 2 needed: waiting"]


def test_a_body_that_fails_gives_the_device_back(tmp_path):
    with pytest.raises(ZeroDivisionError), device.leased(["0"], 1, tmp_path):
        raise ZeroDivisionError
    with device.leased(["0"], 1, tmp_path) as places:
        assert places == (0,)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1"]),
        ("", ["0", "1"]),
        ("2,3", ["2", "3"]),
        ("GPU-5a, MIG-GPU-7/1/0 ,9", ["GPU-5a", "MIG-GPU-7-1-0"]),
    ],
)
def test_devices_have_one_name_whatever_a_process_sees(visible, expected):
    assert device.names(2, visible) == expected


def test_a_cpu_is_shared():
    with device.taken("cpu", 2) as one, device.taken("cpu", 1) as two:
        assert (one, two) == (("cpu", "cpu"), ("cpu",))


def test_accelerate_is_told_the_gpu_and_not_the_rank():
    about = processes._about(1, 2, "cuda:3")
    assert (about["RANK"], about["LOCAL_RANK"], about["WORLD_SIZE"]) == ("1", "3", "2")
    assert processes._about(1, 2, "cpu")["LOCAL_RANK"] == "1"
