"""Find the one dict of tensors in what a training script saved, and the plain settings beside it."""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import refuse
from tasks.weights.formats.torch_names import Tensor

NESTED = ("model", "state_dict", "model_state_dict", "module")
TRAINING = frozenset({  # words that name its state, as torch, Lightning and timm spell them
    "optimizer", "optimizers", "optim", "scheduler", "schedulers", "scaler", "rng", "ema",
    "callbacks", "loops",
})  # fmt: skip
DEEPEST = 16  # levels of a setting
MOST_VALUES = 10_000  # in a setting; a few bytes of pickle can stand for more than any memory holds
SHOWN = 80  # characters of a name in an error
REMEDY = "save the model's state_dict() alone, or name the dict of tensors that is the model as `key`"


def chosen(path: Path, value: Any, key: str | None) -> Mapping[str, Tensor]:
    """`value` itself if it is a dict of tensors, else the one in it under `key` or one of the usual keys.

    Left out are only what the caller passes over by `key`, and beside a usual key the state of training
    (TRAINING) and tensors of one item, such as a best loss.
    Raises CheckpointError naming the candidates where there is none or more than one, each tensor that would
    be left out, and each entry of the dict that is no tensor, for what it means nobody here knows.
    """
    if not isinstance(value, dict):
        kind = type(value).__name__.lower()
        raise CheckpointError(f"{path} holds a {kind}, not a dict of tensors: save model.state_dict()")
    nested = {name: inner for name, inner in value.items() if isinstance(name, str) and _has_tensors(inner)}
    if key is not None and key not in nested:
        raise _undecided(path, nested, f"{key!r} is no dict of tensors in it.")
    name = _usual(path, value, nested) if key is None else key
    found = value if name is None else value[name]
    refuse(path, list(_entry_faults(found, "" if name is None else f" of {name!r}")), REMEDY)
    return found


def settings(value: Mapping[Any, Any]) -> Mapping[str, Any]:
    """The dicts of plain values at the top of `value`, such as nanoGPT's model_args."""
    found = {}
    for name, inner in value.items():
        if isinstance(name, str) and isinstance(inner, dict) and inner and not _of_training(name):
            try:
                found[name] = _plain(inner, [MOST_VALUES], DEEPEST)
            except ValueError:  # it holds tensors, or is larger than any setting
                continue
    return found


def _usual(path: Path, value: Mapping[Any, Any], nested: Mapping[str, Any]) -> str | None:
    """The usual key under which a dict of tensors stands; None where `value` itself is one."""
    usual = [name for name in NESTED if name in nested]
    if len(usual) == 1:
        left = (
            f"tensor {place!r} would be left out beside {usual[0]!r}" for place in _others(value, usual[0])
        )
        refuse(path, list(left), REMEDY)
        return usual[0]
    if nested and not any(isinstance(inner, Tensor) and not _is_number(inner) for inner in value.values()):
        raise _undecided(path, nested, "which of its dicts of tensors is the model?")
    if not _has_tensors(value):
        raise CheckpointError(f"{path} holds no dict of tensors: save model.state_dict() with torch.save()")
    return None


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, Tensor) for inner in value.values())


def _is_number(tensor: Tensor) -> bool:
    return 0 in tensor.shape or all(size == 1 for size in tensor.shape)


def _of_training(name: Any) -> bool:
    return isinstance(name, str) and not TRAINING.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def _entry_faults(found: Mapping[Any, Any], where: str) -> Iterator[str]:
    for name, inner in found.items():
        if not isinstance(inner, Tensor):
            kind = "dict" if isinstance(inner, dict) else type(inner).__name__
            yield f"entry {str(name)[:SHOWN]!r}{where} is no tensor: its type is {kind}"
        elif not isinstance(name, str):
            yield f"tensor {str(name)[:SHOWN]!r}{where} has a name that is no text"


def _others(value: Mapping[Any, Any], model: str) -> Iterator[str]:
    """Where tensors of more than one item stand that are neither in `model` nor the state of training.

    Each object is looked at once, so that one that holds itself, or is held a million times, takes no time.
    """
    rest = {name: inner for name, inner in value.items() if name != model and not _of_training(name)}
    waiting: deque[tuple[str, Any]] = deque([("", rest)])
    seen = set()
    while waiting:
        place, inner = waiting.popleft()
        if isinstance(inner, Tensor) and not _is_number(inner):
            yield place.removeprefix(".")
        for name, child in _items(inner):
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append((f"{place}.{name}"[: 2 * SHOWN], child))


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Names (or places, of a list) and what stands there; nothing of a value that holds no others."""
    if isinstance(value, dict):
        yield from ((str(name)[:SHOWN], inner) for name, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(place), inner) for place, inner in enumerate(value))


def _undecided(path: Path, nested: Mapping[str, Any], reason: str) -> CheckpointError:
    known = ", ".join(repr(name[:SHOWN]) for name in nested) or "no dict of tensors"
    return CheckpointError(f"{path}: {reason} It holds {known}; name one as `key`")


def _plain(value: Any, left: list[int], depth: int) -> Any:
    """A copy of plain values. Raises ValueError for anything else, too much of it, or a cycle."""
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise ValueError("more than a setting")
    if isinstance(value, dict):
        return {_key(name): _plain(inner, left, depth - 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, left, depth - 1) for inner in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a {type(value).__name__} is not plain")


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError("a key that is no text")
    return name
