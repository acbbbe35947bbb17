"""One MLflow run for a sweep, with the runs of its trials below it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.params import Params
from tasks.tracking.circumstances import this_process
from tasks.tracking.live import create, experiment_id, find, send_params
from tasks.tracking.runs import STOPPED, locate
from tasks.tracking.server import asking, connect, lock


class Sweep:
    """A run that is open."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self.id = client, run_id

    def metrics(self, values: Mapping[str, float]) -> None:
        with asking(self._client.tracking_uri):
            for name, value in values.items():
                self._client.log_metric(self.id, name, value)

    def file(self, path: Path) -> None:
        with asking(self._client.tracking_uri):
            self._client.log_artifact(self.id, str(path))


@contextmanager
def open_sweep(name: str, asked: Mapping[str, str], params: Params, root: Path) -> Iterator[Sweep]:
    """The run of the sweep `name`, FINISHED, FAILED or KILLED as the body ends; one of this name is opened
    again. asked: axis -> what is tried.

    Raises TrackingError before the body begins where MLflow does not answer.
    """
    client = connect(root)
    with asking(client.tracking_uri), lock(client.tracking_uri, "runs"):
        run = _begin(client, name, asked, params.promotion.model)
    status = "FAILED"
    try:
        yield Sweep(client, run)
        status = "FINISHED"
    except STOPPED:
        status = "KILLED"
        raise
    finally:
        with asking(client.tracking_uri):
            client.set_terminated(run, status=status)


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
    figures, so that trials are compared by metrics of the same name."""
    client = connect(root)
    fine_tuning = locate("finetuning", params, root)
    with asking(client.tracking_uri):
        pipeline = client.get_run(fine_tuning).data.tags["mlflow.parentRunId"]
        client.set_tag(pipeline, "mlflow.parentRunId", sweep)
        for name, value in figures.items():
            client.log_metric(pipeline, f"validation.{name}", value)
