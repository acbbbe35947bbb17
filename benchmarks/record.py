"""What every benchmark shares: where it ran, fresh processes, peak memory, and the file of results."""

import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tasks import files

Result = TypeVar("Result")

RESULTS = Path(__file__).parent / "results"
MEGABYTE = 2**20
INTERVAL = 0.25  # seconds between two looks at memory; asking for a gigabyte's costs about 10 ms
THREADS = ("POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def write(
    target: Path,
    figures: Mapping[str, float],
    contestants: Sequence[Mapping[str, Any]],
    *,
    libraries: Sequence[str],
    **further: Any,
) -> Path:
    """Put the JSON file `target` in place, whole; returns its path."""
    found = {
        "figures": dict(figures),
        "contestants": list(contestants),
        "versions": versions(libraries),
        "machine": machine(),
        **further,
    }
    files.write_text(target, json.dumps(found, indent=2, allow_nan=False) + "\n")
    return target


def targets(folder: Path, name: str, *, quick: bool) -> list[Path]:
    """The files of results to write: figures to try out never take the place of those to quote."""
    full = folder / f"{name}.json"
    if not quick:
        return [full]
    is_free = not full.exists() or json.loads(full.read_text(encoding="utf-8"))["quick"]
    return [folder / f"{name}-quick.json", *([full] if is_free else [])]


def versions(libraries: Sequence[str]) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}


def machine() -> dict[str, Any]:
    """What figures depend on besides the code; the load says whether others were at work too."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def alone(function: Callable[..., Result], *arguments: Any, threads: int | None = None) -> Result:
    """`function` in a fresh process, whose memory nobody else has touched, with `threads` threads in every
    library that asks (None: as many as it likes)."""
    return watched(function, *arguments, threads=threads)[0]


def watched(
    function: Callable[..., Result], *arguments: Any, threads: int | None = None
) -> tuple[Result, float]:
    """As `alone`, and the peak of memory in MB of that process and all below it."""
    with _environment(threads), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        number = pool.submit(os.getpid).result()
        with Peak(number) as peak:
            found = pool.submit(function, *arguments).result()
    return found, peak.megabytes


@contextmanager
def spread(workers: int) -> Iterator[ProcessPoolExecutor]:
    """`workers` fresh processes side by side, each with one thread in every library that asks."""
    with _environment(1), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool


@contextmanager
def _environment(threads: int | None) -> Iterator[None]:
    """Libraries read these once, when a process imports them."""
    former = {name: os.environ.get(name) for name in THREADS}
    if threads is not None:
        os.environ |= dict.fromkeys(THREADS, str(threads))
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Peak:
    """The most memory that a process and its children held together, looked at every INTERVAL.

    Shared pages are counted once (PSS, where the system tells it, else USS). Pages of mapped files are in it
    too, though the system may take those back.
    """

    def __init__(self, number: int) -> None:
        self.megabytes = 0.0
        self._top = psutil.Process(number)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(INTERVAL):
            processes = [self._top, *self._top.children(recursive=True)]
            self.megabytes = max(self.megabytes, sum(map(_held, processes)) / MEGABYTE)


def _held(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.Error:  # it ended meanwhile
        return 0
    return int(getattr(memory, "pss", memory.uss))


def medians(
    contestants: Mapping[str, Callable[[], Any]], repetitions: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each contestant (median) and what it returned last; they take turns, so that a slow minute
    of the machine strikes all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    returned = {}
    for number in range(repetitions):
        for name, contestant in contestants.items():
            say(f"{name}, {number + 1} of {repetitions}")
            start = time.perf_counter()
            returned[name] = contestant()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}, returned


def say(text: str) -> None:
    """What is being done, beside the table that is the output."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text, numbers to four digits."""
    header = list(rows[0])
    cells = [header, *([_cell(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
