"""How much worse than the champion a candidate may be: in a metric, and in parts of the test rows.

All bounds are one-sided ends of a paired bootstrap over rows (Efron & Tibshirani 1993, chapter 13), or over
groups of rows that are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation import judging
from tasks.evaluation.figures.metrics import Metric, drawing
from tasks.evaluation.gate import pairing
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
    view, rows = judging.find(candidate.kind).view, len(candidate.ids)
    actual, ours = view(candidate.actual, candidate.answer, labels)
    _, theirs = view(champion.actual, champion.answer, labels)
    sign = 1 if metric.higher_is_better else -1

    def apart(drawn: Array) -> float:
        return sign * (metric(actual[drawn], ours[drawn]) - metric(actual[drawn], theirs[drawn]))

    draw, generator = drawing(rows, pairing.numbered(groups)), np.random.default_rng(seed)
    found = [apart(draw(generator)) for _ in range(resamples)]
    low, high = np.quantile(found, [alpha, 1 - alpha])
    each = metric(actual, ours), metric(actual, theirs)
    return Change(rows, *each, sign * (each[0] - each[1]), float(low), float(high))


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
