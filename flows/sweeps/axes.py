"""What a sweep tries: presets and `-S key=value,value` are axes, each combination of their values a trial."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from flows.commands.begin import for_kind, with_preset
from tasks import files
from tasks import params as parameters
from tasks.errors import InputError, ParamsError
from tasks.params import SELECTED, Params

PRESET = "preset"
# What decides which rows judge a trial, and by which figure; the last two do nothing to a trial.
SAME = (
    "sources.text", "sources.evaluations", "preparation", "finetuning.select", "evaluation", "promotion"
)  # fmt: skip
# Where words or tokens are judged and not rows, these decide which.
TOKENS = ("encoding", "vocabulary", "sources.checkpoint")
JUDGED_WHOLE = ("label", "pair", "labels", "score")
CALL = re.compile(r"\s*(choice|range|interval|log)\((.*)\)\s*", re.DOTALL)
ELSEWHERE, HERE = "operations.finetuning", "null"


@dataclass(frozen=True)
class Span:
    """Numbers from low to high, for a search; whole ones where `whole`, by their logarithm where `log`."""

    low: float
    high: float
    whole: bool
    log: bool


@dataclass(frozen=True)
class Axis:
    """A dotted key of params.yaml, or PRESET, with the values to try as they would stand in the file, or the
    span in which a search looks for them."""

    key: str
    values: tuple[str, ...] = ()
    span: Span | None = None

    @property
    def varies(self) -> bool:
        """Whether there is anything to choose."""
        return self.span is not None or len(self.values) > 1

    @property
    def told(self) -> str:
        if self.span is None:
            return ", ".join(self.values)
        whole, log = ", whole numbers" * self.span.whole, ", by logarithm" * self.span.log
        return f"{self.span.low:g} to {self.span.high:g}{whole}{log}"


@dataclass(frozen=True)
class Trial:
    """One way to fine-tune. assignments: all of its -S, in the order given. changes: axis that varies ->
    value."""

    preset: str | None
    assignments: tuple[str, ...]
    changes: Mapping[str, str]
    params: Params

    @property
    def name(self) -> str:
        """The same for the same assignments, whenever and wherever."""
        asked = {"preset": self.preset, "assignments": self.assignments}
        return files.digest_json(asked).removeprefix("sha256:")[:8]

    @property
    def command(self) -> str:
        """What makes it the project's own."""
        preset = ["--preset", self.preset] if self.preset else []
        return shlex.join(["regraft", "init", *preset, *(w for a in self.assignments for w in ("-S", a))])


@dataclass(frozen=True)
class Space:
    base: Params
    axes: tuple[Axis, ...]

    @property
    def varying(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis.varies)

    @property
    def select(self) -> str:
        """The validation figure by which trials are ranked: that by which each keeps its best epoch."""
        named = [axis.values[0] for axis in self.axes if axis.key == "finetuning.select"]
        wanted = named[0] if named else self.base.finetuning.select
        return SELECTED.get(self.base.sources.text.kind, "loss") if wanted == "auto" else wanted

    def trial(self, values: Mapping[str, str]) -> Trial:
        """A value of each axis as a trial. Raises ParamsError for params that are not possible."""
        preset = values.get(PRESET)
        assignments = tuple(f"{a.key}={values[a.key]}" for a in self.axes if a.key != PRESET)
        base = self.base
        if preset is not None:
            base = for_kind(base.model_copy(update={"finetuning": with_preset(base.finetuning, preset)}))
        try:
            params = parameters.override(base, assignments)
        except ParamsError as error:
            raise ParamsError(f"preset {preset}: {error}" if preset else str(error)) from None
        return Trial(preset, assignments, {a.key: values[a.key] for a in self.varying}, params)

    def grid(self) -> list[Trial]:
        """Every combination, the first axis slowest; of equal trials the first.

        Raises ParamsError with all faults at once.
        """
        found: dict[str, Trial] = {}
        faults: dict[str, None] = {}
        for values in product(*map(_listed, self.axes)):
            try:
                trial = self.trial(dict(zip((axis.key for axis in self.axes), values, strict=True)))
                found.setdefault(parameters.dump(trial.params), trial)
            except ParamsError as error:
                faults[str(error)] = None
        if faults:
            raise ParamsError("\n".join(faults))
        return list(found.values())


def space(base: Params, presets: str | None, assignments: Sequence[str]) -> Space:
    """The axes of `--preset a,b` and of each `-S key=values`, in this order.

    Raises ParamsError for an assignment that cannot be read, for a key that stands twice, and for one that
    would have the trials judged by different rows or figures, or trained elsewhere; InputError where nothing
    is given.
    """
    axes = [Axis(PRESET, tuple(_split(presets)))] if presets is not None else []
    axes += map(_axis, assignments)
    if not axes:
        raise InputError("name what to try, as in `regraft sweep -S finetuning.seed=1,2,3` or --preset a,b")
    keys = [axis.key for axis in axes]
    faults = [f"-S {key}: stands twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    same = SAME if base.sources.text.kind in JUDGED_WHOLE else (*SAME, *TOKENS)
    faults += [_incomparable(axis.key, same) for axis in axes if axis.varies and _judges(axis.key, same)]
    faults += _elsewhere(base, axes)
    if faults:
        raise ParamsError("\n".join(faults))
    return Space(base, tuple(axes))


def _elsewhere(base: Params, axes: Sequence[Axis]) -> list[str]:
    """The sentence against trials that would be trained here, where their params say elsewhere."""
    named = {value for axis in axes if axis.key == ELSEWHERE for value in axis.values}
    wanted = named or {base.operations.finetuning or HERE}
    return [
        f"{ELSEWHERE} is {name}, and a sweep trains all its trials on the machine where it runs: give the "
        f"command on that with the GPUs, with -S {ELSEWHERE}={HERE}"
        for name in sorted(wanted - {HERE})
    ]


def _judges(key: str, same: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{one}.") or f"{one}.".startswith(f"{key}.") for one in same)


def _incomparable(key: str, same: Sequence[str]) -> str:
    return (
        f"-S {key}: takes one value in a sweep: trials are compared by the same figure on the same "
        f"validation rows ({', '.join(same)})"
    )


def _listed(axis: Axis) -> tuple[str, ...]:
    if axis.span:
        raise ParamsError(f"-S {axis.key}: a range without steps needs --trials N; or list the values: a,b,c")
    return axis.values


def _axis(assignment: str) -> Axis:
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ParamsError(f"-S {assignment}: write section.key=value or section.key=value,value")
    try:
        return (
            _called(key, *found.groups()) if (found := CALL.fullmatch(text)) else Axis(key, (*_split(text),))
        )
    except ValueError as error:
        raise ParamsError(f"-S {assignment}: {error}") from None


def _called(key: str, name: str, within: str) -> Axis:
    """Raises ValueError with the remedy."""
    bounds = tuple(_split(within))
    if name == "choice":
        return Axis(key, bounds)
    return Axis(key, _range(bounds)) if name == "range" else Axis(key, span=_span(name, bounds))


def _range(bounds: Sequence[str]) -> tuple[str, ...]:
    try:
        found = tuple(map(str, range(*map(int, bounds))))
    except (TypeError, ValueError):
        found = ()
    if not found:
        raise ValueError("range takes whole numbers: range(1,4) is 1, 2, 3, and range(0,10,5) is 0, 5")
    return found


def _span(name: str, bounds: Sequence[str]) -> Span:
    try:
        low, high = map(float, bounds)
    except ValueError:
        raise ValueError(f"{name} takes two numbers, as in {name}(1e-4,1e-2)") from None
    if not low < high or (name == "log" and low <= 0):
        raise ValueError(f"{name} goes from a lower {'positive ' * (name == 'log')}number to a higher one")
    whole = all(re.fullmatch(r"[+-]?\d+", bound) for bound in bounds)
    return Span(low, high, whole, log=name == "log")


def _split(text: str) -> Iterator[str]:
    """At its commas, but for those within brackets, braces, parentheses or a quoted value.

    Raises ValueError where nothing stands between two.
    """
    depth, quote, parts = 0, "", [""]
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not parts[-1].strip():
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in ")}]":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    values = [part.strip() for part in parts]
    if len(values) > 1 and "" in values:
        raise ValueError("a value is missing beside a comma")
    yield from values
