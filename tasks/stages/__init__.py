"""One file a stage: its body, which ties the rooms together and tells tracking.

A body is `run(params, root, track)`: upstream records are read below `root`, one record comes out.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tasks import artifacts

if TYPE_CHECKING:
    from tasks.params import Params


class Track(Protocol):
    """Where a stage tells what it saw; tasks.tracking writes it to MLflow, tests write it nowhere."""

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None: ...

    def file(self, path: Path, folder: str = "") -> None: ...


STAGES: Mapping[str, type[artifacts.Artifact]] = {
    record.stage: record
    for record in (
        artifacts.Sources,
        artifacts.PreparedText,
        artifacts.Vocabulary,
        artifacts.ConvertedCheckpoint,
        artifacts.EncodedDataset,
        artifacts.TrainedModel,
        artifacts.Evaluation,
        artifacts.Promotion,
    )
}


def run(stage: str, params: "Params", root: Path, track: Track) -> artifacts.Artifact:
    """Run one stage's body; its module, and what that imports, is loaded only now."""
    body = import_module(f"tasks.stages.{stage}").run
    record: artifacts.Artifact = body(params, root, track)
    return record
