"""A process of a sweep: it ends with the one that started it, and stops between two trials or in one."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.__main__ import die_with_caller
from tasks.errors import RegraftError

STOPPING, WORKING = threading.Event(), threading.Event()


def get_ready(jobs: int) -> None:
    """Ctrl-C reaches this process through the one that started it, as SIGTERM."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, _terminated)
    die_with_caller(always=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dvc").setLevel(logging.WARNING)
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))


@contextmanager
def stoppable() -> Iterator[None]:
    """A trial works inside.

    Raises RegraftError where this process is told to stop: the pool would not survive a SystemExit.
    """
    if STOPPING.is_set():  # handed out before the pool was told
        raise RegraftError("stopped")
    WORKING.set()
    try:
        yield
    except SystemExit:
        raise RegraftError("stopped") from None
    finally:
        WORKING.clear()


def _terminated(number: int, frame: FrameType | None) -> None:
    STOPPING.set()
    if WORKING.is_set():  # else the pool's own word ends this process
        sys.exit(128 + number)
