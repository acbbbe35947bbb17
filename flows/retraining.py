"""Retraining as a Prefect flow: look for new data often, tell how unlike it is, train where there is any."""

import logging
from contextlib import chdir
from pathlib import Path

from dvc.repo import Repo
from prefect import Task, flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import attempts, journal, novelty
from flows.checkout.stage import Leaf
from flows.pipeline import bring_up_to_date, stage_task, turn
from tasks import environment
from tasks import params as parameters
from tasks.artifacts import PreparedText, Sources
from tasks.errors import RegraftError

log = logging.getLogger(__name__)


@flow(name="retrain", description=__doc__)
def retrain(
    maximum_drift: float | None = None,
    leaf: Leaf = "subprocess",
    checkout: Path = Path(),
    again: bool = False,
) -> State[str]:
    """Bring the text source up to date; where it is what the last run was made from, do nothing and end as
    *Skipped*. Otherwise tell how unlike the new rows are, and bring every stage up to date.

    A table that DVC imported (`dvc import`, `dvc import-url`) is fetched from where it comes from.

    Args:
        maximum_drift: Where new rows differ by more than chance explains and this much, the run ends as
            *Held*; `transfer` without such a limit trains on them all the same.
        leaf: Whether a stage has a process of its own.
        checkout: What is worked in.
        again: Begin also what has failed, and would fail alike on the same data, params and code; that is
            *Held* otherwise.
    """
    environment.quiet()
    journal.keep_logs()
    root = checkout.resolve()
    with turn(root):
        return _retrain(root, maximum_drift, leaf, again=again)


def _retrain(root: Path, maximum_drift: float | None, leaf: Leaf, *, again: bool) -> State[str]:
    Task(fetch, name="fetch", retries=2, retry_delay_seconds=[10, 60])(root)
    stage_task(Sources.stage)(Sources.stage, root, leaf)
    if not (news := arrived(root)):
        return Completed(name="Skipped", message="nothing new: the last run was made from this very data")
    log.info("%s", news)
    if not again and (reason := attempts.given_up(root)):
        return attempts.held(root, reason)
    with attempts.counted(root):
        drift = Task(novelty.tell_drift, name="drift")(root)
        if reason := novelty.too_unlike(drift, maximum_drift):
            return attempts.held(root, reason)
        bring_up_to_date(root, leaf)
    return Completed(name="Retrained", message=f"{news}. {drift.headline if drift else ''}".strip())


def fetch(root: Path) -> bool:
    """Bring a table that DVC keeps up to date with its origin; returns whether DVC keeps it.

    What was imported is updated, what is only tracked is pulled where it is missing.
    Raises RegraftError where its origin does not answer.
    """
    source = root / parameters.load(root / "params.yaml").sources.text.path
    files = (Path(f"{place}.dvc") for place in (source, *source.parents) if place.is_relative_to(root))
    if (file := next((file for file in files if file.is_file()), None)) is None:
        return False
    name = str(file.relative_to(root))
    try:
        with chdir(root), Repo() as repo:
            if any(stage.is_import for stage in repo.stage.collect(name)):
                repo.update([name])
            elif not source.exists():
                repo.pull([name])
    except Exception as error:  # of DVC, or of whatever storage library it asks
        raise RegraftError(
            f"{name} cannot be brought up to date: {type(error).__name__}: {error}; `dvc update {name}` says "
            "more, and `regraft doctor` asks DVC's remotes"
        ) from error
    return True


def arrived(root: Path) -> str | None:
    """What the last finished run was not made from, as a sentence; None where there is nothing.

    dvc.lock tells: what preparation has read, and that every later stage has read what the one before it
    made, the last one too.
    """
    with chdir(root), Repo() as repo:
        stages = [stage for stage in repo.index.stages if getattr(stage, "name", None)]
        made = {str(out): out.hash_info for stage in stages for out in stage.outs}
        read = {(stage.name, str(dep)): dep for stage in stages for dep in stage.deps}
        listing = read[PreparedText.stage, novelty.LISTING]
        if not listing.hash_info:
            return "nothing has been trained yet"
        if listing.changed_checksum():
            return "the text source has changed"
        late = [
            stage for (stage, path), dep in read.items() if made.get(path, dep.hash_info) != dep.hash_info
        ]
    return f"the last run did not finish: {late[0]} has not seen this data" if late else None
