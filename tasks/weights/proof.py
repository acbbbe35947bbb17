"""Show that a converted checkpoint is what its plan promised, from its bytes up to what it computes.

Each level can fail where the ones below it pass: a square matrix that was transposed has the right shape and
loads without a word, and only `parity` sees it. `roundtrip` has two more levels of bytes, `language` and
`similarity` those that need words.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tasks.errors import ProofError
from tasks.params import DEFAULT_LEVELS
from tasks.weights import content, loading, place, similarity, tokenizer
from tasks.weights.formats import SINGLE, Checkpoint
from tasks.weights.loading import REFUSING, load, quiet
from tasks.weights.parity import ROUNDING, Words, original, parity, sequences
from tasks.weights.plan import Plan

NO_ENCODER = similarity.unjudged("the model is no encoder")
OTHER_WORDS = similarity.unjudged("the vocabulary is not the source's")


def verify(
    plan: Plan,
    source: Checkpoint,
    directory: Path,
    *,
    tolerance: float,
    words: Words | None = None,
    levels: Collection[str] = DEFAULT_LEVELS,
    folder: Path | None = None,
) -> dict[str, str]:
    """Level -> what it found: structure always, and of `levels` content, load, parity and similarity.

    directory: holds the converted config.json and model.safetensors; folder: its tokenizer.
    tolerance: largest allowed |difference| of hidden states, source against converted.
    words: of the tokens that both vocabularies have, where they are not the same.
    Raises ProofError naming the tensor or the layer.
    """
    found = {"structure": content.structure(plan, directory / SINGLE)}
    if "content" in levels:
        found["content"] = content.content(plan, directory / SINGLE)
    with quiet():
        if {"load", "parity", "similarity"} & {*levels}:
            converted, found["load"] = load(directory)
        if "parity" in levels:
            found["parity"] = parity(plan, source, converted, tolerance=tolerance, words=words)
        if "similarity" in levels:
            found["similarity"] = alike(plan, source, converted, folder, words)
    return found


def alike(
    plan: Plan,
    source: Checkpoint,
    converted: PreTrainedModel,
    folder: Path | None,
    words: Words | None = None,
) -> str:
    """The converted encoder, with the tokenizer in `folder`, hears what the source with its own does."""
    if not similarity.fits(type(converted).__name__):
        return NO_ENCODER
    if words is not None:
        return OTHER_WORDS
    theirs, ours = tokenizer.beside(source.directory), folder and tokenizer.beside(folder)
    if not theirs or not ours:
        return similarity.unjudged(tokenizer.ABSENT)
    first = original(plan, source, f"{converted.base_model_prefix}.")
    return similarity.judge(similarity.measure(converted, ours), similarity.measure(first, theirs))


def loads(directory: Path) -> str:
    """transformers fills every tensor of the model that config.json names, and its outputs are numbers.

    Raises ProofError naming what it misses.
    """
    output, found = _computed(directory)
    if not bool(output.isfinite().all()):
        raise ProofError(f"{found.split(':')[0]} computes values that are infinite or not numbers")
    return found


def preserved(whole: Plan, config: Mapping[str, Any], directory: Path) -> str:
    """The model in `directory` computes what the whole one does, which `whole` and `config` make.

    Raises ProofError with the largest difference of their logits.
    """
    with TemporaryDirectory(dir=directory) as folder:  # on its disk, and gone with it if this is killed
        place.write(whole, Path(folder), config, metadata={}, durable=False)
        return logits_agree(Path(folder), directory)


def logits_agree(one: Path, other: Path) -> str:
    """Two models that transformers reads compute the same logits on fixed sequences.

    An encoder of twice the width computes each value of its hidden states twice.
    Raises ProofError with the largest difference.
    """
    for dtype in (torch.float32, torch.float64):  # where rounding is in doubt, there is less of it
        theirs, ours = (_computed(directory, dtype)[0] for directory in (one, other))
        if ours.shape[-1] == 2 * theirs.shape[-1]:
            theirs = theirs.repeat(1, 1, 2)
        difference, allowed = float((theirs - ours).abs().max()), ROUNDING * float(theirs.abs().max())
        if difference <= allowed:  # so written, NaN fails
            rows, tokens = theirs.shape[:2]
            return f"max |difference| {difference:g} of logits on {rows} sequences of {tokens} tokens"
    raise ProofError(
        f"the plan says that the model computes exactly what its source does, but logits differ by up to "
        f"{difference:.3g}, more than {allowed:.3g}: a projection that closes a block, or an axis that is "
        "summed over, is not in the table"
    )


def _computed(directory: Path, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, str]:
    """First output (rows, tokens, width) of the model that config.json names, and how it loads."""
    model, found = loading.whole(directory)
    try:
        with torch.no_grad():
            torch.nn.Module.to(model, dtype)
            return model(**sequences(model.config))[0], found
    except REFUSING as error:
        raise loading.refused(error) from None


def fits(plan: Plan, config: Mapping[str, Any], architecture: str) -> str:
    """The tensors of the source have the shapes that transformers gives a model of this config.

    Raises ProofError with every one that has not; no weight is made.
    """
    try:
        with torch.device("meta"):
            model = getattr(transformers, architecture)(loading.described(config))
    except REFUSING as error:
        raise loading.refused(error) from None
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    sources = [entry for move in plan.moves for entry in move.step.sources if entry.name in shapes]
    if wrong := {
        f"- {e.name} is {e.shape}, not {shapes[e.name]}" for e in sources if e.shape != shapes[e.name]
    }:
        raise ProofError(f"the source is not the {architecture} of its config:\n" + "\n".join(sorted(wrong)))
    return f"{architecture} of this config has tensors of these shapes"
