"""Signs of life of a run while its stage works, so that other machines need not guess: every ten seconds the
time, and what this machine does.

MLflow's own monitor would wait for a server that does not answer before a stage may end.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread

from mlflow.entities import Metric
from mlflow.environment_variables import (
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING,
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL,
)
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

from tasks.errors import TrackingError
from tasks.tracking.circumstances import SILENCE

INTERVAL = 10.0  # seconds, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise
LONGEST = SILENCE / 10  # seconds: a few lost ones must not look like death
PATIENCE = 5.0  # seconds for a request that is under way when the stage ends
Beat = Callable[[Sequence[Metric]], None]


@contextmanager
def kept(beat: Beat) -> Iterator[None]:
    """Call `beat` with a sample, on a thread of its own, for as long as the body takes. Fails no body."""
    ended = Event()
    beating = Thread(target=_keep, args=(beat, ended), name="pulse", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join(PATIENCE)


def _keep(beat: Beat, ended: Event) -> None:
    interval = min(MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL, LONGEST)
    monitors, begun = _monitors(), time.monotonic()
    while not ended.wait(interval):
        with suppress(TrackingError, OSError):  # the next one makes up for it
            beat(_sample(monitors, int(time.monotonic() - begun)))


def _monitors() -> list[BaseMetricsMonitor]:
    """MLflow's, of processor, memory and, where nvidia-ml-py is installed, GPUs; none if switched off."""
    if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.is_set() and not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return []
    found: list[BaseMetricsMonitor] = [CPUMonitor()]
    with suppress(ImportError, RuntimeError):
        found.append(GPUMonitor())
    for monitor in found:  # a processor's load is that since the last look
        monitor.collect_metrics()
        monitor.clear_metrics()
    return found


def _sample(monitors: Sequence[BaseMetricsMonitor], step: int) -> list[Metric]:
    at, sample = int(time.time() * 1000), []
    for monitor in monitors:
        monitor.collect_metrics()
        values = monitor.aggregate_metrics().items()
        sample += [Metric(f"system/{name}", value, at, step) for name, value in values]
        monitor.clear_metrics()
    return sample
