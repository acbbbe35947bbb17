"""The whole stage on tables of growing size: rows a second, of every step too, and the peak of memory.

Steps are timed by wrapping the functions that the stage calls; the stage itself knows nothing of it.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import corpus, handling
from benchmarks.record import say, watched
from benchmarks.splitting import source
from tasks.params import PreparationParams
from tasks.stages import preparation
from tasks.text import decide, dedup, deliver, findings, gather, ledger, report
from tasks.text.reading import sources

Seconds = defaultdict[str, float]  # of each step

WORKERS = 2
STEPS = {  # step -> the functions that do it
    "gather": ((gather, "gather"),),
    "decide": ((decide, "decide"),),
    "measure": ((dedup, "measured_pairs"),),
    "write": ((deliver, "deliver"),),
    "report": ((findings, "facts"), (report, "render")),
    "remember": ((ledger, "write"),),
}


def curve(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """One line for each size: rows, seconds, rows a second, peak memory in MB, and seconds of every step."""
    return [_measured(size) for size in sizes]


def _measured(rows: int) -> dict[str, Any]:
    say(f"{rows:,} rows through the stage")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.csv"
        corpus.save(corpus.made(rows), path)
        seconds, peak = watched(_prepare, path)
    return {
        "rows": rows,
        "seconds": seconds["whole"],
        "rows_per_second": rows / seconds["whole"],
        "peak_rss_mb": peak,
        "steps": _steps(seconds),
    }


def _steps(seconds: Seconds) -> dict[str, float]:
    """Seconds of each step without those of the steps inside it. Workers clean and sign while the parent
    reads, so that the two seconds add up to more than `gather` took."""
    return {
        "read": seconds["read"],
        "clean and sign, two workers together": seconds["handle"],
        "gather (both at once)": seconds["gather"],
        "join bands and measure": seconds["measure"],
        "decide": seconds["decide"] - seconds["measure"],
        "write": seconds["write"],
        "report": seconds["report"],
        "remember": seconds["remember"],
    }


def _prepare(path: Path) -> Seconds:
    into = path.parent / "prepared"
    into.mkdir()
    with _timed() as seconds:
        start = time.perf_counter()
        preparation.prepare(
            path,
            source(path),
            PreparationParams.model_validate({"engine": "process", "workers": WORKERS}),
            into=into,
            remembered=path.parent / "ledger.parquet",
        )
        seconds["whole"] = time.perf_counter() - start
    return seconds


@contextmanager
def _timed() -> Iterator[Seconds]:
    seconds = Seconds(float)
    with ExitStack() as stack:
        for step, functions in STEPS.items():
            for module, name in functions:
                timed = _watched(getattr(module, name), step, seconds)
                stack.enter_context(patch.object(module, name, timed))
        stack.enter_context(patch.object(sources, "read", _reading(sources.read, seconds)))
        stack.enter_context(patch.object(gather, "handle", handling.handle))
        stack.enter_context(patch.object(gather, "_joined", _collecting(gather._joined, seconds)))
        yield seconds


def _watched(function: Callable[..., Any], step: str, seconds: Seconds) -> Callable[..., Any]:
    @wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[step] += time.perf_counter() - start

    return timed


def _reading(read: Callable[..., Iterator[Any]], seconds: Seconds) -> Callable[..., Iterator[Any]]:
    """A generator's time is that between being asked and answering."""

    def timed(*arguments: Any, **named: Any) -> Iterator[Any]:
        following = _watched(read(*arguments, **named).__next__, "read", seconds)
        while True:
            try:
                found = following()
            except StopIteration:
                return
            yield found

    return timed


def _collecting(joined: Callable[..., Any], seconds: Seconds) -> Callable[..., Any]:
    """All shards are there when they are joined, and their folder with them."""

    def collected(worked: Any, written: Any, into: Path) -> Any:
        taken = into.glob(f"*{handling.SUFFIX}")
        seconds["handle"] = sum(float(file.read_text(encoding="utf-8")) for file in taken)
        return joined(worked, written, into)

    return collected
