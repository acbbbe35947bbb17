"""What the gate asks of a candidate's answers, check by check; each tells in numbers what it found.

A check promotes where its condition holds, rejects where the candidate is shown to be worse, and holds
otherwise: where the rows cannot tell, and where nobody knows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation import judging
from tasks.evaluation.gate import margins, pairing
from tasks.evaluation.gate.margins import Change
from tasks.evaluation.gate.pairing import Comparison
from tasks.evaluation.predictions import Array, Predictions
from tasks.params import GateParams

Outcome = Literal["promote", "hold", "reject"]
CHAMPION = "champion"  # the rival that is no baseline


@dataclass(frozen=True)
class Check:
    """One condition; without figures where nobody knows. `parts`: of what it is made up, each one's own."""

    name: str
    outcome: Outcome
    sentence: str
    figures: Mapping[str, float] = field(default_factory=dict)
    parts: tuple["Check", ...] = ()

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` makes of it, and JSON of that."""
        return cls(**{**kept, "parts": tuple(cls.read(part) for part in kept["parts"])})


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the gate looks at. What could not be had is None, and `faults` says why.

    baselines: contestant -> answers; slices: name -> which of the test rows, (rows,) bool; groups: (rows,)
    int64, equal where rows are not independent, or None where all are; proofs: level of the conversion ->
    what it found; judgements: candidates judged on these test rows, this one included.
    """

    candidate: Predictions
    champion: Predictions | None = None
    baselines: Mapping[str, Predictions] = field(default_factory=dict)
    labels: Sequence[str] = ()
    slices: Mapping[str, Array] | None = None
    groups: NDArray[np.int64] | None = None
    proofs: Mapping[str, str] | None = None
    ece: float | None = None  # expected calibration error on the test rows, as the model is served
    size: int | None = None  # bytes of the model directory
    latency_ratio: float | None = None  # the candidate's time to answer, as a multiple of the champion's
    judgements: int = 1
    faults: Mapping[str, str] = field(default_factory=dict)  # name of the field -> why it is None


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """alpha: two-sided level of the tests, and the one-sided level of what must not be worse."""

    alpha: float
    resamples: int
    seed: int


def enough_rows(evidence: Evidence, comparisons: Mapping[str, Comparison], alpha: float) -> Check:
    """Whether so many test rows can decide anything, and from which difference on they usually do."""
    rows, numbers, needed = (
        len(evidence.candidate.ids),
        pairing.numbered(evidence.groups),
        pairing.fewest(alpha),
    )
    groups = None if numbers is None else int(numbers.max()) + 1
    known, figures = f"{rows:,} test rows{_in_groups(groups)}", {"rows": float(rows)}
    if (rows if groups is None else groups) < needed:
        told = f"{known} decide nothing at {alpha:g}, even if all fell one way: {needed} can"
        return Check("test rows", "hold", told, {**figures, "needed": needed})
    if not comparisons:
        return Check("test rows", "promote", f"{known}, and nothing to compare with", figures)
    rival, found = max(comparisons.items(), key=lambda item: (item[0] == CHAMPION, item[1].detectable))
    told = (
        f"{known} show differences of {found.measure} from about {decimal(found.detectable)} on, "
        f"4 times out of 5 ({rival})"
    )
    return Check("test rows", "promote", told, {**figures, "detectable": found.detectable})


def beats(name: str, found: Comparison, *, alpha: float, margin: float) -> Check:
    """A higher score with p <= alpha, two-sided, and an interval above `margin`."""
    told, figures = sentence(name, found), numbers(asdict(found))
    if found.worse(alpha):
        return Check(name, "reject", told, figures)
    if not found.better(alpha):
        more = (
            f"not significantly better at {alpha:g}; {found.rows:,} rows show differences from about "
            f"{decimal(found.detectable)}"
        )
        return Check(name, "hold", f"{told}: {more}", figures)
    if margin and not found.low > margin:
        more = f"better, but not shown to be so by more than {margin:g}"
        return Check(name, "hold", f"{told}: {more}", figures)
    return Check(name, "promote", told + f": by more than {margin:g}" * bool(margin), figures)


def not_worse(evidence: Evidence, allowed: Mapping[str, float], resampling: Resampling) -> Iterator[Check]:
    """Non-inferiority in each metric of `allowed`: the whole one-sided interval lies above minus its margin.

    Raises ParamsError for metrics that rows of this kind do not have.
    """
    metrics = judging.find(evidence.candidate.kind).chosen(tuple(allowed), key="promotion.gate.not_worse")
    if evidence.champion is None:
        return
    for name, metric in metrics.items():
        found = margins.metric_change(
            evidence.candidate,
            evidence.champion,
            metric,
            labels=evidence.labels,
            alpha=resampling.alpha,
            resamples=resampling.resamples,
            seed=resampling.seed,
            groups=evidence.groups,
        )
        yield _within(name, found, allowed[name], resampling.alpha)


def protected(evidence: Evidence, conditions: GateParams, resampling: Resampling) -> Iterator[Check]:
    """No slice with enough rows is shown to be worse than the champion by more than the margin."""
    settings = conditions.slices
    if settings is None or evidence.champion is None:
        return
    if evidence.slices is None:
        yield unknown("slices", evidence)
        return
    found = margins.slice_changes(
        evidence.candidate,
        evidence.champion,
        evidence.slices,
        minimum=settings.minimum,
        alpha=resampling.alpha,
        resamples=resampling.resamples,
        seed=resampling.seed,
        groups=evidence.groups,
    )
    measure = judging.find(evidence.candidate.kind).measure
    named = "rows" if pairing.numbered(evidence.groups) is None else "groups of rows"
    parts = [
        _part(name, change, measure, settings.margin, resampling.alpha) for name, change in found.items()
    ]
    few = [
        Check(
            name,
            "promote",
            f"insufficient evidence: {margins.independent(mask, evidence.groups):,} of at least "
            f"{settings.minimum:,} {named}",
        )
        for name, mask in evidence.slices.items()
        if name not in found
    ]
    yield _summary(parts, few, settings.margin)


def sentence(name: str, found: Comparison) -> str:
    """A comparison in words and numbers: accuracy 0.871 < champion 0.884 on the same 2,000 rows, …"""
    sign = ">" if found.difference > 0 else "<" if found.difference < 0 else "="
    return (
        f"{found.measure} {decimal(found.score)} {sign} {name} {decimal(found.other)} on the same "
        f"{found.rows:,} rows{_in_groups(found.groups)}, paired {100 * found.confidence:g} % interval "
        f"[{decimal(found.low, '+')}, {decimal(found.high, '+')}], {p_text(found.p_value)}"
    )


def decimal(value: float, sign: str = "-") -> str:
    """Three decimals, or three digits of what is too large or too small for them."""
    return f"{value:{sign}.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:{sign}.3g}"


def p_text(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def unknown(name: str, evidence: Evidence) -> Check:
    return Check(
        name.replace("_", " "), "hold", f"{name.replace('_', ' ')}: {evidence.faults.get(name, 'not known')}"
    )


def numbers(values: Mapping[str, object]) -> dict[str, float]:
    """Those of `values` that are finite numbers, to six digits."""
    found = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return {name: float(f"{value:.6g}") for name, value in found.items() if np.isfinite(value)}


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _in_groups(groups: int | None) -> str:
    return "" if groups is None else f" in {counted(groups, 'group')}"


def _within(name: str, found: Change, margin: float, alpha: float) -> Check:
    title, figures = f"not worse in {name}", numbers(asdict(found))
    measure = name.replace("_", " ")
    told = _against(measure, found, alpha)
    if not np.isfinite([found.low, found.high]).all():
        return Check(title, "hold", f"{told}: cannot be computed for all draws of the test rows")
    if found.low >= -margin:
        return Check(title, "promote", f"{told}: not worse by more than {margin:g}", figures)
    if found.high < -margin:
        return Check(title, "reject", f"{told}: worse by more than {margin:g}", figures)
    return Check(title, "hold", f"{told}: not shown to be worse by at most {margin:g}", figures)


def _part(name: str, found: Change, measure: str, margin: float, alpha: float) -> Check:
    told, figures = f"{found.rows:,} rows, {_against(measure, found, alpha)}", numbers(asdict(found))
    if found.high < -margin:
        return Check(name, "reject", f"{told}: worse by more than {margin:g}", figures)
    how = "not worse by more than" if found.low >= -margin else "not shown to be worse by more than"
    return Check(name, "promote", f"{told}: {how} {margin:g}", figures)


def _against(measure: str, found: Change, alpha: float) -> str:
    """A gain is a difference of which more is better."""
    return (
        f"{measure} {decimal(found.ours)}, champion {decimal(found.theirs)}, gain "
        f"{decimal(found.difference, '+')}, one-sided {100 * (1 - alpha):g} % bounds "
        f"{decimal(found.low, '+')} and {decimal(found.high, '+')}"
    )


def _summary(parts: Sequence[Check], few: Sequence[Check], margin: float) -> Check:
    worse = [part for part in parts if part.outcome == "reject"]
    smaller = f"; {len(few)} more with too few rows are no evidence" * bool(few)
    if worse:
        told = "; ".join(f"slice {part.name}: {part.sentence}" for part in worse)
    elif parts:
        lowest = min(parts, key=lambda part: part.figures["difference"])
        told = (
            f"{counted(len(parts), 'slice')}, none shown to be worse than the champion by more than "
            f"{margin:g} (least: {lowest.name}, {decimal(lowest.figures['difference'], '+')}){smaller}"
        )
    else:
        told = f"no slice has enough rows to be judged{smaller}"
    figures = {"judged": float(len(parts)), "worse": float(len(worse)), "insufficient": float(len(few))}
    return Check("slices", "reject" if worse else "promote", told, figures, (*parts, *few))
