"""How much a candidate differs from another in a metric, and from the champion in parts of the test rows.

All bounds are ends of a paired bootstrap over rows (Efron & Tibshirani 1993, chapter 13), or over
groups of rows that are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation import judging
from tasks.evaluation.figures.metrics import Metric, drawing
from tasks.evaluation.gate import pairing
from tasks.evaluation.gate.pairing import Comparison
from tasks.evaluation.predictions import Array, Predictions


@dataclass(frozen=True)
class Change:
    """From the champion to the candidate, on the same rows; positive is better."""

    rows: int
    ours: float
    theirs: float
    difference: float
    low: float  # the true difference is above it, at the level asked for
    high: float  # and below this one


def metric_change(
    candidate: Predictions,
    champion: Predictions,
    metric: Metric,
    *,
    labels: Sequence[str],
    alpha: float,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> Change:
    """Of one metric; both must have answered the same rows, at least one. groups: (rows,), or each by itself.

    Figures are not numbers where some draw of the rows has no such metric.
    """
    ours, theirs, found = _resampled(candidate, champion, metric, labels, resamples, seed, groups)
    low, high = np.quantile(found, [alpha, 1 - alpha])
    sign = 1 if metric.higher_is_better else -1
    return Change(len(candidate.ids), ours, theirs, sign * (ours - theirs), float(low), float(high))


def metric_comparison(
    candidate: Predictions,
    rival: Predictions,
    name: str,
    *,
    labels: Sequence[str],
    confidence: float,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> Comparison:
    """In a metric that single rows do not have, such as F1, on the same rows, at least one.

    p is twice the share of draws that do not lie on the difference's own side of 0, or the level at which the
    percentile interval ends there (Davison & Hinkley 1997, section 5.4); the outcome itself counts as a draw.
    Of what less is better the negative is compared.

    Raises ParamsError for a metric that rows of this kind do not have.
    """
    metric = judging.find(candidate.kind).chosen((name,), key="promotion.gate.primary")[name]
    sign, title = (1, name) if metric.higher_is_better else (-1, f"negative {name}")
    ours, theirs, found = _resampled(candidate, rival, metric, labels, resamples, seed, groups)
    rows, numbers = judging.scores(candidate) - judging.scores(rival), pairing.numbered(groups)
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    difference = sign * (ours - theirs)
    beyond = int((~(found * np.sign(difference) > 0)).sum())  # so written, NaN is on neither side
    return Comparison(
        measure=title.replace("_", " "),
        rows=len(candidate.ids),
        score=sign * ours,
        other=sign * theirs,
        wins=int((rows > 0).sum()),
        losses=int((rows < 0).sum()),
        difference=difference,
        low=float(low),
        high=float(high),
        confidence=confidence,
        p_value=min(1.0, 2 * (beyond + 1) / (resamples + 1)),
        detectable=pairing.detectable_by(float(found.std()), alpha=1 - confidence),
        groups=None if numbers is None else int(numbers.max()) + 1,
    )


def _resampled(
    candidate: Predictions,
    rival: Predictions,
    metric: Metric,
    labels: Sequence[str],
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None,
) -> tuple[float, float, Array]:
    """The metric of both, and by how much the candidate is better in draws of the rows: (resamples,)."""
    view = judging.find(candidate.kind).view
    actual, ours = view(candidate.actual, candidate.answer, labels)
    _, theirs = view(rival.actual, rival.answer, labels)
    sign = 1 if metric.higher_is_better else -1

    def apart(drawn: Array) -> float:
        return sign * (metric(actual[drawn], ours[drawn]) - metric(actual[drawn], theirs[drawn]))

    draw, generator = drawing(len(candidate.ids), pairing.numbered(groups)), np.random.default_rng(seed)
    found = np.array([apart(draw(generator)) for _ in range(resamples)])
    return metric(actual, ours), metric(actual, theirs), found


def slice_changes(
    candidate: Predictions,
    champion: Predictions,
    slices: Mapping[str, Array],
    *,
    minimum: int,
    alpha: float,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, Change]:
    """Of the score of each slice, a mask (rows,), with at least `minimum` rows, or groups of rows."""
    right_or_wrong = judging.find(candidate.kind).right_or_wrong
    ours, theirs = judging.scores(candidate), judging.scores(champion)
    return {
        name: _change(
            ours[mask],
            theirs[mask],
            right_or_wrong=right_or_wrong,
            confidence=1 - 2 * alpha,
            resamples=resamples,
            seed=seed,
            groups=None if groups is None else groups[mask],
        )
        for name, mask in slices.items()
        if independent(mask, groups) >= minimum
    }


def independent(mask: Array, groups: NDArray[np.int64] | None) -> int:
    """Rows of `mask`, those of one group counted once."""
    return int(mask.sum()) if groups is None else len(np.unique(groups[mask]))


def _change(
    ours: Array,
    theirs: Array,
    *,
    right_or_wrong: bool,
    confidence: float,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None,
) -> Change:
    low, high = pairing.interval(
        ours - theirs,
        right_or_wrong=right_or_wrong,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        groups=groups,
    )
    each = float(ours.mean()), float(theirs.mean())
    return Change(len(ours), *each, float((ours - theirs).mean()), low, high)
