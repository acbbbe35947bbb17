"""How sure a mean over seeds and test rows is, and how sure a difference: plain arrays in, numbers out.

What is right is a table (seeds, rows): a strategy is trained once a seed and answers the same rows each time.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.gate.pairing import mcnemar

Table = NDArray[Any]  # (seeds, rows): of truth values, or of their differences
CONFIDENCE = 0.95
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean with its interval, and the least and most of the means that single seeds have."""

    value: float
    low: float
    high: float
    least: float
    most: float


class Gain(NamedTuple):
    """A paired difference of accuracy. p_value: the largest that any seed has in the exact McNemar test."""

    value: float
    low: float
    high: float
    p_value: float


def estimate(right: Table) -> Estimate:
    """Mean of `right` (seeds, rows) and its interval, which rows and seeds are drawn for."""
    means = right.mean(axis=1)
    return Estimate(float(right.mean()), *interval(right), float(means.min()), float(means.max()))


def interval(values: Table) -> tuple[float, float]:
    """Percentile interval of the mean of `values` (seeds, rows): rows are drawn with replacement, and so are
    seeds, independently (the pigeonhole bootstrap of Owen, 2007, Annals of Applied Statistics 1:386, which
    errs on the wide side). What has one seed, as a contestant without chance, has rows drawn alone.
    """
    seeds, rows = values.shape
    each = values @ _shares(rows, 0).T  # (seeds, resamples)
    means = (each * _shares(seeds, 1).T).sum(axis=0)  # (resamples,)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def gain(ours: Table, theirs: Table) -> Gain:
    """`ours` over `theirs`, both (seeds, rows) of truth values on the same rows; the same seed is a pair, and
    one seed of theirs stands against each of ours."""
    theirs = np.broadcast_to(theirs, ours.shape)
    differences = ours.astype(np.int8) - theirs.astype(np.int8)
    worst = max(beaten(mine, other) for mine, other in zip(ours, theirs, strict=True))
    return Gain(float(differences.mean()), *interval(differences), worst)


def beaten(ours: Table, theirs: Table) -> float:
    """McNemar's two-sided p where ours has more of the same rows (rows,) right, else 1: nothing is beaten."""
    wins, losses = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    return mcnemar(wins, losses) if wins > losses else 1.0


def either(*gains: Gain) -> float:
    """p that none of these beats the other, whichever is looked at (Bonferroni)."""
    return min(1.0, len(gains) * min(found.p_value for found in gains))


@lru_cache(maxsize=8)
def _shares(count: int, stream: int) -> NDArray[np.float64]:
    """How much each of `count` counts in each resample: (resamples, count), rows of sum 1; the same for every
    contestant."""
    generator = np.random.default_rng((stream, count))
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
