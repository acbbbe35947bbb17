"""A model of another width: twice as wide and computing the same, or a selection of its heads and channels.

Doubling repeats what a layer makes and halves what it sums over, so that sums are equal but for rounding
(Chen et al., 2016, Net2Net; Chen et al., 2022, bert2BERT). A smaller model is made of whole heads and of
evenly spaced channels, the same ones in every layer (Xu et al., 2024, Initializing Models with Larger Ones).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from tasks.errors import InputError
from tasks.weights.arithmetic import Replicate, Scale
from tasks.weights.families.axes import Axes, Layout, Width, parts
from tasks.weights.families.naming import Config
from tasks.weights.ops import Arrays, Chain, Concatenate, Op, Shape, Split, Take, exactly
from tasks.weights.plan import Plan, Target
from tasks.weights.rules import KEEP, Effect, Rule, behind, examples, spelled

Wanted = int | Literal["double"]
HALF = Scale(0.5)  # exact in floating point
TIED = "tie_word_embeddings"


@dataclass(frozen=True)
class Apart(Op):
    """Each of several tensors by an op of its own."""

    ops: tuple[Op, ...]
    verb: ClassVar[str] = "replicated"
    lossy: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"apart({'; '.join('keep' if op == KEEP else str(op) for op in self.ops)})"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        pairs = zip(self.ops, exactly(len(self.ops), given, self), strict=True)
        return [made for op, shape in pairs for made in op.shapes([shape])]

    def forward(self, given: Arrays, dtype: str) -> list[Any]:
        pairs = zip(self.ops, given, strict=True)
        return [made for op, array in pairs for made in op.forward([array], dtype)]

    def ranges(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Select(Take):
    """Take, told by how many."""

    def __str__(self) -> str:
        return f"select({len(self.indices)}, {self.axis})"


@dataclass(frozen=True)
class Change:
    """From one width to another.

    config: of the result. before, after: axis -> length.
    taken: axis -> the places along it that remain; none where the model is doubled.
    """

    config: Config
    before: Mapping[str, int]
    after: Mapping[str, int]
    taken: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def doubles(self) -> bool:
        return not self.taken

    def along(self, axis: str, dimension: int) -> tuple[Op, ...]:
        """The ops that make `axis`, which lies along `dimension` of a tensor, as long as it shall be."""
        size = self.before[axis]
        if self.after[axis] == size:
            return ()
        if self.doubles:
            return (Replicate(2), Concatenate((size, size), dimension))
        return (Select(self.taken[axis], dimension),)


def change(config: Config, architecture: str, axes: Axes, wanted: Wanted) -> Change:
    """How a model of transformers' `config` comes to the width `wanted`.

    Raises InputError for a class whose width cannot change, and for a width that cannot be, with the nearest.
    """
    if axes.width is None:
        raise InputError(
            f"the width of {architecture} cannot be changed, as it computes with it: leave out --width"
        )
    full = axes.full(config)
    hidden = full[axes.width.hidden]
    if wanted in ("double", 2 * hidden):
        return _doubled(config, full, axes, axes.width)
    keys = full[axes.width.keys] if axes.width.keys else full[axes.width.heads]
    groups = _groups(full[axes.width.heads], keys, hidden, int(wanted))
    if not groups:
        raise InputError(_refusal(full[axes.width.heads], keys, hidden, int(wanted)))
    return _selected(config, full, axes, axes.width, int(wanted), groups)


def _doubled(config: Config, full: Config, axes: Axes, width: Width) -> Change:
    fields = [name for name in (width.hidden, width.heads, width.inner, width.keys) if name]
    wider = {**config, **{name: 2 * full[name] for name in fields}}
    if width.head:
        wider[TIED] = False  # a head sums over the width, an embedding does not
    return Change(wider, axes.sizes(config), axes.sizes(wider))


def _selected(
    config: Config, full: Config, axes: Axes, width: Width, hidden: int, groups: tuple[int, int]
) -> Change:
    """groups: heads of keys, and heads of queries for each of them, that remain."""
    before, heads = axes.sizes(config), full[width.heads]
    keys = full[width.keys] if width.keys else heads
    inner = max(1, round(full[width.inner] * hidden / full[width.hidden]))
    fields = {width.hidden: hidden, width.heads: math.prod(groups), width.inner: inner}
    narrow = {**config, **fields, **({width.keys: groups[0]} if width.keys else {})}
    shared, size = heads // keys, before["heads"] // heads
    kept = _even(keys, groups[0])
    queries = [key * shared + query for key in kept for query in _even(shared, groups[1])]
    taken = {"heads": _rows(queries, size), "keys": _rows(kept, size)}
    taken |= {"hidden": _even(full[width.hidden], hidden), "inner": _even(full[width.inner], inner)}
    return Change(narrow, before, axes.sizes(narrow), taken)


def _even(before: int, after: int) -> tuple[int, ...]:
    """`after` of `before` places, evenly spaced from the first."""
    return tuple(place * before // after for place in range(after))


def _rows(heads: Iterable[int], size: int) -> tuple[int, ...]:
    return tuple(head * size + row for head in heads for row in range(size))


def _groups(heads: int, keys: int, hidden: int, wanted: int) -> tuple[int, int] | None:
    """Heads of keys and heads of queries for each that make `wanted` of `hidden`; None where none do.

    In proportion, or, where that is no whole number of keys, with all keys and fewer queries for each.
    """
    if not 0 < wanted < hidden or heads * wanted % hidden:
        return None
    if keys * wanted % hidden == 0:
        return keys * wanted // hidden, heads // keys
    queries, rest = divmod(heads * wanted // hidden, keys)
    return None if rest else (keys, queries)


def _refusal(heads: int, keys: int, hidden: int, wanted: int) -> str:
    if wanted >= hidden:
        return f"width {wanted}: the model has {hidden}, and becomes wider by doubling alone, to {2 * hidden}"
    widths = range(step := hidden // math.gcd(hidden, heads), hidden, step)
    possible = [width for width in widths if _groups(heads, keys, hidden, width)]
    below = [width for width in possible if width < wanted][-1:]
    nearest = [*below, *[width for width in possible if width > wanted][:1]]
    remedy = f"write {' or '.join(map(str, nearest))}" if nearest else "none does, so leave out --width"
    return f"width {wanted} does not keep heads whole, {heads} in {hidden} with {keys} of keys: {remedy}"


def table(plan: Plan, axes: Axes, change: Change) -> tuple[Rule, ...]:
    """The rules at work in `plan`, which makes transformers' names, each with what changes the width."""
    found: list[Rule] = []
    for rule in plan.rules:
        found += [_resized(one, axes, change) for one in spelled(rule)] if rule.keeps else [rule]
    if head := _untied(plan, axes, change):
        found = [_twice(rule, head) if rule.targets == (_embedding(axes),) else rule for rule in found]
    return tuple(found)


def targets(plan: Plan, axes: Axes, change: Change) -> Mapping[str, Target]:
    """Names of the result, each with the shape that its config makes."""
    head = _untied(plan, axes, change)
    names = [move.target for move in plan.moves] + [head] * bool(head)
    return {name: Target(axes.shape(name, change.config)) for name in names}


def _untied(plan: Plan, axes: Axes, change: Change) -> str:
    """The head, where a doubled model needs one and `plan` makes none; else nothing."""
    head = axes.width.head if axes.width and change.doubles else None
    return head if head and all(move.target != head for move in plan.moves) else ""


def _embedding(axes: Axes) -> str | None:
    return axes.width.embedding if axes.width else None


def _twice(rule: Rule, head: str) -> Rule:
    """The embedding's rule, which makes the head of it too."""
    op = behind(rule.op, Replicate(2), Apart((KEEP, HALF)))
    return replace(rule, target=(*rule.targets, head), op=op)


def _resized(rule: Rule, axes: Axes, change: Change) -> Rule:
    layouts = [axes.layout(next(examples(target))) for target in rule.targets]
    each = [_ops(layout, change) for layout in layouts if layout]
    if not any(each):
        return rule
    ops = each[0] if len(each) == 1 else (Apart(tuple(map(Chain, each))),)
    return replace(rule, op=behind(rule.op, *ops), function=_effect(rule, change))


def _effect(rule: Rule, change: Change) -> Effect:
    return "approximate" if rule.effect == "exact" and not change.doubles else rule.effect


def _ops(layout: Layout, change: Change) -> tuple[Op, ...]:
    summed = change.doubles and layout.contracted is not None
    along = [_along(axis, dimension, change) for dimension, axis in enumerate(layout.axes)]
    return ((HALF,) if summed else ()) + tuple(op for ops in along for op in ops)


def _along(axis: str, dimension: int, change: Change) -> tuple[Op, ...]:
    """A dimension in which several axes lie behind one another is split, and joined again."""
    joined = parts(axis)
    if len(joined) == 1:
        return change.along(axis, dimension)
    before, after = (tuple(sizes[part] for part in joined) for sizes in (change.before, change.after))
    each = tuple(Chain(change.along(part, dimension)) for part in joined)
    return (Split(before, dimension), Apart(each), Concatenate(after, dimension))
