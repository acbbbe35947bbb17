"""Rows of many requests are answered together: whatever waits when the model is free makes the next batch.

No request waits for others to come: while a batch is computed the next one gathers by itself.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

Answers = Callable[[Sequence[Any]], Sequence[Any]]


class Busy(Exception):
    """As many rows wait as may."""


class Batcher:
    """answer: rows -> an answer a row, or the exception that stands for it. rows: of a batch, at most.
    waiting: rows that may wait, beside those that are computed. seen: told the size of each batch."""

    def __init__(
        self, answer: Answers, *, rows: int, waiting: int, seen: Callable[[int], None] = lambda size: None
    ) -> None:
        self._answer, self._rows, self._most, self._seen = answer, rows, waiting, seen
        self._queue: deque[tuple[Any, Future[Any]]] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._worker = threading.Thread(target=self._work, name="batches", daemon=True)
        self._worker.start()

    def __len__(self) -> int:
        """Rows that wait."""
        return len(self._queue)

    def submit(self, rows: Sequence[Any]) -> list[Future[Any]]:
        """All of them or none: raises Busy where they would be too many, and once it is closed."""
        with self._changed:
            if self._closed or len(self._queue) + len(rows) > self._most:
                raise Busy
            asked = [(row, Future[Any]()) for row in rows]
            self._queue.extend(asked)
            self._changed.notify()
        return [future for _, future in asked]

    def close(self) -> None:
        """Take no more; what waits is still answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while taken := self._next():
            batch = [(row, future) for row, future in taken if future.set_running_or_notify_cancel()]
            if batch:
                self._settle(batch)

    def _next(self) -> list[tuple[Any, Future[Any]]]:
        """The first of those that wait; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return [self._queue.popleft() for _ in range(min(self._rows, len(self._queue)))]

    def _settle(self, batch: Sequence[tuple[Any, Future[Any]]]) -> None:
        self._seen(len(batch))
        try:
            found = self._answer([row for row, _ in batch])
        except Exception as error:  # noqa: BLE001 - whoever asked is told, and the next batch comes
            found = [error] * len(batch)
        for (_, future), one in zip(batch, found, strict=True):
            if isinstance(one, Exception):
                future.set_exception(one)
            else:
                future.set_result(one)
