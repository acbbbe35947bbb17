"""A plan is a table of rules applied to names and shapes: every tensor is explained before a byte is read."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks import files
from tasks.errors import PlanError
from tasks.weights.formats.entries import BITS, FLOATING, TensorEntry
from tasks.weights.ops import VERBS, Range, Ranges, Shape
from tasks.weights.rules import Effect, Fill, Rule, check, fill, listed, matches, some, starred

ACTIONS = (*VERBS, "initialised", "dropped")
USUAL = ("copied", "renamed", "transposed", "initialised", "dropped")  # counted even where there are none
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
WORST: tuple[Effect, ...] = ("exact", "approximate", "no")


@dataclass(frozen=True)
class Target:
    """What the model expects under a name; None: whatever the rules make.

    origin: what makes the shape so, for the sentence that tells of another.
    """

    shape: Shape | None = None
    dtype: str | None = None  # in safetensors' spelling
    origin: str = ""


@dataclass(frozen=True)
class Step:
    """A rule at work on certain tensors: what it takes and what it makes."""

    rule: Rule
    sources: tuple[TensorEntry, ...]
    targets: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Of all that it takes and makes."""
        taken = sum(entry.nbytes for entry in self.sources)
        return taken + sum(_bytes(shape, self.dtype) for shape in self.shapes)

    def ranges(self) -> list[Ranges] | None:
        """For each target the runs of the source's bytes that it consists of; None where it does not."""
        if not self.rule.keeps or any(entry.decoded for entry in self.sources):
            return None
        given = [(Range(entry.file, entry.start, entry.stop),) for entry in self.sources]
        return self.rule.op.ranges(given, [entry.shape for entry in self.sources], self.sources[0].dtype)


@dataclass(frozen=True)
class Move:
    """How one target tensor comes to be: part `part` of what `step` makes."""

    step: Step
    part: int
    action: str  # of ACTIONS
    reason: str

    @property
    def target(self) -> str:
        return self.step.targets[self.part]

    @property
    def shape(self) -> Shape:
        return self.step.shapes[self.part]

    @property
    def dtype(self) -> str:
        return self.step.dtype

    @property
    def rule(self) -> Rule:
        return self.step.rule

    @property
    def source(self) -> TensorEntry | None:
        """The first tensor that it comes from; None for one that is initialised."""
        return self.step.sources[0] if self.step.sources else None


@dataclass(frozen=True)
class Unused:
    """A tensor of the checkpoint that goes nowhere, and why."""

    source: TensorEntry
    rule: Rule


@dataclass(frozen=True)
class Plan:
    """One move per tensor of the model, one reason per tensor of the checkpoint that is not used."""

    moves: tuple[Move, ...]
    unused: tuple[Unused, ...]
    seed: int
    deviation: float

    @property
    def dtype(self) -> str:
        """The floating dtype of the model: the widest, where the checkpoint mixes them."""
        return _widest(move.dtype for move in self.moves if move.source)

    @property
    def disk(self) -> int:
        """Bytes of the tensors that it makes."""
        return sum(_bytes(move.shape, move.dtype) for move in self.moves)

    @property
    def memory(self) -> int:
        """Bytes of the largest step that is more than runs of bytes, with what it takes and makes."""
        made = {id(move.step): move.step for move in self.moves if move.step.ranges() is None}.values()
        return max((step.nbytes for step in made), default=0)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those at work, of all in the table."""
        return tuple(dict.fromkeys([*(move.rule for move in self.moves), *(one.rule for one in self.unused)]))

    @property
    def preserves(self) -> Effect:
        """Whether the model computes what the checkpoint did."""
        return max((rule.effect for rule in self.rules), key=WORST.index, default="exact")

    def parameters(self) -> dict[str, int]:
        """Action -> parameters: the usual actions always, the others where they occur."""
        totals = Counter(dict.fromkeys(USUAL, 0))
        for row in self.rows():
            totals[row["action"]] += row["parameters"]
        return dict(totals)

    def fresh(self) -> tuple[str, ...]:
        return tuple(move.target for move in self.moves if move.action == "initialised")

    def rows(self) -> list[dict[str, Any]]:
        """Plain values: one row per target tensor, then one per unused source tensor."""
        return [_move_row(move) for move in self.moves] + [_unused_row(unused) for unused in self.unused]

    def digest(self) -> str:
        return files.digest_json({"seed": self.seed, "deviation": self.deviation, "rows": self.rows()})


def plan(
    entries: Mapping[str, TensorEntry],
    rules: Iterable[Rule],
    targets: Mapping[str, Target],
    *,
    seed: int = 0,
    deviation: float = 0.0,
    given: Mapping[str, Target] | None = None,
) -> Plan:
    """Explain every tensor of the checkpoint and of the model, or raise PlanError with every fault at once.

    seed, deviation: of tensors that are initialised (normal, mean 0).
    given: what tensors of the checkpoint should be, as far as that is known.
    """
    rules = tuple(rules)
    check(rules)
    uses, unused, faults = _match(entries, rules)
    faults += once(_given_faults(entries, given or {}))
    steps = [step for number, use in uses for step in _step(rules[number], use, faults)]
    made = Counter(name for step in steps for name in step.targets)
    fresh, torn = _initialise(rules, targets, set(made), _widest(step.dtype for step in steps))
    faults += [*torn, *_target_faults(steps, fresh, made, targets)]
    faults += once(fault for step in steps for fault in _fit_faults(step, targets))
    faults += _uneven(steps)
    if faults:
        raise PlanError(listed("the checkpoint does not fit the model", faults))
    moves = {move.target: move for step in [*steps, *fresh] for move in _moves(step, seed, deviation)}
    return Plan(tuple(moves[name] for name in targets), tuple(unused), seed, deviation)


Bound = frozenset[tuple[str, str]]  # what the placeholders stand for, without the one taken together
Use = tuple[Bound, dict[tuple[int, int], TensorEntry]]  # tensors by the template and the number they matched


def _match(
    entries: Mapping[str, TensorEntry], rules: Sequence[Rule]
) -> tuple[list[tuple[int, Use]], list[Unused], list[str]]:
    """What each rule has to work on, tensors that are dropped, a fault for each without exactly one rule."""
    uses: dict[tuple[int, Bound], dict[tuple[int, int], TensorEntry]] = {}
    unused, orphans, faults = [], [], []
    places = [
        (n, place, template) for n, rule in enumerate(rules) for place, template in enumerate(rule.sources)
    ]
    for name, entry in entries.items():
        found = list(_matching(places, name))
        if len(found) > 1:
            told = "; ".join(str(rules[number]) for number, _, _ in found)
            faults.append(f"{name!r} is matched by {len(found)} rules: {told}")
        elif not found:
            orphans.append(name)
        elif not rules[found[0][0]].keeps:
            unused.append(Unused(entry, rules[found[0][0]]))
        else:
            number, bound, place = found[0]
            uses.setdefault((number, bound), {})[place] = entry
    if orphans:
        faults.insert(0, f"{len(orphans)} of its {len(entries)} tensors match no rule: {some(orphans)}")
    return [(number, (bound, taken)) for (number, bound), taken in uses.items()], unused, faults


def _matching(
    places: Sequence[tuple[int, int, str]], name: str
) -> Iterator[tuple[int, Bound, tuple[int, int]]]:
    """places: the number of each rule, that of each of its sources, its template."""
    for number, place, template in places:
        if (bound := matches(template, name)) is not None:
            star = starred(template)
            rest = frozenset((key, value) for key, value in bound.items() if key != star)
            yield number, rest, (place, int(bound[star]) if star else 0)


def _step(rule: Rule, use: Use, faults: list[str]) -> Iterator[Step]:
    """The rule at work on what it found; what is missing or does not fit goes to `faults`."""
    bound, taken = use
    if lacking := list(_lacking(rule, dict(bound), taken)):
        held = some([entry.name for entry in taken.values()])
        faults.append(f"the checkpoint has {held} and lacks {some(lacking)}, which {rule} takes together")
        return
    sources = tuple(taken[place] for place in sorted(taken))
    if len({entry.dtype for entry in sources}) > 1:
        faults.append(f"{some([f'{e.name} ({e.dtype})' for e in sources])} are of different dtypes: {rule}")
        return
    try:
        shapes = rule.op.shapes([entry.shape for entry in sources])
    except ValueError as error:
        faults.append(f"{some([entry.name for entry in sources])}: {error}")
        return
    names = _names(rule, dict(bound), len(shapes))
    if len(names) != len(shapes):
        faults.append(f"{rule} makes {len(shapes)} tensors and names {len(names)}")
        return
    yield Step(rule, sources, names, tuple(shapes), rule.op.dtype(sources[0].dtype))


def _lacking(
    rule: Rule, bound: Mapping[str, str], taken: Mapping[tuple[int, int], TensorEntry]
) -> Iterator[str]:
    """Names of tensors without which the rule cannot work; numbers that are taken together begin at 0."""
    for place, template in enumerate(rule.sources):
        star = starred(template)
        highest = max((number for at, number in taken if at == place), default=0)
        for number in range(highest + 1):
            if (place, number) not in taken:
                yield fill(template, {**bound, star: str(number)} if star else bound)


def _names(rule: Rule, bound: Mapping[str, str], count: int) -> tuple[str, ...]:
    names: list[str] = []
    for template in rule.targets:
        star = starred(template)
        numbers = range(count) if star else (0,)
        names += [fill(template, {**bound, star: str(n)} if star else bound) for n in numbers]
    return tuple(names)


def _initialise(
    rules: Iterable[Rule], targets: Mapping[str, Target], made: set[str], dtype: str
) -> tuple[list[Step], list[str]]:
    """Targets that only an initialising rule explains; a fault for each group that is half there."""
    ours = [
        (name, rule)
        for name in targets
        for rule in rules
        if isinstance(rule.op, Fill) and matches(rule.targets[0], name) is not None
    ]
    twice = [name for name, count in Counter(name for name, _ in ours).items() if count > 1]
    faults = [f"{name!r} is initialised by more than one rule" for name in twice]
    for group in sorted({rule.group for _, rule in ours if rule.group}):
        members = {name for name, rule in ours if rule.group == group}
        if 0 < len(members & made) < len(members):
            absent = some(sorted(members - made))
            faults.append(f"the checkpoint has a part of the {group} and lacks {absent}")
    fresh = [
        Step(rule, (), (name,), (targets[name].shape or (),), dtype)
        for name, rule in ours
        if name not in made
    ]
    return fresh, faults


def _target_faults(
    steps: Sequence[Step], fresh: Sequence[Step], made: Mapping[str, int], targets: Mapping[str, Target]
) -> Iterator[str]:
    new = {name for step in fresh for name in step.targets}
    missing = [name for name in targets if name not in made and name not in new]
    if missing:
        yield f"{len(missing)} of the model's {len(targets)} tensors have no source: {some(missing)}"
    foreign = [name for name in made if name not in targets]
    if foreign:
        yield f"{len(foreign)} tensors would become names that the model does not have: {some(foreign)}"
    for name, count in made.items():
        if count > 1:
            sources = [entry.name for step in steps if name in step.targets for entry in step.sources]
            yield f"{name!r} would be made {count} times, from {', '.join(sources)}"


def _fit_faults(step: Step, targets: Mapping[str, Target]) -> Iterator[str]:
    for name, shape in zip(step.targets, step.shapes, strict=True):
        target = targets.get(name)
        if target is None:
            continue
        first = step.sources[0]
        if target.shape is not None and shape != target.shape:
            given = " and ".join(f"{entry.name} is {entry.shape}" for entry in step.sources)
            verb = step.rule.verb(same_name=True)
            turned = f", {shape} {verb}" if verb != "copied" else ""
            yield f"{given} in the checkpoint{turned}, {target.origin or f'{name} is'} {target.shape}"
        if target.dtype is not None and _kind(step.dtype) != _kind(target.dtype):
            yield f"{first.name} holds {step.dtype}, {name} needs {_kind(target.dtype)} numbers"


def _given_faults(entries: Mapping[str, TensorEntry], given: Mapping[str, Target]) -> Iterator[str]:
    for name, target in given.items():
        if target.shape is not None and entries[name].shape != target.shape:
            yield f"{name} is {entries[name].shape} in the checkpoint, {target.origin} {target.shape}"


def once(faults: Iterable[str]) -> Iterator[str]:
    """What layers have alike is told of the first."""
    alike: dict[str, list[str]] = {}
    for fault in faults:
        alike.setdefault(NUMBER.sub("", fault), []).append(fault)
    for first, *rest in alike.values():
        yield first + f" (and {len(rest)} more in other layers)" * bool(rest)


def _uneven(steps: Sequence[Step]) -> Iterator[str]:
    """Where layers differ: what one rule makes of the same words has one shape, whatever the number."""
    first: dict[tuple[Rule, str], Step] = {}
    for step in steps:
        like = first.setdefault((step.rule, NUMBER.sub("", step.targets[0])), step)
        if like.shapes != step.shapes:
            ours, theirs = (f"{some([e.name for e in s.sources])} {s.sources[0].shape}" for s in (step, like))
            yield f"{ours} has not the shape of its like, {theirs}"


def _bytes(shape: Shape, dtype: str) -> int:
    return math.prod(shape) * BITS[dtype] // 8


def _kind(dtype: str) -> str:
    return "floating-point" if dtype in FLOATING else dtype


def _widest(dtypes: Iterable[str]) -> str:
    present = set(dtypes) & set(FLOATING)
    if {"BF16", "F16"} == present:
        return "F32"  # neither holds the other
    return max(present, key=FLOATING.index, default="F32")


def _moves(step: Step, seed: int, deviation: float) -> Iterator[Move]:
    for part, target in enumerate(step.targets):
        if isinstance(step.rule.op, Fill):
            yield Move(step, part, "initialised", _drawn(step.rule, step.rule.op, seed, deviation))
        else:
            same = len(step.sources) == 1 and step.sources[0].name == target
            yield Move(step, part, step.rule.verb(same_name=same), step.rule.reason)


def _drawn(rule: Rule, op: Fill, seed: int, deviation: float) -> str:
    drawn = f"normal(0, {deviation}) seed {seed}" if op.values == "normal" else op.values
    return f"{drawn}: {rule.reason}"


def _move_row(move: Move) -> dict[str, Any]:
    sources = move.step.sources
    return {
        "action": move.action,
        "target": move.target,
        "source": ", ".join(entry.name for entry in sources) or None,
        "bytes": [[entry.file.name, entry.start, entry.stop] for entry in sources],
        "rule": str(move.rule),
        "shape": list(move.shape),
        "dtype": move.dtype,
        "parameters": math.prod(move.shape),
        "reason": move.reason,
    }


def _unused_row(unused: Unused) -> dict[str, Any]:
    return {
        "action": "dropped",
        "target": None,
        "source": unused.source.name,
        "bytes": [[unused.source.file.name, unused.source.start, unused.source.stop]],
        "rule": str(unused.rule),
        "shape": list(unused.source.shape),
        "dtype": unused.source.dtype,
        "parameters": unused.source.size,
        "reason": unused.rule.reason,
    }
