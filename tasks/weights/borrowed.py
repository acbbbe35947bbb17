"""The tables that transformers ships for checkpoints older than its model code, as rules of ours.

It holds them in `transformers.conversion_mapping`: regular expressions on names, and operations on what they
collect. Each is applied to the names in the checkpoint, and what comes out is a table as any other: it is
planned, copied as bytes, proven and read backwards. Only the names of the old layout, for the way back, are
asked of transformers' own saving, on tensors without values.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from tasks.errors import CheckpointError, PlanError
from tasks.weights.counterparts import Aim, Group, counterpart, lacking
from tasks.weights.families import BORROWED
from tasks.weights.formats import Checkpoint
from tasks.weights.inert import inert
from tasks.weights.ops import Shape
from tasks.weights.plan import Target, plan
from tasks.weights.rules import DROP, Rule, Tie, listed, some
from tasks.weights.templates import Explicit, together
from tasks.weights.transcribe import DTYPES, Transcription

REFUSING = (StrictDataclassError, KeyError, TypeError, ValueError, AttributeError, ImportError, RuntimeError)
IGNORED = "transformers ignores it: the model computes it or has no use for it"
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Place:
    """Where a name of the checkpoint leads: the (first) name in the model.

    converter: number of the entry that takes the tensor there, None for a mere renaming.
    pattern: which of its patterns matched.
    """

    target: str
    converter: int | None = None
    pattern: str = ""


class _Table:
    """transformers' entries for one model, applied to one name after another."""

    def __init__(self, model: PreTrainedModel) -> None:
        entries = deepcopy(get_model_conversion_mapping(model))
        self.model, self.known = model, _shapes(model.state_dict())
        self.renamings = [entry for entry in entries if not hasattr(entry, "operations")]
        self.converters = [entry for entry in entries if hasattr(entry, "operations")]

    def place(self, name: str) -> Place:
        """Every renaming that matches, then one converter; a name that the model has stays where it would
        lead nowhere."""
        found = self._converted(name)
        if found.target not in self.known and name in self.known:
            return Place(name)
        return found

    def operations(self, place: Place) -> Sequence[Any]:
        found: Sequence[Any] = () if place.converter is None else self.converters[place.converter].operations
        return found

    def fits(self, place: Place) -> bool:
        """Whether a tensor of the model's shape would be left as it is."""
        return all(getattr(operation, "check_dims", False) for operation in self.operations(place))

    def _converted(self, name: str) -> Place:
        renamed = name
        for entry in self.renamings:
            renamed, _ = entry.rename_source_key(renamed)
        for number, entry in enumerate(self.converters):
            target, pattern = entry.rename_source_key(renamed)
            if pattern is not None:
                return Place(self._based(target), number, pattern)
        return Place(self._based(renamed))

    def _based(self, name: str) -> str:
        """With or without the prefix that a model with a head gives its body, as this model has it."""
        prefix = f"{self.model.base_model_prefix}."
        cut = name.removeprefix(prefix)
        if cut != name and cut in self.known:
            return cut
        return f"{prefix}{name}" if f"{prefix}{name}" in self.known else name


def planned(source: Checkpoint, *, reverse: bool = False) -> Transcription:
    """The plan from the layout that `source` was saved in to the one that transformers' model has, or back.

    Raises CheckpointError for a config that names no model of transformers, PlanError with every operation
    that has no op here, every tensor without an explanation, and every one that transformers would convert
    again.
    """
    model = _empty(source)
    if reverse:
        old = _old(model, source)
        made = plan(
            source.entries,
            table(model, old, reverse=True),
            {name: Target(shape) for name, shape in old.items()},
        )
    else:
        _demand_final(model)
        shapes = {name: entry.shape for name, entry in source.entries.items()}
        made = plan(source.entries, table(model, shapes), _targets(model))
    theirs, architecture = inert(source.config), type(model).__name__
    about = {"architectures": [architecture], "dtype": DTYPES.get(made.dtype)}
    return Transcription(made, {**theirs, **about}, theirs, architecture, BORROWED, reverse)


def _empty(source: Checkpoint) -> PreTrainedModel:
    """The model of the config, without values."""
    names = source.config.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise CheckpointError(
            f"{source.directory}: architectures in config.json is {names!r:.80}, not one class of this "
            'transformers: write the model\'s, such as ["MixtralForCausalLM"], or update transformers'
        )
    try:
        config = AutoConfig.for_model(**inert(source.config))
        _demand_depth(config, source)
        with torch.device("meta"):
            return kind(config)
    except REFUSING as error:
        raise CheckpointError(
            f"{source.directory}: config.json does not describe a {name}: {shorten(str(error), 300)}"
        ) from None


def _demand_depth(config: Any, source: Checkpoint) -> None:
    depth = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(depth, int) and depth > len(source.entries):
        raise ValueError(f"it tells of {depth:,} layers, the file holds {len(source.entries):,} tensors")


def _old(model: PreTrainedModel, source: Checkpoint) -> dict[str, Shape]:
    """Names and shapes that transformers would save these tensors under."""
    try:
        state = {name: torch.empty(entry.shape, device="meta") for name, entry in source.entries.items()}
        return _shapes(revert_weight_conversion(model, state))
    except (*REFUSING, IndexError) as error:
        raise CheckpointError(
            f"{source.directory}: its tensors are not those of a {type(model).__name__} ({error}): give what "
            f"--family {BORROWED} made"
        ) from None


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _targets(model: PreTrainedModel) -> dict[str, Target]:
    tied = model.all_tied_weights_keys
    shapes = _shapes(model.state_dict())
    return {name: Target(shape) for name, shape in shapes.items() if name not in tied}


def _demand_final(model: PreTrainedModel) -> None:
    """Raises PlanError where transformers, loading what we made, would convert it a second time.

    What it only turns where the shape does not fit yet stays as it is.
    """
    table = _Table(model)
    again = [
        name
        for name in sorted(table.known, key=_natural)
        if (found := table.place(name)).target != name or not table.fits(found)
    ]
    if again:
        raise PlanError(
            f"transformers would convert {some(again)} again when it loads the result: leave this checkpoint "
            "as it is, transformers reads it"
        )


# --- rules -----------------------------------------------------------------------------------------


def table(model: PreTrainedModel, shapes: Shapes, *, reverse: bool = False) -> tuple[Rule, ...]:
    """Rules for tensors of these names and shapes; none for a name that leads nowhere in the model.

    shapes: of the old layout. reverse: the rules that lead back to it.
    Raises PlanError with all faults.
    """
    found = _Table(model)
    places = {name: found.place(name) for name in sorted(shapes, key=_natural)}
    _demand_counterparts(operation for place in places.values() for operation in found.operations(place))
    ours: list[Explicit] = list(_renamed(model, places, shapes))
    faults: list[str] = []
    for (target, number), members in _collected(places).items():
        try:
            ours.append(_converted(found, shapes, target, number, members))
        except (ValueError, IndexError) as error:
            held = some([name for names in members.values() for name in names])
            faults.append(f"{held} does not become {target}: {error}")
    if faults:
        raise PlanError(listed("the checkpoint does not fit the model", faults))
    return together([one for one in ours if one.targets] if reverse else ours, reverse=reverse)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]


def _demand_counterparts(operations: Iterable[Any]) -> None:
    if unknown := sorted(set(lacking(operations))):
        raise PlanError(
            f"there is no op here for transformers' {', '.join(unknown)}: load the checkpoint with "
            "transformers and save it"
        )


def _renamed(model: PreTrainedModel, places: Mapping[str, Place], shapes: Shapes) -> Iterator[Explicit]:
    """Tensors that only change their names; what is tied goes once, what transformers ignores not at all."""
    ties, known = model.all_tied_weights_keys, model.state_dict()
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    first = {place.target: name for name, place in places.items()}
    for name, place in places.items():
        if place.converter is not None:
            continue
        target, held = ties.get(place.target, place.target), (shapes[name],)
        if target != place.target and target in first:
            reason = f"tied: {first[target]} under a second name"
            yield Explicit(((name,),), (), held, Tie(first[target]), reason)
        elif target in known:
            yield Explicit(((name,),), (target,), held)
        elif any(pattern.search(target) for pattern in ignored):
            yield Explicit(((name,),), (), held, DROP, IGNORED)


Members = dict[str, list[str]]  # pattern -> the names that it collected


def _collected(places: Mapping[str, Place]) -> dict[tuple[str, int], Members]:
    """(first name that is made, number of the converter) -> what it is made from."""
    found: dict[tuple[str, int], Members] = {}
    for name, place in places.items():
        if place.converter is not None:
            members = found.setdefault((place.target, place.converter), {})
            members.setdefault(place.pattern, []).append(name)
    return found


def _converted(found: _Table, shapes: Shapes, target: str, number: int, members: Members) -> Explicit:
    converter = found.converters[number]
    patterns: Sequence[str] = converter.target_patterns
    names = [target, *(target.replace(patterns[0], other, 1) for other in patterns[1:])]
    if unknown := [name for name in names if name not in found.known]:
        raise ValueError(f"the model has no {some(unknown)}")
    given = [(pattern, members[pattern]) for pattern in converter.source_patterns if pattern in members]
    groups = tuple(Group(pattern, tuple(shapes[name] for name in held)) for pattern, held in given)
    aims = {pattern: found.known[name] for pattern, name in zip(patterns, names, strict=True)}
    op = counterpart(converter.operations, groups, Aim(aims, found.model.config))
    sources, held = (
        tuple(tuple(held) for _, held in given),
        tuple(one for group in groups for one in group.shapes),
    )
    return Explicit(sources, tuple(names), held, op)
