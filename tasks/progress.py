"""Progress of long work: a bar for a person at a terminal, messages for an orchestrator, silence for CI.

An orchestrator sets REGRAFT_MESSAGES to a file; each message is one JSON line appended to it.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
VARIABLE = "REGRAFT_MESSAGES"


def track(items: Iterable[Item], *, total: int, description: str) -> Iterator[Item]:
    """Yield `items` unchanged while showing how many of `total` are done and how long the rest will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not _watched(), transient=True) as bar:
        task, told = bar.add_task(description, total=total), 0.0
        for done, item in enumerate(items, start=1):
            yield item
            bar.update(task, advance=1)
            if time.monotonic() - told > 1 or done == total:
                told = time.monotonic()
                tell("progress", description=description, done=done, total=total)


def tell(kind: str, **values: Any) -> None:
    """Append one message for the orchestrator, if there is one."""
    if target := os.environ.get(VARIABLE):
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, **values}) + "\n")


def _watched() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI")
