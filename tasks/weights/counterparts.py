"""What transformers does to tensors while it loads them, as ops of ours.

Its own are told apart by the names of their classes (`transformers.core_model_loading`); none of them is run.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import PlanError
from tasks.weights.groups import Order, Parts
from tasks.weights.ops import (
    Chain,
    Concatenate,
    Op,
    Permute,
    Reshape,
    Rotary,
    Shape,
    Split,
    Stack,
    Transpose,
)
from tasks.weights.rules import KEEP


@dataclass(frozen=True)
class Group:
    """Tensors that one pattern of transformers' table collected, in the order of their numbers."""

    pattern: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Aim:
    """What is to become of the groups: pattern -> shape in the model, and the model's config."""

    shapes: Mapping[str, Shape]
    config: Any


Groups = tuple[Group, ...]
Translation = Callable[[Any, Groups, Aim], tuple[tuple[Op, ...], Groups]]


def lacking(operations: Iterable[Any]) -> list[str]:
    """Names of transformers' operations that have no counterpart here."""
    return [name for name in map(_kind, operations) if name not in TRANSLATIONS]


def counterpart(operations: Sequence[Any], groups: Groups, aim: Aim) -> Op:
    """One op for `operations`, one after the other, on the tensors of all groups.

    Raises PlanError naming an operation without a counterpart, ValueError for shapes that do not fit.
    """
    if unknown := lacking(operations):
        raise PlanError(f"there is no op here for transformers' {', '.join(unknown)}")
    found: list[Op] = []
    rest = list(operations)
    if [_kind(one) for one in rest[:2]] == ["MergeModulelist", "Concatenate"] and rest[1].dim == 1:
        made, groups = _joined_experts(rest[0], groups, aim)
        found, rest = list(made), rest[2:]
    for operation in rest:
        made, groups = TRANSLATIONS[_kind(operation)](operation, groups, aim)
        found += made
    return Chain(tuple(found)) if len(found) > 1 else found[0] if found else KEEP


def _kind(operation: Any) -> str:
    return type(operation).__name__


def _joined_experts(merge: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    """Of each expert its gate and up projection, one behind the other: nothing but runs of bytes."""
    shapes = [shape for group in groups for shape in group.shapes]
    experts, kinds = len(groups[0].shapes), len(groups)
    if merge.dim or len(set(shapes)) > 1 or len(shapes) != experts * kinds:
        told = " and ".join(f"{len(group.shapes)} of {group.pattern}" for group in groups)
        raise ValueError(f"these experts ({told}) are not as many of each, or not all of one shape")
    rows, *rest = shapes[0]
    order = Order(
        tuple(kind * experts + expert for expert in range(experts) for kind in range(kinds))
    )  # by expert, not by kind
    before, after = (experts * kinds, rows, *rest), (experts, kinds * rows, *rest)
    ops = (order, Stack(experts * kinds), Reshape(before, after))
    return ops, (Group(_target(aim), (after,)),)


def _merge(operation: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    """Numbered tensors as one with a new first axis."""
    if operation.dim or len(groups) > 1:
        raise ValueError("MergeModulelist joins several kinds of experts, or along another axis than 0")
    count = len(groups[0].shapes)
    return (Stack(count),), (Group(_target(aim), ((count, *groups[0].shapes[0]),)),)


def _concatenate(operation: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    shapes = [shape for group in groups for shape in group.shapes]
    op = Concatenate(tuple(shape[operation.dim] for shape in shapes), operation.dim)
    return (op,), (Group(_target(aim), tuple(op.shapes(shapes))),)


def _chunk(operation: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    """Parts of one size, as many as there are targets."""
    shape, parts = _only(groups), len(aim.shapes)
    if operation.num_shards_attribute or shape[operation.dim] % parts:
        raise ValueError(f"{shape} does not divide into {parts} equal parts along axis {operation.dim}")
    return _divided(operation.dim, shape, [shape[operation.dim] // parts] * parts, aim)


def _split(operation: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    """Parts of the sizes that the model has."""
    sizes = [shape[operation.dim] for shape in aim.shapes.values()]
    return _divided(operation.dim, _only(groups), sizes, aim)


def _divided(axis: int, shape: Shape, sizes: Sequence[int], aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    op = Split(tuple(sizes), axis)
    made = zip(aim.shapes, op.shapes([shape]), strict=True)
    return (op,), tuple(Group(pattern, (part,)) for pattern, part in made)


def _transpose(operation: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    """Two axes change places; where transformers asks for it, only in a tensor that does not fit yet."""
    shape = _only(groups)
    if operation.check_dims and shape == next(iter(aim.shapes.values())):
        return (), groups
    axes = list(range(len(shape)))
    axes[operation.dim0], axes[operation.dim1] = axes[operation.dim1], axes[operation.dim0]
    op = Transpose() if axes == [1, 0] else Permute(tuple(axes))
    return (op,), (Group(groups[0].pattern, tuple(op.shapes([shape]))),)


def _interleave(operation: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    """Rows a0 b0 a1 b1 … as a0 a1 … b0 b1 …, or back."""
    shape, axis = _only(groups), operation.dim
    half = shape[axis] // 2
    pairs = (2, half) if operation.inverse else (half, 2)
    apart = (*shape[:axis], *pairs, *shape[axis + 1 :])
    turned = (*shape[:axis], *pairs[::-1], *shape[axis + 1 :])
    axes = list(range(len(apart)))
    axes[axis], axes[axis + 1] = axis + 1, axis
    return (Reshape(shape, apart), Permute(tuple(axes)), Reshape(turned, shape)), groups


def _rotary(operation: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    """Rows of each head from pairs to halves, in the tensors that it names, or in all."""
    key, names = operation.subconfig_key, operation.permute_layer_names
    config = getattr(aim.config, key, aim.config) if key else aim.config
    turned = Rotary(getattr(config, "num_attention_heads", 1), not operation.inverse)
    ops = tuple(
        turned if names is None or any(name in group.pattern for name in names) else KEEP for group in groups
    )
    made = (ops[0],) if len(ops) == 1 else (Parts(ops, (1,) * len(ops)),)
    return made, groups


def _flatten(operation: Any, groups: Groups, aim: Aim) -> tuple[tuple[Op, ...], Groups]:
    """A convolution's kernel as the rows of a linear layer."""
    shape = _only(groups)
    flat = (shape[0], math.prod(shape[1:]))
    return (Reshape(shape, flat),) if shape != flat else (), (Group(groups[0].pattern, (flat,)),)


def _only(groups: Groups) -> Shape:
    if len(groups) != 1 or len(groups[0].shapes) != 1:
        raise ValueError(f"one tensor is divided or turned, not {sum(len(g.shapes) for g in groups)}")
    return groups[0].shapes[0]


def _target(aim: Aim) -> str:
    return next(iter(aim.shapes))


TRANSLATIONS: Mapping[str, Translation] = {  # by the class of transformers' operation
    "Chunk": _chunk,
    "Concatenate": _concatenate,
    "Conv3dToLinear": _flatten,
    "Interleave": _interleave,
    "MergeModulelist": _merge,
    "PermuteForRope": _rotary,
    "Split": _split,
    "Transpose": _transpose,
}
