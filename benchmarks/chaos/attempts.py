"""A project's run, given as a command: begun, watched, ended."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

ENDS = (0, 3)  # whatever the gate says of a model that learned next to nothing
PATIENCE = 600.0  # seconds for an attempt or a stage's turn, after which the trial is lost
ORPHANS = 90.0  # seconds for what a killed flow leaves to see that and end
COMMAND = (sys.executable, "-m", "flows.cli", "run")  # the project's own code, whichever is installed


def begin(root: Path, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    with log(root).open("w", encoding="utf-8") as stream:
        return subprocess.Popen(COMMAND, cwd=root, env=variables, stdout=stream, stderr=stream)


def attempt(root: Path, variables: Mapping[str, str]) -> int:
    return ended(begin(root, variables))


def ended(flow: "subprocess.Popen[bytes]") -> int:
    """Its exit code; who takes too long is killed, which is a fault."""
    try:
        return flow.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        flow.kill()
        return flow.wait()


def await_words(flow: "subprocess.Popen[bytes]", root: Path, words: str) -> None:
    """Until the run has said `words`, or has ended."""
    ends = time.monotonic() + PATIENCE
    while flow.poll() is None and time.monotonic() < ends:
        if words in log(root).read_text(encoding="utf-8"):
            return
        time.sleep(0.1)


def stages(process: psutil.Process) -> Iterator[psutil.Process]:
    """The bodies of stages that it runs now."""
    with suppress(psutil.NoSuchProcess):
        yield from (one for one in process.children(recursive=True) if stage(one))


def stage(process: psutil.Process) -> str | None:
    """Which stage's body it is, if it is one."""
    with suppress(psutil.Error):
        words = " ".join(process.cmdline()).split()  # one that was forked has its title in one piece
        return words[-1] if words[-3:-1] == ["-m", "tasks"] else None
    return None


def log(root: Path) -> Path:
    return root.with_name(f"{root.name}.log")


def await_orphans(root: Path) -> None:
    """What still works in `root` would be told from a leftover by nothing."""
    ends = time.monotonic() + ORPHANS
    while time.monotonic() < ends and any(works_in(one, root) for one in psutil.process_iter()):
        time.sleep(0.5)


def works_in(process: psutil.Process, root: Path) -> bool:
    with suppress(psutil.Error, OSError):
        return Path(process.cwd()) == root
    return False
