"""A deployed run whose worker dies: the server notices, and another worker ends it without a person."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psutil
from prefect import get_client
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.chaos import attempts
from benchmarks.chaos.strikes import Strike

PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
NAME = "transfer/nightly"
PATIENCE = 900.0  # seconds from the strike to the end of the run; the silence that tells of it is 120
GRACE = 60.0  # seconds for a worker to end


class Told(NamedTuple):
    """What the server says of a run in the end."""

    state: str
    message: str
    begun: int


def install(root: Path, variables: Mapping[str, str]) -> None:
    """The deployment of the checkout `root`, without its schedule, and the automations."""
    for words in (
        (*PREFECT, "work-pool", "create", "cpu", "--type", "process", "--overwrite"),
        (*PREFECT, "deploy", "--name", "nightly"),
        (*PREFECT, "deployment", "schedule", "clear", NAME, "--accept-yes"),
        (sys.executable, "-m", "flows.cli", "automations"),
    ):
        done = subprocess.run(words, cwd=root, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout[-1000:]} {done.stderr[-1000:]}")


def struck(root: Path, strike: Strike, variables: Mapping[str, str]) -> Told:
    """How a run ends whose first worker is killed with all that it runs; a second one is begun."""
    install(root, variables)
    attempts.log(root).unlink(missing_ok=True)
    with temporary_settings({PREFECT_API_URL: variables["PREFECT_API_URL"]}):
        with _worker(root, variables) as first:
            run: Any = run_deployment(NAME, timeout=0)
            _await_turn(first, run.id, strike.stage)
            time.sleep(strike.after)
            kill(first)
        with _worker(root, variables):
            return _await_end(run.id)


def kill(worker: psutil.Process) -> None:
    """And all below it, before they see that they are alone."""
    processes: Sequence[psutil.Process] = [worker, *worker.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def _worker(root: Path, variables: Mapping[str, str]) -> Iterator[psutil.Process]:
    """Nothing of it is left afterwards."""
    words = (*PREFECT, "worker", "start", "--pool", "cpu", "--type", "process")
    own = {**variables, "PYTHONPATH": str(root)}  # the project's own code, whichever is installed
    with attempts.log(root).open("ab") as stream:
        process = subprocess.Popen(words, cwd=root.parent, env=own, stdout=stream, stderr=stream)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
        if process.poll() is None:
            kill(psutil.Process(process.pid))
        process.wait()


def _await_turn(worker: psutil.Process, run: UUID, stage: str) -> None:
    ends = time.monotonic() + attempts.PATIENCE
    while time.monotonic() < ends and not _final(_read(run)):
        if any(attempts.stage(one) == stage for one in attempts.stages(worker)):
            return
        time.sleep(0.2)


def _await_end(run: UUID) -> Told:
    ends = time.monotonic() + PATIENCE
    while (state := _read(run)) and time.monotonic() < ends and not _final(state):
        time.sleep(1)
    return state


def _final(told: Told) -> bool:
    """*Crashed* is not: it goes on."""
    return told.state in ("Completed", "Failed", "Cancelled")


def _read(run: UUID) -> Told:
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run)
    state = found.state
    return Told(state.name or "", state.message or "", found.run_count) if state else Told("", "", 0)
