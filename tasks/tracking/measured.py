"""What was measured outside of every stage, as a run of its own below the pipeline's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks import files
from tasks.artifacts import PreparedText
from tasks.params import Params
from tasks.tracking.circumstances import manifest_digest
from tasks.tracking.runs import Run, introduction


def tell(
    name: str, about: Mapping[str, Any], figures: Mapping[str, float], page: Path, params: Params, root: Path
) -> None:
    """A finished run `name` with `about` as its params, its figures and its page.

    What was told before, of the same prepared rows, is the same run. Where MLflow does not answer, it waits
    in .regraft/spool, as a stage's.
    """
    rows = manifest_digest(root, PreparedText.stage)
    key = files.digest_json({"measured": name, "about": about, "figures": figures, "rows": rows})
    begun = introduction(PreparedText.stage, params, root)
    tags = {**begun.tags, "mlflow.source.name": f"regraft {name}"}
    run = Run(root, replace(begun, stage=name, key=key, params=about, tags=tags))
    run.metrics(figures)
    run.file(page)
    run.end("FINISHED")
