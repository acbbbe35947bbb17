"""Progress of long work: a bar for a person at a terminal, messages for an orchestrator, silence for CI.

An orchestrator sets REGRAFT_MESSAGES to a file; each message is one JSON line appended to it.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")
VARIABLE = "REGRAFT_MESSAGES"
_drawing = threading.local()  # .bar: whether this thread draws one


def track(
    items: Iterable[Item],
    *,
    total: int | None,
    description: str,
    size: Callable[[Item], int] = lambda _: 1,
    unit: str = "",
    about: Callable[[Item], str] = lambda _: "",
) -> Iterator[Item]:
    """Yield `items` unchanged while showing how many of `total` are done, how fast, and how long the rest
    takes.

    An item counts for its `size`, in `unit`; a `total` of None is not known beforehand. about: what is told
    of the last item. Within another bar none is drawn.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[about]}"),
    )
    with (
        _alone() as alone,
        Progress(
            *columns, console=Console(stderr=True), disable=not (alone and _watched()), transient=True
        ) as bar,
    ):
        task, told, done = bar.add_task(description, total=total, about=""), 0.0, 0
        for item in items:
            yield item
            done += size(item)
            bar.update(task, completed=done, about=about(item))
            if time.monotonic() - told > 1 or done == total:
                told = time.monotonic()
                tell("progress", description=description, done=done, total=total)


class Speed(ProgressColumn):
    """How many a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}{self.unit}/s" if task.speed else "", style="progress.data.speed")


def tell(kind: str, **values: Any) -> None:
    """Append one message for the orchestrator, if there is one."""
    if target := os.environ.get(VARIABLE):
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, **values}) + "\n")


class Words(logging.Handler):
    """What is logged, as messages too: an orchestrator hears words, not a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        tell("log", level=record.levelno, logger=record.name, text=self.format(record))


@contextmanager
def _alone() -> Iterator[bool]:
    within = getattr(_drawing, "bar", False)
    _drawing.bar = True
    try:
        yield not within
    finally:
        _drawing.bar = within


def _watched() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI")
