"""One MLflow run per pipeline run and one child per stage, found again by the digest of what goes into them.

A run is bound to its id from the start and written through MlflowClient alone: MLflow's active run belongs to
a thread, and a stage may run in any.
"""

import getpass
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from tasks import files, params
from tasks.artifacts import MANIFEST, EncodedDataset, Sources
from tasks.errors import TrackingError
from tasks.params import Params
from tasks.tracking import timings
from tasks.tracking.server import asking, connect, lock, short, sqlite_file

# The stages whose outputs determine a stage's own; a law of dvc.yaml, tested against it. Ancestors further up
# are covered by the digests.
UPSTREAM: Mapping[str, tuple[str, ...]] = {
    "preparation": ("sources",),
    "vocabulary": ("sources", "preparation"),
    "conversion": ("sources", "preparation", "vocabulary"),
    "encoding": ("preparation", "vocabulary"),
    "finetuning": ("vocabulary", "conversion", "encoding"),
    "evaluation": ("preparation", "conversion", "encoding", "finetuning"),
    "promotion": ("preparation", "conversion", "encoding", "finetuning", "evaluation"),
}
READS_ROWS = {"finetuning": "training", "evaluation": "evaluation"}  # stage -> what it uses the data set for
PACKAGES = ("datasets", "dvc", "mlflow", "pandas", "prefect", "torch", "transformers")

BUFFERED = 200  # metrics per request; one at a time costs 17 ms each on SQLite
PATIENCE = 5.0  # seconds after which metrics are sent all the same, so that a chart moves
GRAVEST = ("RUNNING", "FAILED", "KILLED", "FINISHED", "SCHEDULED")
STOPPED = (KeyboardInterrupt, SystemExit, GeneratorExit)  # somebody's wish, not a fault


class Run:
    """A stage's MLflow run: a `tasks.stages.Track`, with an id."""

    def __init__(self, client: MlflowClient, run_id: str, parent_id: str, *, reopened: bool) -> None:
        self._client = client
        self._metrics = _Metrics(client, run_id, reopened=reopened)
        self._headline = _Metrics(client, parent_id, reopened=True)
        self.id, self.parent_id = run_id, parent_id

    @property
    def uri(self) -> str:
        """The run's page, or the store that holds it."""
        where: str = self._client.tracking_uri
        if not where.startswith("http"):
            return where
        with asking(where):
            experiment = self._client.get_run(self.id).info.experiment_id
        return f"{where.rstrip('/')}/#/experiments/{experiment}/runs/{self.id}"

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Buffer `values`; those named test.* also stand on the pipeline's run, which is where runs are
        compared."""
        self._metrics.add(values, step)
        if headline := {name: value for name, value in values.items() if name.startswith("test.")}:
            self._headline.add(headline, 0)

    def file(self, path: Path, folder: str = "") -> None:
        with asking(self._client.tracking_uri):
            self._client.log_artifact(self.id, str(path), folder or None)

    def output(self, digest: str) -> None:
        """Say which artifact the stage made."""
        with asking(self._client.tracking_uri):
            self._client.set_tag(self.id, "regraft.output", digest)

    def flush(self) -> None:
        self._metrics.flush()
        self._headline.flush()


@contextmanager
def open_run(stage: str, params: Params, root: Path) -> Iterator[Run]:
    """The stage's run below the pipeline's, FINISHED, FAILED or KILLED as the body ends.

    A finished run of the same key is opened again; one that a killed process left RUNNING becomes KILLED and
    is superseded by a new one. Raises TrackingError before the body begins where MLflow does not answer.
    """
    client, begun = connect(root), time.monotonic()
    with asking(client.tracking_uri):
        run = _begin(client, stage, params, root)
    try:
        yield run
        run.metrics(_resources(begun))
        run.flush()
    except BaseException as error:
        with suppress(TrackingError):  # the body's own error is the one to be told
            _end(client, run, "KILLED" if isinstance(error, STOPPED) else "FAILED", short(_told(error)))
        raise
    _end(client, run, "FINISHED")


def locate(stage: str, params: Params, root: Path) -> str:
    """Id of the finished run that made `stage`'s present output, in whichever pipeline run.

    Where the output came from a cache and this server never saw it made, a run is written that says so.
    """
    client = connect(root)
    with asking(client.tracking_uri):
        experiment = experiment_id(client, params.promotion.model)
        found = find(client, experiment, {"regraft.key": child_key(stage, params, root)})
    for run in found:
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
    with open_run(stage, params, root) as opened, asking(client.tracking_uri):
        client.set_tag(opened.id, "regraft.cached", "true")
    return opened.id


def table(root: Path, experiment: str, last: int) -> list[dict[str, Any]]:
    """The last pipeline runs, newest first: name, start, state, parameters and test.* figures under one name
    each."""
    client = connect(root)
    with asking(client.tracking_uri):
        if (found := client.get_experiment_by_name(experiment)) is None:
            return []
        entries = find(client, found.experiment_id, {"regraft.stage": "pipeline"})
    return [_row(run) for run in entries[:last]]


def parent_key(params: Params, root: Path) -> str:
    """All that determines a pipeline run; the same whether DVC or Prefect runs it."""
    return files.digest_json({"params": params.model_dump(mode="json"), "sources": Sources.load(root).digest})


def child_key(stage: str, params: Params, root: Path) -> str:
    section = getattr(params, stage).model_dump(mode="json")
    digests = {name: digest for name in UPSTREAM[stage] if (digest := _manifest_digest(root, name))}
    return files.digest_json({"stage": stage, "params": section, "upstream": digests})


def _row(run: Any) -> dict[str, Any]:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(sep=" ", timespec="minutes")
    head = {"run": run.info.run_name, "started": started, "state": run.info.status.lower()}
    figures = {name: value for name, value in run.data.metrics.items() if name.startswith("test.")}
    return {**head, **run.data.params, **dict(sorted(figures.items()))}


def user() -> str:
    with suppress(KeyError, OSError):  # a container's user may have no name
        return getpass.getuser()
    return str(os.getuid())


class _Metrics:
    """Sends metrics in batches; into a run opened again only what it does not say yet."""

    def __init__(self, client: MlflowClient, run_id: str, *, reopened: bool) -> None:
        self._client, self._id, self._reopened = client, run_id, reopened
        self._said: dict[str, dict[int, float]] = {}
        self._buffer: list[Metric] = []
        self._sent = time.monotonic()

    def add(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._buffer += [Metric(_metric_name(name), float(v), now, step) for name, v in values.items()]
        if len(self._buffer) >= BUFFERED or time.monotonic() - self._sent > PATIENCE:
            self.flush()

    def flush(self) -> None:
        new = [metric for metric in self._buffer if not self._known(metric)]
        with asking(self._client.tracking_uri):
            for start in range(0, len(new), 1000):  # MLflow takes no more at once
                self._client.log_batch(self._id, metrics=new[start : start + 1000])
        self._buffer, self._sent = [], time.monotonic()

    def _known(self, metric: Metric) -> bool:
        if self._reopened and metric.key not in self._said:
            with asking(self._client.tracking_uri):
                history = self._client.get_metric_history(self._id, metric.key)
            self._said[metric.key] = {entry.step: entry.value for entry in history}
        said = self._said.setdefault(metric.key, {})
        known = bool(said.get(metric.step) == metric.value)
        said[metric.step] = metric.value
        return known


def _begin(client: MlflowClient, stage: str, params: Params, root: Path) -> Run:
    with lock(client.tracking_uri, "runs"):
        experiment = experiment_id(client, params.promotion.model)
        _bury(client, experiment)
        parent = _parent(client, experiment, params, root)
        run_id, reopened = _child(client, experiment, parent, stage, params, root)
    if purpose := READS_ROWS.get(stage):
        _log_rows(client, run_id, root, purpose)
    return Run(client, run_id, parent, reopened=reopened)


def experiment_id(client: MlflowClient, name: str) -> str:
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {name!r} was deleted: `mlflow experiments restore --experiment-id "
                f"{found.experiment_id}`, or choose another promotion.model"
            )
        return str(found.experiment_id)
    database = sqlite_file(client.tracking_uri)
    beside = str(database.parent / "mlartifacts") if database else None  # a server knows its own place
    return str(client.create_experiment(name, artifact_location=beside))


def _parent(client: MlflowClient, experiment: str, params: Params, root: Path) -> str:
    key = parent_key(params, root)
    if found := find(client, experiment, {"regraft.key": key}):
        client.update_run(found[-1].info.run_id, status="RUNNING")
        return str(found[-1].info.run_id)
    name = f"{'+'.join(phase.name for phase in params.finetuning.phases)} seed {params.finetuning.seed}"
    tags = {"regraft.key": key, "regraft.stage": "pipeline", **_circumstances(root)}
    run_id = create(client, experiment, name, tags)
    _log_params(client, run_id, params)
    return run_id


def _child(
    client: MlflowClient, experiment: str, parent: str, stage: str, params: Params, root: Path
) -> tuple[str, bool]:
    """Id of the stage's run below `parent`, and whether it was there before."""
    tags = {"regraft.key": child_key(stage, params, root), "mlflow.parentRunId": parent}
    found = find(client, experiment, tags)
    for run in found:
        if run.info.status == "FINISHED":
            client.update_run(run.info.run_id, status="RUNNING")
            client.set_tag(run.info.run_id, "regraft.process", this_process())
            return str(run.info.run_id), True
    tags |= {"regraft.stage": stage, "regraft.process": this_process(), **_circumstances(root)}
    tags |= {"mlflow.source.name": f"python -m tasks {stage}", "mlflow.source.type": "LOCAL"}
    if dvc := os.environ.get("DVC_STAGE"):
        tags["dvc.stage"] = dvc
    run_id = create(client, experiment, stage, tags)
    _log_section(client, run_id, stage, params)
    for run in found:
        _supersede(client, run, run_id)
    return run_id, False


def _bury(client: MlflowClient, experiment: str) -> None:
    """Say KILLED of every run of this machine whose process is gone, and of the pipeline's run it was in."""
    for run in find(client, experiment, {"regraft.host": platform.node()}):
        process = run.data.tags.get("regraft.process")
        if run.info.status == "RUNNING" and process and not _alive(process):
            client.set_tag(run.info.run_id, "regraft.message", "its process ended without a word")
            client.set_terminated(run.info.run_id, status="KILLED")
            if parent := run.data.tags.get("mlflow.parentRunId"):  # a sweep has none
                _sum_up(client, experiment, parent, "a stage was killed")


def _supersede(client: MlflowClient, run: Any, by: str) -> None:
    if run.info.status == "RUNNING":
        if _alive(run.data.tags.get("regraft.process", "")):
            return  # the same stage of the same pipeline at the same time, in another workspace
        client.set_terminated(run.info.run_id, status="KILLED")
    client.set_tag(run.info.run_id, "regraft.superseded", by)


def create(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    tags = {**tags, "mlflow.user": user()}
    return str(client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)


def _end(client: MlflowClient, run: Run, status: str, message: str = "") -> None:
    """Close the run, and give the pipeline's run the state that its stages are in."""
    with asking(client.tracking_uri):
        if status != "FINISHED":
            run.flush()
            client.set_tag(run.id, "regraft.message", message)
        client.set_terminated(run.id, status=status)
        with lock(client.tracking_uri, "runs"):
            experiment = client.get_run(run.id).info.experiment_id
            _sum_up(client, experiment, run.parent_id, message)


def _sum_up(client: MlflowClient, experiment: str, parent: str, message: str) -> None:
    """Give the pipeline's run the gravest state of its stages' runs that were not superseded."""
    children = find(client, experiment, {"mlflow.parentRunId": parent})
    states = [run.info.status for run in children if "regraft.superseded" not in run.data.tags]
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


def _log_params(client: MlflowClient, run_id: str, values: Params) -> None:
    send_params(client, run_id, params.flatten(values))
    client.log_text(run_id, params.dump(values), "params.yaml")  # whole, whatever was cut above


def _log_section(client: MlflowClient, run_id: str, stage: str, values: Params) -> None:
    prefix = f"{stage}."
    found = {k.removeprefix(prefix): v for k, v in params.flatten(values).items() if k.startswith(prefix)}
    send_params(client, run_id, found)


def send_params(client: MlflowClient, run_id: str, values: Mapping[str, Any]) -> None:
    sent = [Param(_metric_name(name), short(str(value))) for name, value in values.items()]
    for start in range(0, len(sent), 100):  # MLflow takes no more at once
        client.log_batch(run_id, params=sent[start : start + 100])


def _log_rows(client: MlflowClient, run_id: str, root: Path, purpose: str) -> None:
    if not _manifest_digest(root, EncodedDataset.stage):
        return  # the body will say so itself
    rows = EncodedDataset.load(root)
    found = Dataset(
        name=EncodedDataset.stage,
        digest=rows.digest.removeprefix("sha256:")[:36],  # MLflow holds no more
        source_type="local",
        source=json.dumps({"uri": str(rows.path.resolve())}),
        profile=json.dumps({"rows": dict(rows.rows), "tokens": dict(rows.tokens)}),
    )
    client.log_inputs(run_id, [DatasetInput(found, [InputTag("mlflow.data.context", purpose)])])


def _circumstances(root: Path) -> dict[str, str]:
    tags = {"regraft.host": platform.node(), **_versions()}
    if commit := _commit(root):
        tags["mlflow.source.git.commit"] = commit
    return tags


@cache
def _versions() -> Mapping[str, str]:
    tags = {"version.python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            tags[f"version.{package}"] = metadata.version(package)
    return tags


def _commit(root: Path) -> str:
    with suppress(FileNotFoundError):  # no git on this machine
        command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _resources(begun: float) -> dict[str, float]:
    found = timings.since(begun)
    return {"system.seconds": found.seconds, "system.peak_memory_bytes": float(found.peak_memory_bytes)}


def _manifest_digest(root: Path, stage: str) -> str | None:
    path = root / "data" / stage / MANIFEST
    return str(json.loads(path.read_text(encoding="utf-8"))["digest"]) if path.exists() else None


def this_process() -> str:
    return f"{platform.node()}|{os.getpid()}|{psutil.Process().create_time():.0f}"


def _alive(process: str) -> bool:
    """Whether `this_process()` of another time still runs; of another machine nobody can tell: no."""
    host, _, rest = process.partition("|")
    pid, _, born = rest.partition("|")
    if host != platform.node() or not psutil.pid_exists(int(pid)):
        return False
    with suppress(psutil.NoSuchProcess):
        return f"{psutil.Process(int(pid)).create_time():.0f}" == born
    return False


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w.\- /]", "_", name)[:250]  # MLflow takes no others


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
