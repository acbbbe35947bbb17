"""Several adapters of one task as one, in a directory that `serving` takes as a source."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import files
from tasks.artifacts import ConvertedCheckpoint, Vocabulary
from tasks.errors import InputError
from tasks.evaluation.asking import predict
from tasks.evaluation.decisions import Decision
from tasks.model import adapters, composition, floors
from tasks.model.adapters import Saved
from tasks.model.composition import Part
from tasks.stages import serving, ways
from tasks.stages.serving import Source
from tasks.stages.ways import Manner

RECIPE = "composition.json"  # what a composed adapter is made of, beside it


@dataclass(frozen=True)
class Recipe:
    """weights: of each source, as `serving.find` takes it. by: of `composition.METHODS`. density, seed: as
    `composition.compose` says."""

    weights: Mapping[str, float]
    by: str
    density: float | None = None
    seed: int = 0


def compose(recipe: Recipe, root: Path, target: Path) -> Saved:
    """Write to `target`, which must not exist yet, what `recipe` makes on the base of the project in `root`.

    Its parts' decisions were chosen by what each said of validation rows, and the whole says something else:
    it has a temperature of 1, abstains from no row, and a label holds from one half on. A row is cut at the
    longest length of a part.

    Raises InputError for parts that do not go together, and RegraftError as `serving.find` does.
    """
    if target.exists():
        raise InputError(f"{target} exists: compose into a directory that does not, or remove it")
    tokens = serving.tokens_digest(Vocabulary.load(root).path / "tokenizer")
    found = {source: serving.find(source, root) for source in recipe.weights}
    parts = [_part(source, one, tokens, recipe.weights[source]) for source, one in found.items()]
    manner, model = _manner(found), floors.load(ConvertedCheckpoint.load(root).path / "model")
    made = composition.compose(model, parts, by=recipe.by, density=recipe.density, seed=recipe.seed)
    with files.replace_directory(target) as draft:
        adapters.write(model, made, draft / "adapter")
        serving.describe(Source(None, manner, draft / "adapter", tokens))
        files.write_text(draft / RECIPE, files.canonical_json(_told(recipe, found)))
    return made


def _part(source: str, found: Source, tokens: str, weight: float) -> Part:
    serving.demand(source, found, tokens, tuple(predict.FROM_LOGITS), done="composed")
    saved = adapters.read(found.folder)
    ways.demand_labels(source, found.manner, saved.labels)
    return Part(source, saved, weight)


def _manner(found: Mapping[str, Source]) -> Manner:
    """Raises InputError unless all take a text in the same way."""
    manners = {source: one.manner for source, one in found.items()}
    first = next(iter(manners.values()))
    for what, own in (("rows of kind", "kind"), ("texts cleaned by", "clean")):
        if len({getattr(one, own) for one in manners.values()}) > 1:
            told = ", ".join(f"{getattr(one, own)} ({source})" for source, one in manners.items())
            raise InputError(f"they learned from {what} {told}: compose those that take a text alike")
    length = max(one.max_length for one in manners.values())
    return Manner(first.kind, first.labels, first.clean, length, Decision())


def _told(recipe: Recipe, found: Mapping[str, Source]) -> dict[str, Any]:
    parts = [
        {
            "source": source,
            "version": one.version,
            "weight": recipe.weights[source],
            "digest": files.digest_tree(one.folder),
        }
        for source, one in found.items()
    ]
    return {"by": recipe.by, "density": recipe.density, "seed": recipe.seed, "parts": parts}
