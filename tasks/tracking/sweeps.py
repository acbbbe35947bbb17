"""One MLflow run for a sweep, with the runs of its trials below it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from logging import getLogger
from pathlib import Path
from typing import Any

from tasks.errors import TrackingError
from tasks.params import Params
from tasks.tracking.circumstances import this_process
from tasks.tracking.live import create, experiment_id, find, send_params
from tasks.tracking.runs import STOPPED, locate
from tasks.tracking.server import asking, connect, lock

log = getLogger(__name__)


class Sweep:
    """A run that is open; without a client and an id where MLflow did not answer."""

    def __init__(self, client: Any = None, run_id: str = "") -> None:
        self._client, self.id = client, run_id

    def metrics(self, values: Mapping[str, float]) -> None:
        with self._asking():
            for name, value in values.items() if self.id else ():
                self._client.log_metric(self.id, name, value)

    def file(self, path: Path) -> None:
        with self._asking():
            if self.id:
                self._client.log_artifact(self.id, str(path))

    def end(self, status: str) -> None:
        with self._asking():
            if self.id:
                self._client.set_terminated(self.id, status=status)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with _degrading(), asking(self._client.tracking_uri) if self.id else nullcontext():
            yield


@contextmanager
def _degrading() -> Iterator[None]:
    """What MLflow does not take is left out, and costs no trial: a second sweep alike tells it."""
    try:
        yield
    except TrackingError as error:
        log.warning(
            "tracking degraded: %s. Give the same command again later: it puts the trials below the "
            "sweep, and takes them from DVC's cache",
            error,
        )


@contextmanager
def open_sweep(name: str, asked: Mapping[str, str], params: Params, root: Path) -> Iterator[Sweep]:
    """The run of the sweep `name`, FINISHED, FAILED or KILLED as the body ends; one of this name is opened
    again. asked: axis -> what is tried. Where MLflow does not answer, a sweep that tells nothing.
    """
    sweep, status = Sweep(), "FAILED"
    with _degrading():
        client = connect(root)
        with asking(client.tracking_uri), lock(client.tracking_uri, "runs"):
            sweep = Sweep(client, _begin(client, name, asked, params.promotion.model))
    try:
        yield sweep
        status = "FINISHED"
    except STOPPED:
        status = "KILLED"
        raise
    finally:
        sweep.end(status)


def _begin(client: Any, name: str, asked: Mapping[str, str], model: str) -> str:
    experiment = experiment_id(client, model)
    if found := find(client, experiment, {"regraft.sweep": name, "regraft.stage": "sweep"}):
        run = str(found[0].info.run_id)
        client.update_run(run, status="RUNNING")
    else:
        run = create(client, experiment, f"sweep {name}", {"regraft.sweep": name, "regraft.stage": "sweep"})
        send_params(client, run, asked)
    host, *_ = (process := this_process()).split("|")
    for key, value in {"regraft.host": host, "regraft.process": process}.items():  # to be found if killed
        client.set_tag(run, key, value)
    return run


def adopt(sweep: str, figures: Mapping[str, float], params: Params, root: Path) -> None:
    """Put the pipeline's run whose fine-tuning made the present output below `sweep`, with its validation
    figures, so that trials are compared by metrics of the same name. Nothing where `sweep` has no id."""
    with _degrading():
        if sweep:
            _adopt(sweep, figures, params, root)


def _adopt(sweep: str, figures: Mapping[str, float], params: Params, root: Path) -> None:
    client = connect(root)
    fine_tuning = locate("finetuning", params, root)
    with asking(client.tracking_uri):
        pipeline = client.get_run(fine_tuning).data.tags["mlflow.parentRunId"]
        client.set_tag(pipeline, "mlflow.parentRunId", sweep)
        for name, value in figures.items():
            client.log_metric(pipeline, f"validation.{name}", value)
