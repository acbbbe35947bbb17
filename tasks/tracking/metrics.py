"""Metrics of a run, sent in batches; a run that is opened again is told only what it does not say yet."""

import re
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric

from tasks.tracking.server import asking

BUFFERED = 200  # metrics per request; one at a time costs 17 ms each on SQLite
PATIENCE = 5.0  # seconds after which metrics are sent all the same, so that a chart moves


class Metrics:
    def __init__(self, client: MlflowClient, run_id: str, *, reopened: bool) -> None:
        self._client, self._id, self._reopened = client, run_id, reopened
        self._said: dict[str, dict[int, float]] = {}
        self._buffer: list[Metric] = []
        self._sent = time.monotonic()

    def add(self, values: Mapping[str, float], step: int, at: int) -> None:
        """`at` is in milliseconds since 1970. Raises TrackingError where a batch is due and not taken."""
        self._buffer += [Metric(valid_name(name), float(v), at, step) for name, v in values.items()]
        if len(self._buffer) >= BUFFERED or time.monotonic() - self._sent > PATIENCE:
            self.flush()

    def flush(self) -> None:
        """What a server does not take stays in the buffer."""
        with asking(self._client.tracking_uri):
            self._learn({metric.key for metric in self._buffer})
            unknown = {(m.key, m.step, m.value): m for m in self._buffer if not self._known(m)}
            new = list(unknown.values())
            for start in range(0, len(new), 1000):  # MLflow takes no more at once
                self._client.log_batch(self._id, metrics=new[start : start + 1000])
        for metric in self._buffer:
            self._said.setdefault(metric.key, {})[metric.step] = metric.value
        self._buffer, self._sent = [], time.monotonic()

    def unsent(self) -> list[Metric]:
        return list(self._buffer)

    def _learn(self, names: set[str]) -> None:
        for name in sorted(names - self._said.keys()) if self._reopened else ():
            history = self._client.get_metric_history(self._id, name)
            self._said[name] = {entry.step: entry.value for entry in history}

    def _known(self, metric: Metric) -> bool:
        return bool(self._said.get(metric.key, {}).get(metric.step) == metric.value)


def valid_name(name: str) -> str:
    return re.sub(r"[^\w.\- /]", "_", name)[:250]  # MLflow takes no others
