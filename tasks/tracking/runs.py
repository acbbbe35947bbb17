"""One MLflow run per pipeline run and one child per stage, found again by the digest of what goes into them.

A run is bound to its id from the start and written through MlflowClient alone: MLflow's active run belongs to
a thread, and a stage may run in any.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric

from tasks import files, params
from tasks.artifacts import EncodedDataset, Sources
from tasks.errors import RefusedError, TrackingError
from tasks.params import Params
from tasks.tracking import circumstances, pulse, spool, timings
from tasks.tracking.circumstances import manifest_digest
from tasks.tracking.live import READS_ROWS, Live, begin, exists, experiment_id, find
from tasks.tracking.server import asking, connect, short
from tasks.tracking.spool import Event, Opening, Spool

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
FINISHED: Event = {"kind": "end", "status": "FINISHED", "message": ""}
LOST: Event = {"kind": "end", "status": "KILLED", "message": "its process ended without a word"}
PIPELINE = {"mlflow.source.name": "dvc.yaml", "mlflow.source.type": "LOCAL"}
STOPPED = (KeyboardInterrupt, SystemExit, GeneratorExit)  # somebody's wish, not a fault
log = getLogger(__name__)


class Run:
    """A stage's run: a `tasks.stages.Track`, with an id once a server has answered.

    What MLflow does not take is kept in a spool, and with it all that follows: nothing told here fails.
    """

    def __init__(self, root: Path, opening: Opening) -> None:
        self._root, self._opening = root, opening
        self._live: Live | None = None
        self._spool: Spool | None = None
        try:
            client = connect(root)
            send_waiting(client, root)
            self._live = begin(client, opening)
            self._opening = replace(opening, run_id=self._live.id, parent_id=self._live.parent_id)
        except TrackingError as error:
            self._degrade(error)

    @property
    def id(self) -> str:
        return self._opening.run_id

    @property
    def parent_id(self) -> str:
        return self._opening.parent_id

    @property
    def uri(self) -> str:
        """The run's page, or the store that holds it, or where it waits to be sent."""
        return self._live.uri if self._live else str(self._spool and self._spool.path)

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Those named test.* also stand on the pipeline's run, which is where runs are compared."""
        self._tell({"kind": "metrics", "values": dict(values), "step": step})

    def file(self, path: Path, folder: str = "") -> None:
        self._tell({"kind": "file", "path": str(path), "folder": folder})

    def output(self, digest: str) -> None:
        """Say which artifact the stage made."""
        self._tell({"kind": "output", "digest": digest})

    def beat(self, sample: Sequence[Metric]) -> None:
        """Say that the stage still works, and what the machine does; a sample is not worth a spool."""
        if self._spool is not None:
            self._spool.beat()
        elif self._live is not None:
            self._live.beat(sample)

    def end(self, status: str, message: str = "") -> None:
        self._tell({"kind": "end", "status": status, "message": message})

    def _tell(self, event: Event) -> None:
        event = {**event, "at": _now()}
        if self._spool is None and self._live is not None:
            try:
                return self._live.take(event)
            except TrackingError as error:
                self._degrade(error)
                self._keep(*self._live.unsent())
        return self._keep(event)

    def _keep(self, *events: Event) -> None:
        assert self._spool is not None
        for event in events:
            self._spool.add(event)

    def _degrade(self, error: TrackingError) -> None:
        self._spool = Spool.begin(self._root, self._opening)
        log.warning("tracking degraded: %s. The run waits in %s", error, self._spool.path)


@contextmanager
def open_run(stage: str, params: Params, root: Path) -> Iterator[Run]:
    """The stage's run below the pipeline's, FINISHED, FAILED or KILLED as the body ends.

    A finished run of the same key is opened again; one that a killed process left RUNNING becomes KILLED and
    is superseded by a new one. Where MLflow does not answer, all of it waits in .regraft/spool.
    """
    begun = time.monotonic()
    run = Run(root, introduction(stage, params, root))
    try:
        with pulse.kept(run.beat):
            yield run
        run.metrics(_resources(begun))
    except BaseException as error:
        run.end("KILLED" if isinstance(error, STOPPED) else "FAILED", short(_told(error)))
        raise
    run.end("FINISHED")


def send_waiting(client: MlflowClient, root: Path) -> None:
    """Send what earlier runs have left in the spool, in order and once.

    A run that a server refuses or that is damaged is set aside, and the others go on; without a server all go
    on waiting.
    """
    if not spool.waiting(root):
        return
    with spool.locked(root):
        for found in spool.waiting(root):
            try:
                if found.complete:
                    _send(client, found)
            except (RefusedError, OSError, ValueError) as error:
                log.warning("%s is set aside: %s", found.path, error)
                found.set_aside(short(str(error.__cause__ or error)))
            except TrackingError as error:
                log.warning("%s still waits: %s", found.path, error)
                return


def _begun(client: MlflowClient, found: Spool) -> Opening:
    """Its run's id is kept before anything is sent, so that a second attempt goes on in the same run."""
    opening = found.opening()
    if opening.run_id and exists(client, opening.run_id):
        return opening
    begun = begin(client, opening)
    opening = replace(opening, run_id=begun.id, parent_id=begun.parent_id)
    found.name(opening)
    return opening


def _send(client: MlflowClient, found: Spool) -> None:
    opening = _begun(client, found)
    live, last = Live(client, opening.run_id, opening.parent_id, reopened=True), LOST
    for event in found.events():
        last = event if event["kind"] == "end" else last
        if event["kind"] != "end":
            live.take(event)
    live.take({"kind": "tag", "name": "regraft.tracking", "value": "degraded"})
    live.take({"at": _now(), **last})
    found.remove()
    log.info("%s: what was told while MLflow did not answer has been sent", opening.stage)


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
    live = begin(client, introduction(stage, params, root))
    for event in ({"kind": "tag", "name": "regraft.cached", "value": "true"}, FINISHED):
        live.take({**event, "at": _now()})
    return live.id


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
    return files.digest_json({"params": params.contents(), "sources": Sources.load(root).digest})


def child_key(stage: str, params: Params, root: Path) -> str:
    section = getattr(params, stage).model_dump(mode="json")
    digests = {name: digest for name in UPSTREAM[stage] if (digest := manifest_digest(root, name))}
    return files.digest_json({"stage": stage, "params": section, "upstream": digests})


def _row(run: Any) -> dict[str, Any]:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(sep=" ", timespec="minutes")
    head = {"run": run.info.run_name, "started": started, "state": run.info.status.lower()}
    figures = {name: value for name, value in run.data.metrics.items() if name.startswith("test.")}
    return {**head, **run.data.params, **dict(sorted(figures.items()))}


def introduction(stage: str, values: Params, root: Path) -> Opening:
    """All that a stage's run says from the start. Raises nothing that a server could be the reason of."""
    tags = circumstances.tags(root)
    source = {"mlflow.source.name": f"python -m tasks {stage}", "mlflow.source.type": "LOCAL"}
    if dvc := os.environ.get("DVC_STAGE"):
        source["dvc.stage"] = dvc
    flat, digest = params.flatten(values), files.digest_json(values.contents())
    return Opening(
        stage=stage,
        experiment=values.promotion.model,
        key=child_key(stage, values, root),
        params={k.removeprefix(f"{stage}."): v for k, v in flat.items() if k.startswith(f"{stage}.")},
        tags={**tags, **source},
        parent_key=parent_key(values, root),
        parent_name=_name(values),
        parent_params=flat,
        parent_tags={**tags, **PIPELINE, "regraft.params": digest, **_headings(values, root)},
        file=params.dump(values),
        rows=_rows(root) if stage in READS_ROWS else None,
        began=_now(),
        process=circumstances.this_process(),
    )


def _name(values: Params) -> str:
    phases = "+".join(phase.name for phase in values.finetuning.phases)
    return f"{phases} seed {values.finetuning.seed}"


def _headings(values: Params, root: Path) -> dict[str, str]:
    """What runs are told apart by in MLflow's table."""
    adapter = values.finetuning.adapter
    return {
        "regraft.method": adapter.kind if adapter else f"{len(values.finetuning.phases)} phases",
        "regraft.checkpoint": values.sources.checkpoint.path,
        "regraft.sources": Sources.load(root).digest,
    }


def _rows(root: Path) -> dict[str, str] | None:
    if not manifest_digest(root, EncodedDataset.stage):
        return None  # the body will say so itself
    rows = EncodedDataset.load(root)
    return {
        "name": EncodedDataset.stage,
        "digest": rows.digest.removeprefix("sha256:")[:36],  # MLflow holds no more
        "source_type": "local",
        "source": json.dumps({"uri": str(rows.path.resolve())}),
        "profile": json.dumps({"rows": dict(rows.rows), "tokens": dict(rows.tokens)}),
    }


def _resources(begun: float) -> dict[str, float]:
    """CPU time is of this process and of those it has waited for."""
    found, times = timings.since(begun), psutil.Process().cpu_times()
    return {
        "system.seconds": found.seconds,
        "system.cpu_seconds": times.user + times.system + times.children_user + times.children_system,
        "system.peak_memory_bytes": float(found.peak_memory_bytes),
    }


def _now() -> int:
    return int(time.time() * 1000)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
