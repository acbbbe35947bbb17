"""A deployment that is due every second, a real Prefect server and real workers: is every run done, once?"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from prefect import flow, get_client, runtime
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import RRule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.types.entrypoint import EntrypointType

from benchmarks import record
from tasks import environment

REPOSITORY = Path(__file__).parents[1]
POOL = "scheduled"
AHEAD = 20.0  # seconds until the first run is due
FORMAT = "%Y%m%dT%H%M%S"
STARTING = 300  # seconds for a server to answer
SETTLING = 15.0  # seconds, more than a worker takes between two looks
PATIENCE = 300.0  # seconds without a run that ends, after which the rest is lost


class Kept(NamedTuple):
    """Of `due` runs; `seconds` from the first that was due to the last that ended."""

    due: int
    workers: int
    lost: int
    doubled: int
    seconds: float


@flow
def mark(folder: Path) -> None:
    """Leave a file that says when this run was due."""
    due = runtime.flow_run.scheduled_start_time
    (folder / f"{due:{FORMAT}} {uuid4()}").touch()


def keep(folder: Path, *, runs: int, workers: int) -> Kept:
    """Let `runs` runs be due, a second apart, and count what `workers` workers made of them."""
    marks = folder / "marks"
    marks.mkdir(parents=True)
    with ExitStack() as running:
        variables = running.enter_context(_server(folder))
        first = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=AHEAD)
        running.enter_context(temporary_settings({PREFECT_API_URL: variables["PREFECT_API_URL"]}))
        _deploy(marks, first, runs)
        for number in range(workers):
            words = ("worker", "start", "--pool", POOL, "--name", f"worker {number}", "--limit", "1")
            running.enter_context(_prefect(folder / f"worker {number}.log", variables, *words))
        ended = _await(marks, runs)
    due = [first + timedelta(seconds=number) for number in range(runs)]
    lost, doubled = compare(due, [file.name for file in marks.iterdir()])
    return Kept(runs, workers, lost, doubled, ended - first.timestamp())


def compare(due: Sequence[datetime], marks: Sequence[str]) -> tuple[int, int]:
    """How many runs of those that were due left no mark, and how many marks there are beyond the first."""
    found = Counter(name.partition(" ")[0] for name in marks)
    wanted = {f"{at:{FORMAT}}" for at in due}
    return len(wanted - found.keys()), sum(found.values()) - len(wanted & found.keys())


def figures(kept: Kept) -> dict[str, float]:
    return {"scheduled_lost": kept.lost, "scheduled_doubled": kept.doubled}


def line(kept: Kept) -> dict[str, Any]:
    return {
        "contestant": f"{kept.workers} workers",
        "due": kept.due,
        "lost": kept.lost,
        "doubled": kept.doubled,
        "wall_s": kept.seconds,
    }


def _deploy(marks: Path, first: datetime, runs: int) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    dates = f"DTSTART:{first:{FORMAT}}\nRRULE:FREQ=SECONDLY;COUNT={runs}"
    made = mark.to_deployment(
        "each-second",
        schedule=RRule(dates, timezone="UTC"),
        parameters={"folder": str(marks)},
        work_pool_name=POOL,
        job_variables={"working_dir": str(REPOSITORY)},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(made, RunnerDeployment)  # a coroutine where an event loop runs
    made.apply()


def _await(marks: Path, runs: int) -> float:
    """When the last run that came ended."""
    known, since = 0, time.time()
    while known < runs and time.time() - since < PATIENCE:
        time.sleep(1)
        if (now := len(list(marks.iterdir()))) > known:
            known, since = now, time.time()
            record.say(f"{known} of {runs} runs done")
    time.sleep(SETTLING)  # a run that is done twice
    return since


@contextmanager
def _server(folder: Path) -> Iterator[Mapping[str, str]]:
    """A Prefect server of our own; the variables by which commands find it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    variables = {
        **os.environ,
        **environment.QUIET,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": address,
    }
    with _prefect(folder / "server.log", variables, "server", "start", "--port", str(port)):
        for _ in range(STARTING):
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                yield variables
                return
            time.sleep(1)
        raise RuntimeError(f"no Prefect server: {(folder / 'server.log').read_text()[-2000:]}")


@contextmanager
def _prefect(log: Path, variables: Mapping[str, str], *words: str) -> Iterator[None]:
    with log.open("w") as stream:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=stream, stderr=stream)
        try:
            yield
        finally:
            process.terminate()
            process.wait()
