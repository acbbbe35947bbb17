"""What a registered version was made from, so that it can be made again."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from tasks.errors import InputError
from tasks.tracking import circumstances

COMMIT, CHANGED, DIGESTS = "regraft.commit", "regraft.changed", "regraft.digests"
STAGES = ("sources", "preparation", "vocabulary", "conversion", "encoding", "finetuning")


@dataclass(frozen=True)
class Origin:
    commit: str
    digests: Mapping[str, str]  # stage -> digest of its output
    params: str  # params.yaml, whole


def tags(root: Path) -> dict[str, str]:
    """For a version whose model lies below `root`."""
    digests = {stage: circumstances.manifest_digest(root, stage) for stage in STAGES}
    return {
        COMMIT: circumstances.commit(root),
        CHANGED: " ".join(circumstances.changed(root))[:4000],
        DIGESTS: json.dumps({stage: digest for stage, digest in digests.items() if digest}),
    }


def read(client: MlflowClient, name: str, run_id: str, kept: Mapping[str, str]) -> Origin:
    """From the tags of a version and the params.yaml that its pipeline's run keeps.

    Raises InputError where the version cannot be made again from them.
    """
    if not kept.get(COMMIT):
        raise InputError(
            f"{name} names no git commit: it was registered outside of a repository, or not by us"
        )
    if kept.get(CHANGED):
        raise InputError(
            f"{name} was made with uncommitted changes to {kept[CHANGED]}: no commit holds what made it; "
            "commit, then run again"
        )
    parent = client.get_run(run_id).data.tags["mlflow.parentRunId"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(parent, "params.yaml", folder))
        return Origin(kept[COMMIT], json.loads(kept[DIGESTS]), path.read_text(encoding="utf-8"))
