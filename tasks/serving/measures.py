"""What Prometheus reads: requests, rows, batches and how long they take."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
BASE = "(base)"  # how rows without an adapter are counted; no adapter's name


class Measures:
    """Of one server."""

    def __init__(self) -> None:
        whole = self._registry = CollectorRegistry()
        self._requests = Counter("regraft_requests", "Answered requests", ["path", "status"], registry=whole)
        self._seconds = Histogram(
            "regraft_request_seconds", "Their time", ["path"], buckets=SECONDS, registry=whole
        )
        self._rows = Counter("regraft_rows", "Answered rows", ["adapter"], registry=whole)
        self._batches = Histogram("regraft_batch_rows", "Rows of a batch", buckets=SIZES, registry=whole)
        self._waiting = Gauge("regraft_waiting_rows", "Rows that wait for the model", registry=whole)
        self._resident = Gauge("regraft_resident_bytes", "Of adapters in memory", registry=whole)
        self._unfollowed = Counter("regraft_refresh_failures", "Looks at aliases that failed", registry=whole)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def row(self, adapter: str | None) -> None:
        self._rows.labels(adapter or BASE).inc()

    def batch(self, size: int) -> None:
        self._batches.observe(size)

    def unfollowed(self) -> None:
        self._unfollowed.inc()

    def page(self, *, waiting: int, resident: int) -> bytes:
        """In Prometheus' text format."""
        self._waiting.set(waiting)
        self._resident.set(resident)
        return generate_latest(self._registry)


class Measured:
    """Each request is counted under its route, never under what a client wrote."""

    def __init__(self, app: ASGIApp, told: Callable[[str, int, float], None]) -> None:
        self._app, self._told = app, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "(none)")
            self._told(path, status, time.monotonic() - begun)
