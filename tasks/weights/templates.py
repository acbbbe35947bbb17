"""Rules for tensors that are known by name, told with placeholders: one for what all layers have alike."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.weights.ops import Op, Shape
from tasks.weights.rules import KEEP, Rule

NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]*)(?![^.])")
STAR = "{e*}"


@dataclass(frozen=True)
class Explicit:
    """Groups of tensors that become `targets`, or nothing, by `op`; every tensor under its full name.

    shapes: of the tensors, one after the other; layers whose shapes differ are not alike.
    """

    sources: tuple[tuple[str, ...], ...]
    targets: tuple[str, ...]
    shapes: tuple[Shape, ...]
    op: Op = KEEP
    reason: str = ""

    @property
    def templates(self) -> tuple[str, ...]:
        """Of the sources, with {e*} for what a group numbers."""
        return tuple(template for group in self.sources for template in _starred(group))

    @property
    def even(self) -> bool:
        """Whether sources and targets carry the same numbers."""
        return len({tuple(NUMBER.findall(name)) for name in (*self.templates, *self.targets)}) == 1

    def rule(self, *, general: bool = False, apart: bool = False) -> Rule:
        """general: a placeholder for every number. apart: none for what a group numbers."""
        told = generalised if general else str
        sources = [
            told(template).replace(STAR, str(number))
            for group in self.sources
            for template in _starred(group)
            for number in (range(len(group)) if apart and STAR in template else (STAR,))
        ]
        targets = tuple(map(told, self.targets))
        source = sources[0] if len(sources) == 1 else tuple(sources)
        return Rule(source, targets[0] if len(targets) == 1 else targets or None, self.op, self.reason)


def together(rules: Iterable[Explicit], *, reverse: bool = False) -> tuple[Rule, ...]:
    """One rule for all that differ in numbers alone; each by itself where what is numbered is not alike.

    reverse: the rules that undo them, in which groups are spelled out: a plan numbers one of them at most.
    Raises PlanError for a lossy rule.
    """
    found: dict[tuple[str, ...], list[Explicit]] = {}
    for rule in rules:
        found.setdefault(tuple(map(generalised, rule.templates)), []).append(rule)
    made: list[Rule] = []
    for alike in found.values():
        even = all(rule.even for rule in alike)
        general = even and len({(rule.rule(general=True), rule.shapes) for rule in alike}) == 1
        for rule in alike[:1] if general else alike:
            told = rule.rule(general=general, apart=reverse)
            made.append(told.inverse() if reverse else told)
    return tuple(made)


def generalised(name: str) -> str:
    """`name` with {n}, {n2}, {n3} for its numbers."""
    first, *rest = NUMBER.split(name)
    told = [f"{{n{place if place > 1 else ''}}}{part}" for place, part in enumerate(rest, 1)]
    return "".join([first, *told])


def _starred(group: Sequence[str]) -> tuple[str, ...]:
    """{e*} for the number in which the names of a group differ, where it runs from 0; else the names."""
    for found in NUMBER.finditer(group[0]):
        before, after = group[0][: found.start()], group[0][found.end() :]
        if len(group) > 1 and list(group) == [f"{before}{number}{after}" for number in range(len(group))]:
            return (f"{before}{STAR}{after}",)
    return tuple(group)
