"""Resolve what params.yaml names and note it by content, so that a change outside reaches every stage below.

Runs on every repro: it imports nothing heavy and only reads bytes.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tasks import environment, files, references
from tasks.artifacts import Sources
from tasks.params import Params
from tasks.references import File
from tasks.stages import Track


def run(params: Params, root: Path, track: Track) -> Sources:
    if "k_shot" in params.evaluation.baselines:  # long before evaluation, which comes last
        environment.demand("lm_eval", extra="prompting", wanted="evaluation.baselines: k_shot")
    text, checkpoint = params.sources.text, params.sources.checkpoint
    table = _seen(text.path, root, text.revision)
    evaluations = [
        references.list_evaluation(reference.path, _seen(reference.path, root, reference.revision))
        for reference in params.sources.evaluations
    ]
    weights = references.inventory(
        references.locate(checkpoint.path, root=root, revision=checkpoint.revision)
    )
    with files.replace_directory(Sources.folder(root)) as draft:
        references.write_listing(draft / "text.json", text.path, text.licence, table, evaluations=evaluations)
        references.write_listing(draft / "checkpoint.json", checkpoint.path, checkpoint.licence, weights)
        Sources.save(
            draft,
            text=_digest(table),
            checkpoint=_digest(weights),
        )
    return Sources.load(root)


def _seen(reference: str, root: Path, revision: str) -> tuple[File, ...]:
    return references.inventory_text(references.locate_text(reference, root=root, revision=revision))


def _digest(listed: Sequence[File]) -> str:
    return files.digest_json([asdict(file) for file in listed])
