"""A run on a server that answers: found by its key or made, told what there is to tell, ended.

The pipeline's run is given the gravest state of its stages' runs that were not superseded.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tasks.errors import RefusedError
from tasks.tracking import circumstances
from tasks.tracking.metrics import Metrics, valid_name
from tasks.tracking.server import asking, lock, short, sqlite_file
from tasks.tracking.spool import Event, Opening

GRAVEST = ("RUNNING", "FAILED", "KILLED", "FINISHED", "SCHEDULED")
SEEN, SUPERSEDED = "regraft.seen", "regraft.superseded"  # tags: seconds since 1970; a run's id
PARAMS = "params.yaml"  # of the pipeline's run
KIND = {"mlflow.experimentKind": "custom_model_development"}  # which of its pages MLflow shows
READS_ROWS = {"finetuning": "training", "evaluation": "evaluation"}  # stage -> what it uses the data set for


class Live:
    """A run on a server that answers. Any method raises TrackingError where it does so no more."""

    def __init__(
        self, client: MlflowClient, run_id: str, parent_id: str, *, reopened: bool, experiment: str = ""
    ) -> None:
        self._client, self._experiment = client, experiment
        self._metrics = Metrics(client, run_id, reopened=reopened)
        self._headline = Metrics(client, parent_id, reopened=True)
        self.id, self.parent_id = run_id, parent_id

    @property
    def uri(self) -> str:
        where: str = self._client.tracking_uri
        if not where.startswith("http"):
            return where
        return f"{where.rstrip('/')}/#/experiments/{self._experiment}/runs/{self.id}"

    def take(self, event: Event) -> None:
        with asking(self._client.tracking_uri):
            match event["kind"]:
                case "metrics":
                    self._take_metrics(event)
                case "file":
                    self._client.log_artifact(self.id, event["path"], event["folder"] or None)
                case "output":
                    self._client.set_tag(self.id, "regraft.output", event["digest"])
                case "tag":
                    self._client.set_tag(self.id, event["name"], event["value"])
                case "end":
                    self._end(event)

    def beat(self, sample: Sequence[Metric]) -> None:
        """Say to other machines that the stage still works, and what this one does. From any thread."""
        with asking(self._client.tracking_uri):
            seen = RunTag(SEEN, str(int(time.time())))
            self._client.log_batch(self.id, metrics=sample, tags=[seen])

    def unsent(self) -> list[Event]:
        """Metrics that were taken and not sent, as events."""
        return [
            {"kind": "metrics", "values": {one.key: one.value}, "step": one.step, "at": one.timestamp}
            for one in [*self._metrics.unsent(), *self._headline.unsent()]
        ]

    def _take_metrics(self, event: Event) -> None:
        values = event["values"]
        headline = {name: value for name, value in values.items() if name.startswith("test.")}
        self._headline.add(headline, 0, event["at"])
        self._metrics.add(values, event["step"], event["at"])

    def _end(self, event: Event) -> None:
        """Close the run, and give the pipeline's run the state that its stages are in."""
        self._metrics.flush()
        self._headline.flush()
        if event["status"] != "FINISHED":
            self._client.set_tag(self.id, "regraft.message", event["message"])
        self._client.set_terminated(self.id, status=event["status"], end_time=event["at"])
        with lock(self._client.tracking_uri, "runs"):
            experiment = self._client.get_run(self.id).info.experiment_id
            _sum_up(self._client, experiment, self.parent_id, event["message"])


def begin(client: MlflowClient, opening: Opening) -> Live:
    with asking(client.tracking_uri):
        with lock(client.tracking_uri, "runs"):
            experiment = experiment_id(client, opening.experiment)
            _bury(client, experiment)
            parent = _parent(client, experiment, opening)
            run_id, reopened = _child(client, experiment, parent, opening)
        if opening.rows:
            tag = InputTag("mlflow.data.context", READS_ROWS[opening.stage])
            for which in (run_id, parent):
                client.log_inputs(which, [DatasetInput(Dataset(**opening.rows), [tag])])
    return Live(client, run_id, parent, reopened=reopened, experiment=experiment)


def exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the run can be told more: another server does not know its id, and a person may delete it."""
    with asking(client.tracking_uri):
        try:
            return bool(client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise


def experiment_id(client: MlflowClient, name: str) -> str:
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            raise RefusedError(
                f"the MLflow experiment {name!r} was deleted: `mlflow experiments restore --experiment-id "
                f"{found.experiment_id}`, or choose another promotion.model"
            )
        return str(found.experiment_id)
    database = sqlite_file(client.tracking_uri)
    beside = str(database.parent / "mlartifacts") if database else None  # a server knows its own place
    return str(client.create_experiment(name, artifact_location=beside, tags=KIND))


def _parent(client: MlflowClient, experiment: str, opening: Opening) -> str:
    if found := find(client, experiment, {"regraft.key": opening.parent_key}):
        run_id, known = str(found[-1].info.run_id), found[-1].data.params
        client.update_run(run_id, status="RUNNING")
    else:
        tags = {"regraft.key": opening.parent_key, "regraft.stage": "pipeline", **opening.parent_tags}
        run_id, known = create(client, experiment, opening.parent_name, tags, began=opening.began), {}
    _complete(client, run_id, known, opening)
    return run_id


def _complete(client: MlflowClient, run_id: str, known: Mapping[str, str], opening: Opening) -> None:
    """Tell the pipeline's run what it lacks: a server may have gone away just after it was made."""
    params = opening.parent_params.items()
    send_params(client, run_id, {name: value for name, value in params if valid_name(name) not in known})
    if PARAMS not in {entry.path for entry in client.list_artifacts(run_id)}:
        client.log_text(run_id, opening.file, PARAMS)  # whole, whatever was cut above


def _child(client: MlflowClient, experiment: str, parent: str, opening: Opening) -> tuple[str, bool]:
    """Id of the stage's run below `parent`, and whether it was there before."""
    tags = {"regraft.key": opening.key, "mlflow.parentRunId": parent}
    living = {"regraft.process": opening.process, SEEN: str(int(time.time()))}
    found = find(client, experiment, tags)
    for run in found:
        if run.info.status == "FINISHED":
            for name, value in living.items():  # first, or another machine might take it for dead
                client.set_tag(run.info.run_id, name, value)
            client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id), True
    tags |= {"regraft.stage": opening.stage, **living, **opening.tags}
    run_id = create(client, experiment, opening.stage, tags, began=opening.began)
    send_params(client, run_id, opening.params)
    for run in found:
        _supersede(client, run, run_id)
    return run_id, False


def _bury(client: MlflowClient, experiment: str) -> None:
    """Say KILLED of every run whose process is gone, and of the pipeline's run that it was in."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if "regraft.process" not in run.data.tags or _alive(run):
            continue
        client.set_tag(run.info.run_id, "regraft.message", "its process ended without a word")
        client.set_terminated(run.info.run_id, status="KILLED")
        if parent := run.data.tags.get("mlflow.parentRunId"):  # a sweep has none
            _give_way(client, experiment, parent, run)
            _sum_up(client, experiment, parent, "a stage was killed")


def _give_way(client: MlflowClient, experiment: str, parent: str, run: Any) -> None:
    """To one of the same key that was begun when nobody knew yet what had become of `run`."""
    key = {"regraft.key": run.data.tags["regraft.key"], "mlflow.parentRunId": parent}
    for other in find(client, experiment, key):
        later = other.info.run_id != run.info.run_id and other.info.start_time >= run.info.start_time
        if later and SUPERSEDED not in other.data.tags:
            client.set_tag(run.info.run_id, SUPERSEDED, other.info.run_id)


def _alive(run: Any) -> bool:
    """Another machine's run that never gives a sign of life, as a sweep's, is left alone: nobody can tell."""
    heard = float(run.data.tags.get(SEEN, "inf"))
    return circumstances.alive(run.data.tags["regraft.process"], heard)


def _supersede(client: MlflowClient, run: Any, by: str) -> None:
    if run.info.status == "RUNNING":
        if "regraft.process" in run.data.tags and _alive(run):
            return  # the same stage of the same pipeline at the same time, in another workspace
        client.set_terminated(run.info.run_id, status="KILLED")
    client.set_tag(run.info.run_id, SUPERSEDED, by)


def create(
    client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str], *, began: int | None = None
) -> str:
    tags = {**tags, "mlflow.user": circumstances.user()}
    return str(client.create_run(experiment, began, dict(tags), name).info.run_id)


def _sum_up(client: MlflowClient, experiment: str, parent: str, message: str) -> None:
    """Give the pipeline's run the gravest state of its stages' runs that were not superseded."""
    children = find(client, experiment, {"mlflow.parentRunId": parent})
    states = [run.info.status for run in children if SUPERSEDED not in run.data.tags]
    status = min(states, key=GRAVEST.index)
    if status == "RUNNING":
        client.update_run(parent, status=status)
        return
    client.set_tag(parent, "regraft.message", message if status != "FINISHED" else "")
    client.set_terminated(parent, status=status)


def find(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[Any]:
    """Runs with these tags, newest first."""
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment], query, order_by=["attributes.start_time DESC"]))


def send_params(client: MlflowClient, run_id: str, values: Mapping[str, Any]) -> None:
    sent = [Param(valid_name(name), short(str(value))) for name, value in values.items()]
    for start in range(0, len(sent), 100):  # MLflow takes no more at once
        client.log_batch(run_id, params=sent[start : start + 100])
