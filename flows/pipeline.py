"""The pipeline as a Prefect flow: dvc.yaml's stages in order, one visible task each."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import Task, flow, runtime
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed

from flows import elsewhere, journal, novelty
from flows.checkout import handover, places, workspace
from flows.checkout.stage import Leaf, Stage, in_order, reproduce
from flows.form import Form
from flows.team import automations
from tasks import environment, files
from tasks import params as parameters
from tasks.artifacts import Promotion, Sources
from tasks.errors import ArtifactError, RegraftError

NOTE = Path(".regraft") / "former_verdict"  # its digest
SHIFT = 12 * 3600.0  # seconds that a deployed run waits for another in the same checkout
log = logging.getLogger(__name__)
Way = Leaf | Literal["elsewhere"]  # on the deployment that operations.finetuning names


@dataclass(frozen=True)
class Policy:
    retries: int = 2
    delays: tuple[float, ...] = (10, 60)  # seconds before each retry
    hours: float = 2  # after which the stage is stopped


POLICIES: Mapping[str, Policy] = {
    "conversion": Policy(hours=6),
    "finetuning": Policy(retries=3, delays=(10,), hours=72),  # each retry goes on from the last resume point
}


@flow(name="transfer", description=__doc__)
def transfer(
    params: Form = None,
    overrides: tuple[str, ...] = (),
    leaf: Leaf = "subprocess",
    checkout: Path = Path(),
    until: Stage = "promotion",
    maximum_drift: float | None = None,
) -> str | State[str]:
    """Bring every stage up to date, or those `until` one of them; returns the directory that holds data/ and
    reports/, or *Held*.

    Args:
        params: All of params.yaml, for a workspace of its own that moves no alias. Without this and overrides
            the checkout runs as it stands.
        overrides: Such as finetuning.seed=2, in a workspace of its own too.
        leaf: Whether a stage has a process of its own.
        checkout: What is worked in.
        until: The last stage.
        maximum_drift: Where new rows differ by more than chance explains and this much, they are not even
            prepared and the run ends as *Held*.
    """
    environment.quiet()
    journal.keep_logs()
    checkout = checkout.resolve()
    if overrides:
        params = parameters.override(params or parameters.load(checkout / "params.yaml"), overrides)
    root = workspace.create(checkout, params) if params else checkout
    with turn(root):
        with places.current(root):
            if reason := _too_unlike(root, leaf, maximum_drift):
                return Completed(name="Held", message=reason)
            bring_up_to_date(root, leaf, until=until)
        if not environment.is_trial(root):
            _every_task(root, leaf, until, maximum_drift)
    return str(root)


def _every_task(checkout: Path, leaf: Leaf, until: Stage, maximum_drift: float | None) -> None:
    """One that fails keeps no other from being done; then the first error's kind is raised, with all."""
    faults: list[RegraftError] = []
    for name in parameters.load(checkout / "params.yaml").tasks:
        try:
            one_task(name, leaf, checkout, until, maximum_drift)
        except (RegraftError, OSError) as error:  # a stage that took too long is an OSError
            kind = type(error) if isinstance(error, RegraftError) else RegraftError
            faults.append(kind(f"task {name}: {error}"))
            log.error("%s", faults[-1])
    if faults:
        raise type(faults[0])("\n".join(map(str, faults)))


@flow(name="task", flow_run_name="{name}", description="One of the tasks of params.yaml, in its own place.")
def one_task(
    name: str, leaf: Leaf, checkout: Path, until: Stage, maximum_drift: float | None
) -> State[str] | None:
    place = places.of(checkout, name)
    with turn(place), places.current(place):
        if reason := _too_unlike(place, leaf, maximum_drift):
            log.warning("task %s is held: %s", name, reason)
            return Completed(name="Held", message=reason)
        bring_up_to_date(place, leaf, until=until)
    return None


def _too_unlike(root: Path, leaf: Leaf, maximum: float | None) -> str | None:
    """Rows that preparation has read are new no more: this asks before it does."""
    if maximum is None:
        return None
    stage_task(Sources.stage)(Sources.stage, root, leaf)
    if not novelty.unread(root):
        return None
    return novelty.too_unlike(Task(novelty.tell_drift, name="drift")(root), maximum)


def turn(root: Path) -> AbstractContextManager[None]:
    """Inside, no other flow works in `root`: a deployed one waits its turn, a person would rather be told.

    Raises WorkspaceError where another is still at work.
    """
    return workspace.alone(root, wait=SHIFT if runtime.deployment.id else workspace.PATIENCE)


def bring_up_to_date(root: Path, leaf: Leaf, *, until: Stage = "promotion") -> None:
    """A task for each stage that `until` needs, and for itself; to be called inside a flow, in its `turn`.

    But for a workspace's, a new verdict is an event of the server's, and the lock file is committed where
    params.yaml says so.
    """
    operations, ours = parameters.load(root / "params.yaml").operations, not environment.is_trial(root)
    with _new_verdict_told(root) if ours else nullcontext():
        for stage in in_order(root, until=until):
            away = stage == elsewhere.STAGE and operations.finetuning
            stage_task(stage)(stage, root, "elsewhere" if away else leaf)
    if until == Promotion.stage:
        journal.sum_up(root)
    if ours and operations.commit_lock:
        Task(handover.commit, name="commit")(root, operations.remote)


@contextmanager
def _new_verdict_told(root: Path) -> Iterator[None]:
    """Tells the server where the verdict is another one afterwards; which it was stays written down until
    then, so that the next run tells what a killed one could not."""
    note, verdict = root / NOTE, _verdict(root)
    if not note.exists():
        files.write_text(note, verdict.digest if verdict else "")
    yield
    if (verdict := _verdict(root)) and verdict.digest != note.read_text(encoding="utf-8"):
        automations.verdict(verdict)
    note.unlink()


def _verdict(root: Path) -> Promotion | None:
    with suppress(ArtifactError):
        return Promotion.load(root)
    return None


@flow(
    name="finetune",
    description="Fine-tuning for a run whose other stages are elsewhere; it is called by that.",
)
def finetune(
    run: str, revision: str, params: str, remote: str | None = None, checkout: Path = Path()
) -> State[Any] | None:
    """Take what the `run` hands over, train at its `revision` with its params.yaml, hand the model over.

    `checkout` is a clone of the same project; it is not edited. A failure's state bears the error's name.
    """
    environment.quiet()
    journal.keep_logs()
    checkout = checkout.resolve()
    try:
        place = workspace.borrow(checkout, revision, params)
        try:
            handover.take(place, run, elsewhere.needed(place), remote)
            stage_task(elsewhere.STAGE)(elsewhere.STAGE, place, "subprocess")
            handover.give(place, run, [elsewhere.STAGE], remote)
        finally:
            workspace.remove(checkout, place)
    except RegraftError as error:
        return Failed(name=type(error).__name__, message=str(error))
    return None


def stage_task(stage: str) -> Task[[str, Path, Way], State[None] | None]:
    """Brings a stage up to date, visibly: `stage_task(name)(name, root, leaf)`."""
    policy = POLICIES.get(stage, Policy())
    return Task(
        _bring_up_to_date,
        name=stage,
        retries=policy.retries,
        retry_delay_seconds=list(policy.delays),
        timeout_seconds=policy.hours * 3600,
        retry_condition_fn=_worth_another_try,
    )


def _bring_up_to_date(stage: str, root: Path, way: Way) -> State[None] | None:
    outcome = reproduce(stage, root, _away if way == "elsewhere" else way, journal.Keeper(stage, root))
    if outcome.ran:
        log.info("%s: done", stage)
        return None
    found = "restored from the cache" if outcome.restored else "unchanged"
    log.info("%s: %s", stage, found)
    return Completed(name="Skipped", message=f"DVC: {found}")


def _away(stage: str, root: Path) -> None:
    elsewhere.fine_tune(root, parameters.load(root / "params.yaml").operations)


def _worth_another_try(task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """The same input is refused the same way the second time."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, RegraftError) and error.lasting():
        return False
    log.warning("%s failed: %s; trying again if tries are left", task.name, error)
    return True
