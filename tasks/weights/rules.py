"""A mapping between checkpoints is a table of rules; a plan is the table applied to names and shapes.

A template is a tensor's name with placeholders: `{n}` stands for a number, `{p:weight|bias}` for one of the
words listed. Both sides of a rule carry the same placeholders, so every rule that keeps a tensor can be
read backwards. Nothing is inferred from shapes: a transpose stands in the table or does not happen, because
a square matrix fits either way. No I/O here, and no tensor.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal

from tasks import files
from tasks.errors import PlanError
from tasks.weights.formats import TensorEntry

Shape = tuple[int, ...]
ACTIONS = ("copied", "renamed", "transposed", "initialised", "dropped")
SHOWN = 8  # names that one sentence of a PlanError lists


@dataclass(frozen=True)
class Op:
    """What happens to a tensor on its way: its shape, its array, and the way back (None: no way back)."""

    name: str
    shape: Callable[[Shape], Shape]
    forward: Callable[[Any], Any] | None
    backward: Callable[[Any], Any] | None


def _same(value: Any) -> Any:
    return value


def _reversed(shape: Shape) -> Shape:
    return shape[::-1]


def _transposed(array: Any) -> Any:
    return array.T


KEEP = Op("keep", _same, _same, _same)
TRANSPOSE = Op("transpose", _reversed, _transposed, _transposed)
DROP = Op("drop", _same, None, None)
NORMAL = Op("normal", _same, None, None)  # drawn with the plan's seed and deviation, mean 0
ZEROS = Op("zeros", _same, None, None)

OPS: Mapping[str, Op] = {op.name: op for op in (KEEP, TRANSPOSE, DROP, NORMAL, ZEROS)}
KEEPING = (KEEP, TRANSPOSE)
INITIALISING = (NORMAL, ZEROS)


@dataclass(frozen=True)
class Rule:
    """`source` becomes `target` by `op`; no source: initialised; no target: dropped, for a `reason`.

    `group`: targets that are initialised together or not at all, so that half a head is never made up.
    """

    source: str | None
    target: str | None
    op: Op = KEEP
    reason: str = ""
    group: str = ""

    def __str__(self) -> str:
        return f"{self.source or '(none)'} -> {self.target or '(none)'} [{self.op.name}]"

    @property
    def lossy(self) -> bool:
        """Whether what the rule did cannot be undone."""
        return self.op.backward is None

    def inverse(self) -> "Rule":
        """The rule that undoes this one. Raises PlanError for a lossy rule."""
        if self.op.forward is None or self.op.backward is None:
            raise PlanError(f"{self} cannot be read backwards: it {self.op.name}s a tensor")
        op = self.op if self.op.forward is self.op.backward else _flipped(self.op)
        return Rule(self.target, self.source, op, self.reason, self.group)

    def rename(self, name: str) -> str | None:
        """The target name of source tensor `name`, or None where the rule does not match."""
        bound = matches(self.source, name)
        return None if bound is None or self.target is None else fill(self.target, bound)


def _flipped(op: Op) -> Op:
    return Op(f"un{op.name}", op.shape, op.backward, op.forward)


def inverse(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules that undo `rules`. Raises PlanError if one of them is lossy."""
    return tuple(rule.inverse() for rule in rules)


@dataclass(frozen=True)
class Target:
    """What the model expects under a name."""

    shape: Shape
    dtype: str  # in safetensors' spelling


@dataclass(frozen=True)
class Move:
    """How one target tensor comes to be. `source` is None for one that is initialised."""

    target: str
    action: Literal["copied", "renamed", "transposed", "initialised"]
    source: TensorEntry | None
    rule: Rule
    shape: Shape
    dtype: str
    reason: str


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
        return _widest(move.source.dtype for move in self.moves if move.source)

    def parameters(self) -> dict[str, int]:
        """Action -> parameters, every action present."""
        totals = Counter(dict.fromkeys(ACTIONS, 0))
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
    seed: int,
    deviation: float,
) -> Plan:
    """Explain every tensor of the checkpoint and of the model, or raise PlanError with every fault at once.

    seed, deviation: of tensors that are initialised (normal, mean 0).
    """
    rules = tuple(rules)
    faults = [fault for rule in rules for fault in _rule_faults(rule)]
    if faults:
        raise PlanError(_listed("the rule table is not usable", faults))
    used, unused, unexplained = _match(entries, rules)
    fresh, torn = _initialise(rules, targets, set(used))
    faults = [*unexplained, *torn, *_target_faults(used, fresh, targets)]
    faults += [fault for moves in used.values() for move in moves for fault in _fit_faults(move, targets)]
    if faults:
        raise PlanError(_listed("the checkpoint does not fit the model", faults))
    dtype = _widest(move.source.dtype for moves in used.values() for move in moves if move.source)
    moves = {name: moves[0] for name, moves in used.items()} | {
        name: Move(name, "initialised", None, rule, target.shape, dtype, _drawn(rule, seed, deviation))
        for name, (rule, target) in fresh.items()
    }
    return Plan(tuple(moves[name] for name in targets), tuple(unused), seed, deviation)


# --- templates -------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    parts, end = [], 0
    for found in _PLACEHOLDER.finditer(template):
        choice = "|".join(map(re.escape, found[2].split("|"))) if found[2] else "0|[1-9][0-9]*"
        parts += [re.escape(template[end : found.start()]), f"(?P<{found[1]}>{choice})"]
        end = found.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def matches(template: str | None, name: str) -> Mapping[str, str] | None:
    """What each placeholder of `template` stands for in `name`; None where the whole name does not match."""
    found = _pattern(template).fullmatch(name) if template is not None else None
    return None if found is None else found.groupdict()


def fill(template: str, bound: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: bound[found[1]], template)


def examples(template: str, numbers: Iterable[int] = (0, 1, 10, 123)) -> Iterator[str]:
    """Names that match `template`: every choice, and a few numbers for each `{n}`."""
    placeholders = list(_PLACEHOLDER.finditer(template))
    digits = [str(number) for number in numbers]
    choices = [found[2].split("|") if found[2] else digits for found in placeholders]
    for words in product(*choices):
        yield fill(template, {found[1]: word for found, word in zip(placeholders, words, strict=True)})


def _rule_faults(rule: Rule) -> Iterator[str]:
    sides = [side for side in (rule.source, rule.target) if side is not None]
    spelled = [Counter(found[0] for found in _PLACEHOLDER.finditer(side)) for side in sides]
    if OPS.get(rule.op.name) is not rule.op:
        yield f"{rule}: unknown operation {rule.op.name!r}; known: {', '.join(OPS)}"
    elif rule.op in KEEPING and (len(sides) < 2 or spelled[0] != spelled[1]):
        yield f"{rule}: source and target must both stand there, with the same placeholders"
    elif rule.op is DROP and (rule.source is None or rule.target is not None):
        yield f"{rule}: a dropped tensor has a source and no target"
    elif rule.op in INITIALISING and (rule.source is not None or rule.target is None):
        yield f"{rule}: an initialised tensor has a target and no source"
    if rule.op not in KEEPING and not rule.reason:
        yield f"{rule}: what is dropped or initialised needs a reason"
    for side in sides:
        if re.search(r"[{}]", _PLACEHOLDER.sub("", side)) or max(_names(side).values(), default=1) > 1:
            yield f"{rule}: {side!r} is not a template: write {{n}} or {{p:weight|bias}}, each name once"


def _names(template: str) -> Counter[str]:
    return Counter(found[1] for found in _PLACEHOLDER.finditer(template))


# --- the plan --------------------------------------------------------------------------------------


def _match(
    entries: Mapping[str, TensorEntry], rules: tuple[Rule, ...]
) -> tuple[dict[str, list[Move]], list[Unused], list[str]]:
    """Moves by target name, dropped tensors, and a fault for each tensor without exactly one rule."""
    used: dict[str, list[Move]] = {}
    unused, orphans, faults = [], [], []
    for name, entry in entries.items():
        found = [rule for rule in rules if matches(rule.source, name) is not None]
        if len(found) > 1:
            faults.append(f"{name!r} is matched by {len(found)} rules: {'; '.join(map(str, found))}")
        elif not found:
            orphans.append(name)
        elif found[0].op is DROP:
            unused.append(Unused(entry, found[0]))
        else:
            move = _move(entry, found[0])
            used.setdefault(move.target, []).append(move)
    if orphans:
        faults.insert(0, f"{len(orphans)} of its {len(entries)} tensors match no rule: {_some(orphans)}")
    return used, unused, faults


def _move(entry: TensorEntry, rule: Rule) -> Move:
    target = rule.rename(entry.name)
    assert target is not None  # the caller matched it, and _rule_faults saw the target
    kept: Literal["copied", "renamed"] = "copied" if target == entry.name else "renamed"
    action = "transposed" if rule.op is TRANSPOSE else kept
    return Move(target, action, entry, rule, rule.op.shape(entry.shape), entry.dtype, rule.reason)


def _initialise(
    rules: Iterable[Rule], targets: Mapping[str, Target], made: set[str]
) -> tuple[dict[str, tuple[Rule, Target]], list[str]]:
    """Targets that only an initialising rule explains; a fault for each group that is half there."""
    ours = [
        (name, rule)
        for name in targets
        for rule in rules
        if rule.op in INITIALISING and matches(rule.target, name) is not None
    ]
    twice = [name for name, count in Counter(name for name, _ in ours).items() if count > 1]
    faults = [f"{name!r} is initialised by more than one rule" for name in twice]
    for group in sorted({rule.group for _, rule in ours if rule.group}):
        members = {name for name, rule in ours if rule.group == group}
        if 0 < len(members & made) < len(members):
            absent = _some(sorted(members - made))
            faults.append(f"the checkpoint has a part of the {group} and lacks {absent}")
    return {name: (rule, targets[name]) for name, rule in ours if name not in made}, faults


def _target_faults(
    used: Mapping[str, list[Move]], fresh: Mapping[str, Any], targets: Mapping[str, Target]
) -> Iterator[str]:
    missing = [name for name in targets if name not in used and name not in fresh]
    if missing:
        yield f"{len(missing)} of the model's {len(targets)} tensors have no source: {_some(missing)}"
    foreign = [name for name in used if name not in targets]
    if foreign:
        yield f"{len(foreign)} tensors would become names that the model does not have: {_some(foreign)}"
    for name, moves in used.items():
        if len(moves) > 1:
            sources = ", ".join(move.source.name for move in moves if move.source)
            yield f"{name!r} would be made {len(moves)} times, from {sources}"


def _fit_faults(move: Move, targets: Mapping[str, Target]) -> Iterator[str]:
    target, source = targets.get(move.target), move.source
    if target is None or source is None:
        return
    if move.shape != target.shape:
        turned = f", {move.shape} transposed" if move.action == "transposed" else ""
        yield f"{source.name} is {source.shape} in the checkpoint{turned}, {move.target} is {target.shape}"
    if _kind(source.dtype) != _kind(target.dtype):
        yield f"{source.name} holds {source.dtype}, {move.target} needs {_kind(target.dtype)} numbers"


FLOATING = ("BF16", "F16", "F32", "F64")  # narrowest first; eight-bit floats need scales that no rule carries


def _kind(dtype: str) -> str:
    return "floating-point" if dtype in FLOATING else dtype


def _widest(dtypes: Iterable[str]) -> str:
    present = set(dtypes) & set(FLOATING)
    if {"BF16", "F16"} == present:
        return "F32"  # neither holds the other
    return max(present, key=FLOATING.index, default="F32")


def _drawn(rule: Rule, seed: int, deviation: float) -> str:
    drawn = f"normal(0, {deviation}) seed {seed}" if rule.op is NORMAL else rule.op.name
    return f"{drawn}: {rule.reason}"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _listed(opening: str, faults: list[str]) -> str:
    return f"{opening}, {len(faults)} {'fault' if len(faults) == 1 else 'faults'}:\n" + "\n".join(
        f"- {fault}" for fault in faults
    )


def _move_row(move: Move) -> dict[str, Any]:
    return {
        "action": move.action,
        "target": move.target,
        "source": move.source.name if move.source else None,
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
        "rule": str(unused.rule),
        "shape": list(unused.source.shape),
        "dtype": unused.source.dtype,
        "parameters": unused.source.size,
        "reason": unused.rule.reason,
    }
