"""What a whole converted model does, beside its reference where there is one: levels of `regraft convert`.

The reference is what transformers reads: the one that was named, else the source itself, where it is a
directory of transformers and the plan keeps what it computes.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from tasks.errors import InputError, ProofError
from tasks.weights import language, loading, parity, similarity, tokenizer
from tasks.weights.families import SPARSE
from tasks.weights.formats import CONFIG, INDEX, SINGLE
from tasks.weights.plan import Plan
from tasks.weights.tokenizer import Encode

Prove = Callable[[Path], dict[str, str]]
REMEDY = "put its files (such as tokenizer.json) there, or name with --reference a directory that has them"


@dataclass(frozen=True)
class Pair:
    """The converted model, the reference, if any, and the tokenizer of both, where a level needs words."""

    ours: PreTrainedModel
    theirs: PreTrainedModel | None
    words: Encode


def prepare(
    levels: Collection[str],
    plan: Plan,
    architecture: str,
    *,
    reference: Path | None = None,
    folder: Path | None = None,
) -> Prove:
    """What proves `levels` of the directory that it is given, and returns level -> what it found.

    reference: a directory that transformers reads. folder: the converted model's tokenizer, where it is not
    beside the source or the reference.
    Raises InputError where the model has not what a level is about, ProofError where words are needed and
    no tokenizer stands beside the source or the reference.
    """
    demand(levels, architecture)
    source = next(move.source.file for move in plan.moves if move.source)
    own = _own(source) if plan.preserves == "exact" else None
    words = _words(folder or source, reference) if {*levels} & WORDED else _wordless
    if "parity" in levels and not (reference or own):
        raise InputError(
            "parity needs a source that transformers reads and that the plan keeps as it is, or --reference"
        )

    def prove(directory: Path) -> dict[str, str]:
        with loading.quiet():
            ours = loading.whole(directory)[0]
            theirs = _named(reference, ours, levels) if reference else own and _read(own, ours)
            pair = Pair(ours, theirs or None, words)
            return {level: LEVELS[level](pair) for level in LEVELS if level in levels}

    return prove


def demand(levels: Collection[str], architecture: str) -> None:
    """Raises InputError with every level that is not for transformers' class `architecture`."""
    causal = () if language.fits(architecture) else CAUSAL
    faults = [f"{level} is for causal language models" for level in causal if level in levels]
    faults += ["similarity is for encoders"] * ("similarity" in levels and not similarity.fits(architecture))
    if faults:
        raise InputError(
            f"{architecture} cannot be proven so: {', '.join(faults)}: leave out what is not for it"
        )


def _own(source: Path) -> Path | None:
    """The source's directory, if it looks like one of transformers."""
    directory = source.parent
    known = source.name == SINGLE or (directory / INDEX).exists()
    return directory if known and (directory / CONFIG).exists() else None


def _named(directory: Path, ours: PreTrainedModel, levels: Collection[str]) -> PreTrainedModel:
    """Raises ProofError where it has no head to compare with."""
    theirs = loading.whole(directory)[0]
    if {*levels} & {*CAUSAL} and not _alike(theirs, ours):
        raise ProofError(
            f"{directory} holds a {type(theirs).__name__}, the converted model is a {type(ours).__name__}: "
            "name a reference of that class"
        )
    return theirs


def _read(directory: Path, ours: PreTrainedModel) -> PreTrainedModel | None:
    """None where it is not that model to transformers: names that had to be put right, say, or no head."""
    try:
        theirs = loading.whole(directory)[0]
    except ProofError:
        return None
    return theirs if _alike(theirs, ours) else None


def _alike(theirs: PreTrainedModel, ours: PreTrainedModel) -> bool:
    """Whether they may compute the same: of one class, or of the one that has experts in its stead."""
    one, other = (type(model).__name__ for model in (theirs, ours))
    return one == other or (one in SPARSE and SPARSE[one].architecture == other)


def _words(source: Path, reference: Path | None) -> Encode:
    """Raises ProofError where there is no tokenizer."""
    encode = tokenizer.beside(source) or (reference and tokenizer.beside(reference))
    if not encode:
        raise ProofError(f"{tokenizer.ABSENT} ({source if source.is_dir() else source.parent}): {REMEDY}")
    return encode


def _wordless(text: str) -> list[int]:
    raise NotImplementedError(f"no level that was asked for needs words, and this one has {text!r}")


def _parity(pair: Pair) -> str:
    if pair.theirs is None:
        raise ProofError("parity: transformers does not read the source as it is: name a --reference")
    return parity.agree(pair.theirs, pair.ours)


def _similarity(pair: Pair) -> str:
    theirs = pair.theirs and similarity.measure(pair.theirs, pair.words)
    return similarity.judge(similarity.measure(pair.ours, pair.words), theirs or None)


def _loss(pair: Pair) -> str:
    theirs = language.loss(pair.theirs, pair.words) if pair.theirs else None
    ours = language.loss(pair.ours, pair.words)
    return language.judge_loss(ours, theirs, vocabulary=pair.ours.config.vocab_size)


def _generation(pair: Pair) -> str:
    theirs = language.written(pair.theirs, pair.words) if pair.theirs else None
    if theirs is None:
        _loss(pair)  # without a reference it must stay within both bounds
    return language.judge_generation(language.written(pair.ours, pair.words), theirs)


CAUSAL = ("loss", "generation")
WORDED = {"similarity", *CAUSAL}
LEVELS: Mapping[str, Callable[[Pair], str]] = {
    "parity": _parity,
    "similarity": _similarity,
    "loss": _loss,
    "generation": _generation,
}
