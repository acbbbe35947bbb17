"""What a text source has that no run has seen, and how unlike the training rows it is."""

import logging
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.repo import Repo
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks import params as parameters
from tasks.artifacts import MANIFEST, PreparedText, Sources

if TYPE_CHECKING:  # seconds to import, and a run without a limit does not ask
    from tasks.stages.drift import Drift

log = logging.getLogger(__name__)
LISTING = (Sources.folder(Path()) / "text.json").as_posix()


def unread(root: Path) -> bool:
    """Whether the text source, as `sources` has listed it, differs from what preparation has read."""
    with chdir(root), Repo() as repo:
        (stage,) = repo.stage.collect(PreparedText.stage)
        (listing,) = (dep for dep in stage.deps if str(dep) == LISTING)
        return not listing.hash_info or listing.changed_checksum()


def too_unlike(drift: "Drift | None", maximum: float | None) -> str | None:
    """Why new rows wait for a person: they are further than `maximum` from those trained on; None where they
    need not."""
    if drift is None or maximum is None or drift.largest <= maximum:
        return None
    told = f"{drift.headline} More than maximum_drift = {maximum:g}: look at reports/drift.html"
    return f"{told}; `regraft run`, or transfer with maximum_drift null, trains on them all the same"


def tell_drift(root: Path) -> "Drift | None":
    """How unlike the new rows are, as Prefect artifacts, in MLflow and as reports/drift.html; None before the
    first run."""
    if not (PreparedText.folder(root) / MANIFEST).exists():
        log.info("no rows are prepared yet: there is nothing to compare with")
        return None
    from tasks.stages import drift as look

    params = parameters.load(root / "params.yaml")
    drift = look.compare(params, root)
    look.track(drift, params, root)
    log.info("%s", drift.headline)
    if rows := _table(drift):
        create_table_artifact(rows, key="drift-measures", description=drift.headline)
    why = "\n".join(f"- {name}: {reason}" for name, reason in drift.silent.items())
    page = f"`{root / 'reports' / look.PAGE}`"
    create_markdown_artifact(f"{drift.headline}\n\n{why}\n\n{page}", key="drift", description="New rows")
    return drift


def _table(drift: "Drift") -> list[dict[str, Any]]:
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
