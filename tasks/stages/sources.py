"""Resolve what params.yaml names and note it by content, so that a change outside reaches every stage below.

Runs on every repro: it imports nothing heavy and only reads bytes.
"""

from dataclasses import asdict
from pathlib import Path

from tasks import files, references
from tasks.artifacts import Sources
from tasks.params import Params
from tasks.stages import Track


def run(params: Params, root: Path, track: Track) -> Sources:
    text, checkpoint = params.sources.text, params.sources.checkpoint
    table = references.inventory(references.locate_text(text.path, root=root))
    weights = references.inventory(
        references.locate(checkpoint.path, root=root, revision=checkpoint.revision)
    )
    with files.replace_directory(Sources.folder(root)) as draft:
        references.write_listing(draft / "text.json", text.path, text.licence, table)
        references.write_listing(draft / "checkpoint.json", checkpoint.path, checkpoint.licence, weights)
        Sources.save(
            draft,
            text="sha256:" + table[0].sha256,
            checkpoint=files.digest_json([asdict(file) for file in weights]),
        )
    return Sources.load(root)
