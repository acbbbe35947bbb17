"""A mapping between checkpoints is a table of rules.

A template is a tensor's name with placeholders: `{n}` stands for a number, `{p:weight|bias}` for one of the
words listed, `{e*}` for all numbers from 0 on, whose tensors the rule takes or makes together. The sides of a
rule carry the same placeholders, so every rule that keeps tensors can be read backwards. Nothing is inferred
from shapes: a transpose stands in the table or does not happen, because a square matrix fits either way.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, product
from typing import ClassVar, Literal

from tasks.errors import PlanError
from tasks.weights.ops import Chain, Op, Transpose

Effect = Literal["exact", "approximate", "no"]
SHOWN = 8  # names that one sentence of a PlanError lists


@dataclass(frozen=True)
class Drop(Op):
    """The tensor goes nowhere. `unless`: a tensor that would be missed is refused when its bytes are seen."""

    unless: Literal["", "not zero"] = ""
    lossy: ClassVar[bool] = True


@dataclass(frozen=True)
class Tie(Op):
    """The tensor is another one, `to`, under a second name; it is refused where their bytes differ."""

    to: str
    lossy: ClassVar[bool] = True
    refusal: ClassVar[str] = (
        "should be {} under a second name, and their bytes differ: fetch it again, or choose a family that "
        "keeps both"
    )


@dataclass(frozen=True)
class Frozen(Tie):
    """The tensor is the base's, `to`, which stayed as it was while this model was trained."""

    refusal: ClassVar[str] = (
        "differs from {}: experts may have feed-forward tensors of their own and no others, so train them "
        "with all others frozen"
    )


@dataclass(frozen=True)
class Fill(Op):
    """A tensor that is made up; `normal` is drawn with the plan's seed and deviation, mean 0."""

    values: Literal["normal", "zeros", "ones"]
    lossy: ClassVar[bool] = True


KEEP, TRANSPOSE, DROP = Op(), Transpose(), Drop()
NORMAL, ZEROS, ONES = Fill("normal"), Fill("zeros"), Fill("ones")


@dataclass(frozen=True)
class Rule:
    """`source` becomes `target` by `op`; no source: made up; no target: dropped; both for a `reason`.

    Several sources or targets are given as a tuple, in the order in which the op takes or makes them.
    `group`: targets that are initialised together or not at all, so that half a head is never made up.
    `function`: what the rule does to what the model computes, where its op does not say it.
    """

    source: str | tuple[str, ...] | None
    target: str | tuple[str, ...] | None
    op: Op = KEEP
    reason: str = ""
    group: str = ""
    function: Effect | None = None

    def __str__(self) -> str:
        sides = (" + ".join(side) or "(none)" for side in (self.sources, self.targets))
        return f"{' -> '.join(sides)} [{'keep' if self.op == KEEP else self.op}]"

    @property
    def sources(self) -> tuple[str, ...]:
        return _several(self.source)

    @property
    def targets(self) -> tuple[str, ...]:
        return _several(self.target)

    @property
    def keeps(self) -> bool:
        return not isinstance(self.op, Drop | Tie | Fill)

    @property
    def lossy(self) -> bool:
        """Whether what the rule did cannot be undone."""
        try:
            self.op.inverse()
        except ValueError:
            return True
        return False

    @property
    def effect(self) -> Effect:
        """On what the model computes."""
        if self.function:
            return self.function
        if isinstance(self.op, Fill) or self.op == DROP:
            return "no"
        return "approximate" if self.lossy and self.keeps else "exact"

    def inverse(self) -> "Rule":
        """The rule that undoes this one. Raises PlanError for a lossy rule."""
        try:
            return Rule(self.target, self.source, self.op.inverse(), self.reason, self.group)
        except ValueError as error:
            raise PlanError(f"{self} cannot be read backwards: {error}") from None

    def verb(self, *, same_name: bool) -> str:
        """What became of a tensor, in one word."""
        op = self.op.heaviest if isinstance(self.op, Chain) else self.op
        return op.verb if op.verb != "copied" or same_name else "renamed"


def _several(side: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if side is None else (side,) if isinstance(side, str) else side


def inverse(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules that undo `rules`; of several that make the same names the first one counts.

    Raises PlanError if one of them is lossy.
    """
    undone: list[Rule] = []
    for rule in rules:
        if not any(
            overlap(ours, theirs) for one in undone for ours in one.sources for theirs in rule.targets
        ):
            undone.append(rule.inverse())
    return tuple(undone)


def behind(first: Op, *ops: Op) -> Op:
    """One chain without chains in it, so that its heaviest op tells what happened."""
    before = first.ops if isinstance(first, Chain) else () if first == KEEP else (first,)
    return Chain((*before, *ops))


def spelled(rule: Rule) -> Iterator[Rule]:
    """The rule for each choice of words, as a weight and its bias have other axes; numbers stay."""
    sides = [*rule.sources, *rule.targets]
    words = {found[1]: found[3] for found in PLACEHOLDER.finditer(sides[0]) if found[3]}
    for chosen in product(*(choice.split("|") for choice in words.values())):
        names = [_worded(one, dict(zip(words, chosen, strict=True))) for one in sides]
        count = len(rule.sources)
        yield replace(rule, source=side(names[:count]), target=side(names[count:]))


def _worded(template: str, words: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: words.get(found[1], found[0]), template)


def side(names: Sequence[str]) -> str | tuple[str, ...]:
    """One side of a rule."""
    return names[0] if len(names) == 1 else tuple(names)


def check(rules: Sequence[Rule]) -> None:
    """Raises PlanError with every rule that cannot be meant, and every two that match one name."""
    faults = [fault for rule in rules for fault in _rule_faults(rule)]
    if not faults:
        sides = [(rule, template) for rule in rules for template in rule.sources]
        faults += [
            f"{one} and {two} match the same names"
            for (one, ours), (two, theirs) in combinations(sides, 2)
            if overlap(ours, theirs)
        ]
    if faults:
        raise PlanError(listed("the rule table is not usable", faults))


# --- templates -------------------------------------------------------------------------------------

PLACEHOLDER = re.compile(r"\{(\w+)(\*)?(?::([^{}]*))?\}")


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    parts, end = [], 0
    for found in PLACEHOLDER.finditer(template):
        choice = "|".join(map(re.escape, found[3].split("|"))) if found[3] else "0|[1-9][0-9]*"
        parts += [re.escape(template[end : found.start()]), f"(?P<{found[1]}>{choice})"]
        end = found.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def matches(template: str | None, name: str) -> Mapping[str, str] | None:
    """What each placeholder of `template` stands for in `name`; None where the whole name does not match."""
    if template is None:
        return None
    before, after = _ends(template)
    if not (
        name.startswith(before) and name.endswith(after)
    ):  # compiling a pattern costs more than most names
        return None
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()


def fill(template: str, bound: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: bound[found[1]], template)


def starred(template: str) -> str | None:
    """The name of the placeholder whose tensors a rule takes or makes together, if there is one."""
    return next((found[1] for found in PLACEHOLDER.finditer(template) if found[2]), None)


def examples(template: str, numbers: Iterable[int] = (0, 1, 10, 123)) -> Iterator[str]:
    """Names that match `template`: every choice, and a few numbers for each `{n}`."""
    placeholders = list(PLACEHOLDER.finditer(template))
    digits = [str(number) for number in numbers]
    choices = [found[3].split("|") if found[3] else digits for found in placeholders]
    for words in product(*choices):
        yield fill(template, {found[1]: word for found, word in zip(placeholders, words, strict=True)})


def expand(templates: Iterable[str], numbers: Mapping[str, Iterable[int]]) -> Iterator[str]:
    """Every name that `templates` stand for, where `{n}` runs through `numbers["n"]`."""
    for template in templates:
        placeholders = list(PLACEHOLDER.finditer(template))
        choices = [
            found[3].split("|") if found[3] else list(map(str, numbers[found[1]])) for found in placeholders
        ]
        for words in product(*choices):
            yield fill(template, {found[1]: word for found, word in zip(placeholders, words, strict=True)})


@lru_cache(maxsize=4096)
def _ends(template: str) -> tuple[str, str]:
    """What stands before its first placeholder, and what after its last one."""
    parts = PLACEHOLDER.sub("{", template).split("{")
    return parts[0], parts[-1]


@lru_cache(maxsize=4096)
def _words(template: str) -> tuple[str, ...]:
    """What stands between its dots, a placeholder as "{"; nothing where a placeholder may hold a dot."""
    held = any("." in (found[3] or "") for found in PLACEHOLDER.finditer(template))
    return () if held else tuple(PLACEHOLDER.sub("{", template).split("."))


def _apart(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether names that are made of these words are never the same."""
    if not ours or not theirs:
        return False
    different = ((one, other) for one, other in zip(ours, theirs, strict=False) if one != other)
    return len(ours) != len(theirs) or any("{" not in one and "{" not in other for one, other in different)


@lru_cache(maxsize=65536)
def overlap(one: str, other: str) -> bool:
    """Whether some name matches both templates."""
    if _apart(_words(one), _words(other)):
        return False
    digits = {int(number) for side in (one, other) for number in re.findall(r"\d+", side)} | {0, 12}
    return any(matches(other, name) is not None for name in examples(one, sorted(digits))) or any(
        matches(one, name) is not None for name in examples(other, sorted(digits))
    )


# --- faults ----------------------------------------------------------------------------------------


def _rule_faults(rule: Rule) -> Iterator[str]:
    sides = [*rule.sources, *rule.targets]
    spelled = {_spelled(side) for side in sides}
    if rule.keeps and (not rule.sources or not rule.targets or len(spelled) > 1):
        yield f"{rule}: source and target must both stand there, with the same placeholders"
    elif isinstance(rule.op, Drop | Tie) and (not rule.sources or rule.targets):
        yield f"{rule}: a dropped tensor has a source and no target"
    elif isinstance(rule.op, Fill) and (rule.sources or len(rule.targets) != 1):
        yield f"{rule}: an initialised tensor has a target and no source"
    if not rule.keeps and not rule.reason:
        yield f"{rule}: what is dropped or initialised needs a reason"
    for side in sides:
        names = Counter(found[1] for found in PLACEHOLDER.finditer(side))
        stars = sum(bool(found[2]) for found in PLACEHOLDER.finditer(side))
        if re.search(r"[{}]", PLACEHOLDER.sub("", side)) or max(names.values(), default=1) > 1 or stars > 1:
            yield f"{rule}: {side!r} is not a template: write {{n}}, {{e*}} or {{p:weight|bias}}, each once"


def _spelled(template: str) -> frozenset[str]:
    """Its placeholders, without the one that is taken together."""
    return frozenset(found[0] for found in PLACEHOLDER.finditer(template) if not found[2])


def some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def listed(opening: str, faults: Sequence[str]) -> str:
    return f"{opening}, {len(faults)} {'fault' if len(faults) == 1 else 'faults'}:\n" + "\n".join(
        f"- {fault}" for fault in faults
    )
