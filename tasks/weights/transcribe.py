"""A whole checkpoint from another project's names to transformers', or back: planned, placed, proven.

Nothing here imports torch; `proof.loads` does, where it is asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import files
from tasks.errors import CheckpointError, InputError
from tasks.weights import content, place
from tasks.weights.families.naming import Naming
from tasks.weights.formats import Checkpoint
from tasks.weights.plan import Plan, Target, plan

Config = Mapping[str, Any]
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}  # in transformers' words


@dataclass(frozen=True)
class Transcription:
    """What will be written: the plan and the model's description on the other side."""

    plan: Plan
    config: Config
    naming: str
    reverse: bool


def planned(source: Checkpoint, naming: Naming, *, reverse: bool = False) -> Transcription:
    """The plan from `source` to transformers, or from transformers' names to the other project's.

    Raises PlanError with every tensor that has no explanation, CheckpointError where the source does not
    say what model it is.
    """
    theirs = _described(source, naming, reverse=reverse)
    expected = {name: Target() for name in naming.expected(theirs, reverse=reverse)}
    made = plan(source.entries, naming.table(theirs, reverse=reverse), expected)
    about = {"architectures": [naming.architecture], "dtype": DTYPES.get(made.dtype)}
    described = naming.back(theirs) if reverse else {**theirs, **about}
    return Transcription(made, described, naming.name, reverse)


def _described(source: Checkpoint, naming: Naming, *, reverse: bool) -> Config:
    """transformers' config of the model."""
    try:
        given = {**source.config, "tensors": frozenset(source.entries)}
        return source.config if reverse else naming.config(given)
    except KeyError as error:
        raise CheckpointError(
            f"{source.directory}: its config lacks {error.args[0]!r}, without which nobody knows how a model "
            f"of the family {naming.name} is divided"
        ) from None


def transcribe(
    transcription: Transcription, target: Path, *, prove: Callable[[Path], Mapping[str, str]] | None = None
) -> dict[str, str]:
    """Write config.json, model.safetensors and plan.json into the new directory `target`.

    Returns level -> what the proofs of structure and content found, and those of `prove`, which gets the
    directory before it takes its place. Raises InputError where `target` exists; a failed proof leaves
    nothing behind.
    """
    if target.exists():
        raise InputError(f"{target} exists: name a directory that does not, nothing is overwritten")
    made, name = transcription.plan, f"{transcription.naming}{' reversed' * transcription.reverse}"
    with files.replace_directory(target) as draft:
        metadata = {"family": name, "plan": made.digest()}
        path = place.write(made, draft, transcription.config, metadata=metadata)
        found = {"structure": content.structure(made, path), "content": content.content(made, path)}
        described = {"family": name, "preserves": made.preserves, "parameters": made.parameters()}
        found |= prove(draft) if prove else {}
        files.write_text(draft / "plan.json", files.canonical_json({**described, "rows": made.rows()}))
    return found
