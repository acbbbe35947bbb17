"""Rows of many requests are answered together: what waits when the model is free makes the next batch.

No request waits for others to come: while a batch is computed the next one gathers by itself. Who has waited
longest is in it, and of the others those that are like it, so that a short answer waits for no long one.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any

Answers = Callable[[Sequence[Any]], Sequence[Any]]


class Busy(Exception):
    """As many rows wait as may."""


class Batcher:
    """answer: rows -> an answer a row, or the exception that stands for it. rows: of a batch, at most.
    waiting: rows that may wait, beside those that are computed. alike: equal for rows that may share a batch.
    seen: told the size of each batch."""

    def __init__(
        self,
        answer: Answers,
        *,
        rows: int,
        waiting: int,
        alike: Callable[[Any], Hashable] = lambda row: None,
        seen: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._answer, self._rows, self._most, self._alike, self._seen = answer, rows, waiting, alike, seen
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
        """Of those that wait the first, and whoever is like it, in their order; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return []
            kin = self._alike(self._queue[0][0])
            taken = list(islice((one for one in self._queue if self._alike(one[0]) == kin), self._rows))
            for one in taken:
                self._queue.remove(one)
            return taken

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
