"""What a checkpoint is made of, told by its tensors' names, shapes and bytes; nothing is loaded or run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Any

from tasks.weights import words
from tasks.weights.formats import Checkpoint, TensorEntry

LANGUAGE = ("CausalLM", "MaskedLM", "LMHead", "ConditionalGeneration", "PreTraining")  # these have a head


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs. prefix: what all names of its floor or layers begin with; name: the rest."""

    floor: str
    prefix: str
    number: int | None  # of its layer
    name: str
    entry: TensorEntry

    @property
    def part(self) -> str:
        """attention, feed-forward, …; outside layers the floor itself."""
        if self.floor != words.LAYER:
            return self.floor
        inside = words.known(self.name, words.PARTS)
        return inside if inside != words.OTHER else words.known(f"{self.prefix}.{self.name}", words.PARTS)


@dataclass(frozen=True)
class Tensor:
    """tied: the tensor whose bytes these are too, or nothing; its parameters are counted there."""

    word: str  # the last of its name
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    tied: str = ""


@dataclass(frozen=True)
class Module:
    """Tensors that share all of their names but the last word; `count` modules differ in numbers alone."""

    name: str
    count: int
    tensors: tuple[Tensor, ...]

    @property
    def parameters(self) -> int:
        return self.count * sum(tensor.parameters for tensor in self.tensors)


@dataclass(frozen=True)
class Part:
    kind: str
    modules: tuple[Module, ...]

    @property
    def parameters(self) -> int:
        return sum(module.parameters for module in self.modules)


@dataclass(frozen=True)
class Floor:
    """Layers whose tensors are equal in name, shape and dtype are one floor; `parts` are those of one."""

    kind: str
    prefix: str
    numbers: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        return max(1, len(self.numbers))

    @property
    def parameters(self) -> int:
        return self.count * sum(part.parameters for part in self.parts)


@dataclass(frozen=True)
class Summary:
    """parameters: items of any dtype, as the Hub counts them, shared bytes once; bytes: of whole files."""

    format: str
    model: str
    architecture: str
    tensors: int
    parameters: int
    files: int
    bytes: int
    dtypes: Mapping[str, int]  # -> parameters
    tied: tuple[tuple[str, ...], ...]
    headless: bool  # the config ties the head to the embeddings, and no head is stored


def summary(checkpoint: Checkpoint) -> Summary:
    entries, config = checkpoint.entries, checkpoint.config
    files = {entry.file for entry in entries.values()}
    dtypes: dict[str, int] = {}
    for tensor in tensors(entries).values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.parameters
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else ""
    return Summary(
        format=checkpoint.format,
        model=_printable(config.get("model_type") or config.get("general.architecture")),
        architecture=_printable(architecture),
        tensors=len(entries),
        parameters=sum(dtypes.values()),
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
        dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])),
        tied=tied(entries),
        headless=_headless(checkpoint, _printable(architecture)),
    )


def tied(entries: Mapping[str, TensorEntry]) -> tuple[tuple[str, ...], ...]:
    """The names that share one byte range, for each range with more than one."""
    names: dict[tuple[Any, int, int], list[str]] = {}
    for name, entry in entries.items():
        if entry.start < entry.stop:
            names.setdefault((entry.file, entry.start, entry.stop), []).append(name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def tensors(entries: Mapping[str, TensorEntry]) -> dict[str, Tensor]:
    first = {name: group[0] for group in tied(entries) for name in group[1:]}
    return {
        name: Tensor(
            re.split(r"[./]", name)[-1], entry.shape, entry.dtype, 0 if name in first else entry.size,
            first.get(name, ""),
        )
        for name, entry in entries.items()
    }  # fmt: skip


def floors(entries: Mapping[str, TensorEntry]) -> tuple[Floor, ...]:
    """The floors from the input to the head; "other" is the last."""
    found, made = tensors(entries), []
    for (kind, prefix), above in groupby(places(entries), key=lambda place: (place.floor, place.prefix)):
        layers: dict[frozenset[tuple[str, Tensor]], list[list[Place]]] = {}
        for _, layer in groupby(above, key=lambda place: place.number):
            members = list(layer)
            same = frozenset((place.name, found[place.entry.name]) for place in members)
            layers.setdefault(same, []).append(members)
        for equal in layers.values():
            numbers = tuple(layer[0].number for layer in equal if layer[0].number is not None)
            made.append(Floor(kind, prefix, numbers, _parts(equal[0], found)))
    return tuple(made)


def places(entries: Mapping[str, TensorEntry]) -> list[Place]:
    """Every tensor in the order of the floors and of the layers' numbers."""
    numbers: dict[str, set[str]] = {}
    for name in entries:
        for prefix, number, _ in _numbers(name):
            numbers.setdefault(prefix, set()).add(number)
    repeated = {prefix for prefix, found in numbers.items() if len(found) > 1}
    placed = [_place(entry, repeated) for entry in entries.values()]
    return sorted((place for floor in words.ORDER for place in _named(placed, floor)), key=_order)


def _place(entry: TensorEntry, repeated: set[str]) -> Place:
    numbers = [
        found
        for found in _numbers(entry.name)
        if words.known(found[0], words.FLOORS) in (words.NORM, words.OTHER)
    ]
    named = [found for found in numbers if words.LAYERS & set(words.split(re.split(r"[./]", found[0])[-1]))]
    for prefix, number, name in named or [found for found in numbers if found[0] in repeated]:
        return Place(words.LAYER, prefix, int(number), name, entry)
    return Place(words.known(entry.name, words.FLOORS), "", None, entry.name, entry)


def _named(placed: Sequence[Place], floor: str) -> list[Place]:
    """The places of a floor; outside layers what all names begin with, but for two words, is their prefix."""
    members = [place for place in placed if place.floor == floor]
    if floor == words.LAYER:
        return members
    columns = zip(*(re.split(r"[./]", place.name)[:-2] for place in members), strict=False)
    common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    length = len(".".join(common))
    return [
        replace(place, prefix=place.name[:length], name=place.name[length:].lstrip("./")) for place in members
    ]


def _numbers(name: str) -> list[tuple[str, str, str]]:
    """What stands before each number in a name, the number, and what follows."""
    found = re.finditer(r"(?<![^./])([0-9]{1,9})[./]", name)
    return [(name[: match.start()].rstrip("./"), match[1], name[match.end() :]) for match in found]


def _order(place: Place) -> tuple[int, bool, str, int]:
    """A decoder follows its encoder; else stacks of layers are in the order of their names."""
    decoder = "decoder" in place.prefix.lower()
    return words.ORDER.index(place.floor), decoder, place.prefix, place.number or 0


def _parts(members: Sequence[Place], found: Mapping[str, Tensor]) -> tuple[Part, ...]:
    parts: dict[str, dict[str, list[Tensor]]] = {}
    for place in members:
        tensor = found[place.entry.name]
        module = place.name.removesuffix(tensor.word).rstrip("./")
        parts.setdefault(place.part, {}).setdefault(module, []).append(tensor)
    order = ["attention", "state space", "convolution", "router", "feed-forward", words.NORM, *parts]
    return tuple(Part(kind, _modules(parts[kind])) for kind in sorted(parts, key=order.index))


def _modules(members: Mapping[str, list[Tensor]]) -> tuple[Module, ...]:
    """Equal modules whose names differ in numbers alone, such as experts, are one."""
    equal: dict[tuple[str, tuple[Tensor, ...]], list[str]] = {}
    for name, found in members.items():
        pattern = re.sub(r"(?<![^./])[0-9]+(?![^./])", "*", name)
        ordered = tuple(sorted(found, key=lambda tensor: (tensor.word != "weight", tensor.word)))
        equal.setdefault((pattern, ordered), []).append(name)
    modules = [
        Module(pattern if len(names) > 1 else names[0], len(names), ordered)
        for (pattern, ordered), names in equal.items()
    ]
    return tuple(sorted(modules, key=lambda module: _flow(module.name)))


def _flow(name: str) -> tuple[list[int], int]:
    """Sorts modules: by the numbers in their names, then as data goes through them."""
    numbers = [int(number) for _, number, _ in _numbers(f"{name}.")]
    return numbers, [kind for kind, _ in words.FLOW].index(words.known(name, words.FLOW))


def _headless(checkpoint: Checkpoint, architecture: str) -> bool:
    """A config of a model without a language head says that it ties one, too."""
    expected = not architecture or any(word in architecture for word in LANGUAGE)
    declared = checkpoint.config.get("tie_word_embeddings") is True
    return expected and declared and not any(p.floor == words.HEAD for p in places(checkpoint.entries))


def _printable(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() else ""
