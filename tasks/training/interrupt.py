"""Ctrl-C, or the end of a worker's shift, between two steps: what was learned is saved first."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def postponed() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Meanwhile the first signal waits until it is asked for; a second Ctrl-C acts at once. A second SIGTERM
    says nothing new: who ends a group of processes, and each of them too, sends several.

    Yields `obey(save)`: where a signal has come, it saves and lets the signal do what it would have done.
    Signals reach only the main thread: in any other nothing is postponed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda save: None
        return
    came: list[int] = []
    former = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}

    def note(number: int, _: FrameType | None) -> None:
        if not came:
            came.append(number)
            log.warning("stopping after this step, which is saved; Ctrl-C once more stops at once")
        elif number == signal.SIGINT:
            _restore(former)
            os.kill(os.getpid(), number)

    def obey(save: Callable[[], None]) -> None:
        if came:
            save()
            log.warning("saved: the same command goes on from here")
            _restore(former)
            os.kill(os.getpid(), came.pop())

    for number in former:
        signal.signal(number, note)
    try:
        yield obey
    finally:
        _restore(former)
    obey(lambda: None)  # came after the last step, which is saved


def _restore(former: Mapping[signal.Signals, Any]) -> None:
    for number, handler in former.items():
        signal.signal(number, handler)
