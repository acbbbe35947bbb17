"""Retraining as a Prefect flow: look for new data often, tell how unlike it is, train where there is any."""

import logging
from contextlib import chdir
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect import Task, flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.checkout.stage import Leaf
from flows.pipeline import bring_up_to_date, stage_task, turn
from tasks import environment
from tasks import params as parameters
from tasks.artifacts import MANIFEST, PreparedText, Sources
from tasks.errors import RegraftError
from tasks.stages.drift import PAGE, Drift, compare

log = logging.getLogger(__name__)
LISTING = (Sources.folder(Path()) / "text.json").as_posix()


@flow(name="retrain", description=__doc__)
def retrain(
    maximum_drift: float | None = None, leaf: Leaf = "subprocess", checkout: Path = Path()
) -> State[str]:
    """Bring the text source up to date; where it is what the last run was made from, do nothing and end as
    *Skipped*. Otherwise tell how unlike the new rows are, and bring every stage up to date.

    A table that DVC imported (`dvc import`, `dvc import-url`) is fetched from where it comes from. With
    `maximum_drift` new rows that differ by more than chance explains and this much end the run as *Held*:
    `transfer` trains on them all the same.
    """
    environment.quiet()
    root = checkout.resolve()
    with turn(root):
        return _retrain(root, maximum_drift, leaf)


def _retrain(root: Path, maximum_drift: float | None, leaf: Leaf) -> State[str]:
    Task(fetch, name="fetch", retries=2, retry_delay_seconds=[10, 60])(root)
    stage_task(Sources.stage)(Sources.stage, root, leaf)
    if not (news := arrived(root)):
        return Completed(name="Skipped", message="nothing new: the last run was made from this very data")
    log.info("%s", news)
    drift = Task(tell_drift, name="drift")(root)
    if drift and maximum_drift is not None and drift.largest > maximum_drift:
        told = f"{drift.headline} More than maximum_drift = {maximum_drift:g}: look at reports/{PAGE}"
        return Completed(name="Held", message=f"{told}, and run transfer to train all the same")
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
    except DvcException as error:
        raise RegraftError(
            f"{name} cannot be brought up to date: {error}; `dvc update {name}` says more"
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
        listing = read[PreparedText.stage, LISTING]
        if not listing.hash_info:
            return "nothing has been trained yet"
        if listing.changed_checksum():
            return "the text source has changed"
        late = [
            stage for (stage, path), dep in read.items() if made.get(path, dep.hash_info) != dep.hash_info
        ]
    return f"the last run did not finish: {late[0]} has not seen this data" if late else None


def tell_drift(root: Path) -> Drift | None:
    """How unlike the new rows are, as Prefect artifacts and reports/drift.html; None before the first run."""
    if not (PreparedText.folder(root) / MANIFEST).exists():
        log.info("no rows are prepared yet: there is nothing to compare with")
        return None
    drift = compare(parameters.load(root / "params.yaml"), root)
    log.info("%s", drift.headline)
    if rows := _table(drift):
        create_table_artifact(rows, key="drift-measures", description=drift.headline)
    why = "\n".join(f"- {name}: {reason}" for name, reason in drift.silent.items())
    page = f"`{root / 'reports' / PAGE}`"
    create_markdown_artifact(f"{drift.headline}\n\n{why}\n\n{page}", key="drift", description="New rows")
    return drift


def _table(drift: Drift) -> list[dict[str, Any]]:
    return [
        {
            "measure": one.name,
            "value": round(one.value, 4),
            "by chance": round(one.chance, 4),
            "verdict": "differs" if one.differs else "alike",
            "told": one.told,
        }
        for one in drift.measures
    ]
