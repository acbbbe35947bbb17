"""Several LoRA adapters with the same labels as one: peft combines them, and their heads become the mean."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tasks.errors import InputError, did_you_mean
from tasks.model import adapters, floors
from tasks.model.adapters import Saved

COMBINED = ("lora", "rslora")  # kinds that peft combines; of DoRA it would leave the magnitudes out


@dataclass(frozen=True)
class Part:
    """source: what errors call it, another word for each. weight: how much of it there is to be."""

    source: str
    saved: Saved
    weight: float


@dataclass(frozen=True)
class Method:
    """ranks: whether they may differ. sparse: whether only a share of each tensor's values is kept."""

    ranks: bool = False
    sparse: bool = False


def compose(
    model: PreTrainedModel,
    parts: Sequence[Part],
    *,
    by: str,
    density: float | None = None,
    seed: int = 0,
) -> Saved:
    """One adapter of kind `lora` out of `parts`, by one of METHODS. `model`, of their class and body, holds
    all of them then, and is of no other use.

    What an adapter adds to a layer is a difference, so that weights are taken as they are: `cat` at 1 and 1
    adds what both add together. A head is no difference but the whole layer, and a sum of two would double
    every logit without a better answer: so it is the mean, by weights that are normalised to sum to one.
    density: share of each tensor's values that is kept; None: DENSITY, where `by` drops any. seed: of what
    DARE draws.

    Raises InputError that tells all that hinders it, and TrainingError where tensors do not fit the model.
    """
    if by not in METHODS:
        raise InputError(f"nothing is composed by {by!r}; {did_you_mean(by, METHODS)}")
    crown = [adapters.PREFIX + name for name in floors.floors(model)[-1].parameters]
    faults = [*_unusable(parts, by, density), *_unfit(model, parts, crown), *_unlike(parts, by)]
    if faults:
        raise InputError("; ".join(faults))
    head = _mean(parts, crown)
    made = adapters.combine(
        model,
        {part.source: replace(part.saved, tensors=_without(part.saved.tensors, head)) for part in parts},
        [part.weight for part in parts],
        by=by,
        density=(DENSITY if density is None else density) if METHODS[by].sparse else None,
        seed=seed,
    )
    return replace(made, tensors={**made.tensors, **head})


def _mean(parts: Sequence[Part], names: Sequence[str]) -> dict[str, Tensor]:
    total = sum(part.weight for part in parts)
    shares: list[Any] = [part.weight / total for part in parts]
    return {
        name: sum(share * part.saved.tensors[name] for share, part in zip(shares, parts, strict=True))
        for name in names
    }


def _without(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name not in names}


def _unusable(parts: Sequence[Part], by: str, density: float | None) -> Iterator[str]:
    if len(parts) < 2:
        yield f"an adapter is composed of two at least, not of {len(parts)}"
    for part in parts:
        if not 0 < part.weight < inf:  # so written, NaN fails
            yield (
                f"weight {part.weight:g} of {part.source}: it must be above 0, because a head is no "
                "difference that could be taken away; leave out what is to have no part"
            )
    if density is not None and not METHODS[by].sparse:
        yield f"{by} keeps all values: leave the density out, or compose by {_names(sparse=True)}"
    elif density is not None and not 0 < density <= 1:
        yield f"density {density:g}: the share of values that is kept is above 0 and at most 1"


def _unfit(model: PreTrainedModel, parts: Sequence[Part], crown: Sequence[str]) -> Iterator[str]:
    own, body = type(model).__name__, adapters.body_digest(model)
    for part in parts:
        saved = part.saved
        if saved.architecture != own:
            yield f"{part.source} was trained in a {saved.architecture}, and the base is a {own}"
        elif saved.body != body:
            yield (
                f"{part.source} was trained on a body {saved.body}, not on {body}: compose it with others of "
                "its own base"
            )
        if saved.adapter.kind not in COMBINED:
            yield (
                f"{part.source} is of kind {saved.adapter.kind}: {' and '.join(COMBINED)} alone can be "
                "composed; train such a one"
            )
        if saved.whole:
            yield (
                f"{part.source} keeps {', '.join(saved.whole)} whole, which is no difference that could be "
                "added: train it without"
            )
        if lost := sorted(set(crown) - saved.tensors.keys()):
            yield f"{part.source} lacks {', '.join(lost)}: it is torn, or of another class; save it anew"


def _unlike(parts: Sequence[Part], by: str) -> Iterator[str]:
    if len({part.saved.labels for part in parts}) > 1:
        told = ", ".join(f"{part.source} ({', '.join(part.saved.labels)})" for part in parts)
        yield (
            f"labels are not the same in the same order: {told}: let them answer side by side, by `regraft "
            "serve NAME=SOURCE NAME=SOURCE`"
        )
    if len({part.saved.adapter.rank for part in parts}) > 1 and not METHODS[by].ranks:
        told = ", ".join(f"{part.saved.adapter.rank} of {part.source}" for part in parts)
        yield f"{by} adds tensors of one shape, and ranks are {told}: compose by {_names(ranks=True)}"


def _names(**wanted: bool) -> str:
    return ", ".join(name for name, method in METHODS.items() if wanted.items() <= vars(method).items())


DENSITY = 0.5  # of Yu et al.'s (2024) range of .1 to .9, in the middle: which is best is chosen by validation
METHODS: Mapping[str, Method] = {
    "cat": Method(ranks=True),  # what each adds to a layer, side by side: exact (Prabhakar et al., 2024)
    "linear": Method(),  # A and B by themselves, by weights' roots: with what one's B makes of the other's A
    "ties": Method(sparse=True),  # Yadav et al., 2023
    "dare_linear": Method(sparse=True),  # Yu et al., 2024
    "dare_ties": Method(sparse=True),
}
