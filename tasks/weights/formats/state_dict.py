"""Find the one dict of tensors in what a training script saved, and the plain settings beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.formats.torch_names import Tensor

NESTED = ("model", "state_dict", "model_state_dict", "module")
DEEPEST = 16  # levels of a setting
MOST_VALUES = 10_000  # in a setting; a few bytes of pickle can stand for more than any memory holds


def chosen(path: Path, value: Any, key: str | None) -> Mapping[str, Tensor]:
    """`value` itself if it is a dict of tensors, else the one in it under `key` or one of the usual keys.

    Raises CheckpointError naming the candidates where there is none or more than one.
    """
    if not isinstance(value, dict):
        kind = type(value).__name__.lower()
        raise CheckpointError(f"{path} holds a {kind}, not a dict of tensors: save model.state_dict()")
    nested: dict[str, Mapping[str, Tensor]]
    nested = {name: inner for name, inner in value.items() if isinstance(name, str) and _is_state_dict(inner)}
    if key is not None:
        return (
            nested[key] if key in nested else _refuse(path, nested, f"{key!r} is no dict of tensors in it.")
        )
    usual = [name for name in NESTED if name in nested]
    if len(usual) == 1:
        return nested[usual[0]]
    if nested:
        return _refuse(path, nested, "which of its dicts of tensors is the model?")
    own = {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    if not _is_state_dict(own):
        raise CheckpointError(f"{path} holds no dict of tensors: save model.state_dict() with torch.save()")
    return own


def settings(value: Mapping[Any, Any]) -> Mapping[str, Any]:
    """The dicts of plain values at the top of `value`, such as nanoGPT's model_args."""
    found = {}
    for name, inner in value.items():
        if isinstance(name, str) and isinstance(inner, dict) and inner:
            try:
                found[name] = _plain(inner, [MOST_VALUES], DEEPEST)
            except ValueError:  # the state of an optimizer, or larger than any setting
                continue
    return found


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _refuse(path: Path, nested: Mapping[str, Any], reason: str) -> Mapping[str, Tensor]:
    known = ", ".join(repr(name[:80]) for name in nested) or "no dict of tensors"
    raise CheckpointError(f"{path}: {reason} It holds {known}; name one as `key`")


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
