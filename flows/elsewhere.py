"""Fine-tuning on another machine: the body of a stage that hands over, calls a Prefect deployment and waits.

DVC still decides here whether the stage runs, and keeps what comes back; only its body is done by whoever
works on the deployment's pool.
"""

import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import chdir, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from dvc.repo import Repo
from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.checkout import handover, workspace
from tasks import errors, progress
from tasks.artifacts import Sources, TrainedModel
from tasks.errors import InputError, RegraftError, TrainingError, WorkspaceError
from tasks.params import OperationsParams

STAGE = TrainedModel.stage
PAUSE = 2.0  # seconds between two looks at a run that is elsewhere
REVIVAL = 60.0  # seconds in which a crashed run is scheduled again, if it is
PATIENCE = 12 * 3600.0  # seconds in one state until a worker begins: others' trainings come first
KINDS: Mapping[str, type[RegraftError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RegraftError)
}  # a failed run's state bears the name of its error
log = logging.getLogger(__name__)


def needed(root: Path) -> list[str]:
    """The stages whose outputs fine-tuning reads, and that of which its MLflow run tells."""
    return sorted({Sources.stage, *handover.producers(root, STAGE)})


def fine_tune(root: Path, operations: OperationsParams) -> None:
    """Have `operations.finetuning` train on what lies in `root`; the model is there afterwards.

    Whatever ends this ends the other run too. Raises the error with which that one failed; InputError where
    something cannot travel; TrainingError where somebody cancelled it.
    """
    name, remote = operations.finetuning or "", operations.remote
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    order = {
        "run": run,
        "revision": workspace.committed(root),
        "params": (root / "params.yaml").read_text(encoding="utf-8"),
        "remote": remote,
    }
    with get_client(sync_client=True) as client:
        _demand(client, name)
        try:
            handover.give(root, run, needed(root), remote)
            state = _done(client, name, order)
            if not state.is_completed():
                _raise(name, state)
            handover.take(root, run, [STAGE], remote)
        finally:
            _forget(root, run, remote)
    _agree(root)
    progress.tell("summary", stage=STAGE, figures=TrainedModel.load(root).figures())


def _forget(root: Path, run: str, remote: str | None) -> None:
    """A remote that is gone by now costs nobody a training that came back, and hides no other error."""
    try:
        handover.forget(root, run, remote)
    except RegraftError as error:
        log.warning("%s/%s stays on the remote: %s", handover.FOLDER, run, error)


def _demand(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise InputError(
            f"{client.api_url} has no deployment {name}: `prefect deploy --name {name.partition('/')[2]}`, "
            "set PREFECT_API_URL to the server that has it, or operations.finetuning to null"
        ) from None


def _done(client: SyncPrefectClient, name: str, order: Mapping[str, Any]) -> State[Any]:
    called: Any = run_deployment(name, parameters=dict(order), flow_run_name=order["run"], timeout=0)
    log.info("%s: run %s, which may wait for a worker", name, order["run"])
    try:
        return _final(client, called.id, name)
    except BaseException:
        with suppress(HTTPError):  # Prefect's server ends it too, where ours was cancelled
            client.set_flow_run_state(called.id, Cancelling(message="the run that called it has ended"))
        raise


def _final(client: SyncPrefectClient, run: UUID, name: str) -> State[Any]:
    """A server that is away for a while loses nobody's training, and a run that crashed may go on with
    another worker, as `regraft automations` has it.

    Raises TrainingError where no worker takes it.
    """
    seen, since = "", time.monotonic()
    while True:
        try:
            state = client.read_flow_run(run).state
        except HTTPError as error:
            log.warning("%s: Prefect's server does not answer: %s; asking again", name, error)
            state = None
        if state and state.name != seen:
            seen, since = state.name or "", time.monotonic()
            log.info("%s: %s", name, seen)
        waited = time.monotonic() - since
        if state and state.is_final() and (not state.is_crashed() or waited > REVIVAL):
            return state
        if state and (state.is_scheduled() or state.is_pending()) and waited > PATIENCE:
            raise TrainingError(
                f"{name}: no worker took the run within {waited / 3600:.0f} h: `regraft doctor` tells which "
                "pool wants one"
            )
        time.sleep(PAUSE)


def _raise(name: str, state: State[Any]) -> NoReturn:
    if state.is_cancelled():
        raise TrainingError(f"{name} was cancelled: run again to go on from its last resume point")
    kind = KINDS.get(state.name or "", RegraftError)
    raise kind(state.message or f"{name} ended as {state.name} without a word: see its page in Prefect")


def _agree(root: Path) -> None:
    """Raise WorkspaceError where the entry that came back tells of other inputs than those that are here."""
    with chdir(root), Repo() as repo:
        if found := repo.status(targets=[STAGE]):
            raise WorkspaceError(
                f"what came back was made from something else than what is here: {found}; was it edited "
                "meanwhile? Run again"
            )
