"""Two contestants on the same rows: what a paired test says of the difference.

Nothing here knows what a score is, but that each row has one and that higher is better. Rows of one group
are not independent (near-duplicates, several questions about one text): where a group has more than one row,
groups take the place of rows, in tests as in intervals (Field & Welsh 2007, section 3).
"""

from dataclasses import dataclass
from math import ceil, log2, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from tasks.evaluation.predictions import Array

FLIPS = 10_000  # random signs of the permutation test: an error of p = .05 by .002 (one standard deviation)
AT_ONCE = 2**22  # numbers drawn at once, at most


@dataclass(frozen=True)
class Comparison:
    """A candidate against another contestant on the same rows."""

    measure: str  # what the score is
    rows: int
    score: float  # the candidate's: mean over rows, or a metric of all of them
    other: float  # the other's
    wins: int  # rows on which the candidate's is higher
    losses: int  # rows on which the other's is
    difference: float  # score - other
    low: float  # paired bootstrap interval of the difference
    high: float
    confidence: float
    p_value: float  # two-sided: exact McNemar where single rows are right or wrong, by permutation of other
    # scores, by bootstrap of a metric that rows do not have
    detectable: float  # smallest true difference that would be found 4 times out of 5
    groups: int | None = None  # that the rows form; None where each stands for itself

    def better(self, alpha: float) -> bool:
        return self.difference > 0 and self.p_value <= alpha

    def worse(self, alpha: float) -> bool:
        return self.difference < 0 and self.p_value <= alpha


def compare_scores(
    ours: Array,
    theirs: Array,
    *,
    measure: str,
    right_or_wrong: bool,
    confidence: float,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> Comparison:
    """The candidate's scores against the other's, (rows,) float64 each, at least one; 1 or 0 where a row is
    `right_or_wrong`. groups: (rows,), equal where rows are not independent."""
    rows, wins, losses = len(ours), int((ours > theirs).sum()), int((ours < theirs).sum())
    apart, numbers = ours - theirs, numbered(groups)
    p_value, found = _tested(apart, numbers, right_or_wrong=right_or_wrong, alpha=1 - confidence, seed=seed)
    low, high = interval(
        apart,
        right_or_wrong=right_or_wrong,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        groups=numbers,
    )
    return Comparison(
        measure=measure,
        rows=rows,
        score=float(ours.mean()),
        other=float(theirs.mean()),
        wins=wins,
        losses=losses,
        difference=(wins - losses) / rows if right_or_wrong else float(apart.mean()),
        low=low,
        high=high,
        confidence=confidence,
        p_value=p_value,
        detectable=found,
        groups=None if numbers is None else int(numbers.max()) + 1,
    )


def numbered(groups: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """The groups of rows (rows,) as 0, 1, 2, …; None where each row is a group by itself."""
    if groups is None:
        return None
    found, numbers = np.unique(groups, return_inverse=True)
    return numbers if len(found) < len(numbers) else None


def interval(
    apart: Array,
    *,
    right_or_wrong: bool,
    confidence: float,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> tuple[float, float]:
    """Paired bootstrap interval of the mean of differences (rows,), at least one."""
    numbers = numbered(groups)
    if numbers is not None:
        means = group_resamples(apart, numbers, resamples=resamples, seed=seed)
    elif right_or_wrong:
        wins, losses = int((apart > 0).sum()), int((apart < 0).sum())
        means = difference_resamples(len(apart), wins, losses, resamples=resamples, seed=seed)
    else:
        means = mean_resamples(apart, resamples=resamples, seed=seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p of equal accuracy: discordant pairs fall either way like a fair coin (McNemar 1947).

    The exact binomial form; without a discordant pair, 1.
    """
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def difference_resamples(rows: int, wins: int, losses: int, *, resamples: int, seed: int) -> Array:
    """(wins - losses) / rows of rows drawn with replacement, in pairs: (resamples,).

    A drawn row is a win, a loss or neither, so a resample's counts are one multinomial draw: the same law as
    drawing rows one by one (Efron & Tibshirani 1993, chapter 13).
    """
    shares = np.array([wins, losses, rows - wins - losses]) / rows
    counts = np.random.default_rng(seed).multinomial(rows, shares, size=resamples)  # (resamples, 3)
    return np.asarray((counts[:, 0] - counts[:, 1]) / rows)


def fewest(alpha: float) -> int:
    """Rows with which a paired test can decide at `alpha`, if all of them fall the same way: the two-sided p
    of n such rows is 2 / 2^n."""
    return ceil(log2(2 / alpha))


def detectable(rows: int, discordant: int, *, alpha: float, power: float = 0.8) -> float:
    """Smallest difference d of accuracy that a paired test at `alpha` finds with probability `power`.

    Connor 1987 (Biometrics 43:207): rows = (z_a sqrt(q) + z_b sqrt(q - d^2))^2 / d^2 with q the share of
    discordant pairs, here the observed one (at least one pair); solved for d. An approximation.
    """
    share = max(discordant, 1) / rows
    z_a, z_b = norm.isf(alpha / 2), norm.isf(1 - power)
    root = sqrt(max(rows + z_b**2 - z_a**2, 0.0))
    return float(min(1.0, sqrt(share) * (z_a * sqrt(rows) + z_b * root) / (rows + z_b**2)))


def permutation(differences: Array, *, seed: int, flips: int = FLIPS) -> float:
    """Two-sided p of a mean difference of 0: each row's difference may as well have the other sign
    (Fisher 1935, The Design of Experiments, section 21).

    Signs are drawn `flips` times; the outcome itself counts as one of them, so that p is never 0 (Phipson &
    Smyth 2010). Without a difference, 1.
    """
    sizes = np.abs(differences[differences != 0])
    if not sizes.size:
        return 1.0
    generator, found = np.random.default_rng(seed), abs(float(differences.sum()))
    close = found - 1e-12 * sizes.sum()  # the same differences added in another order
    extreme, part = 0, max(1, AT_ONCE // sizes.size)
    for start in range(0, flips, part):
        signs = generator.integers(0, 2, (min(part, flips - start), sizes.size), dtype=np.int8)
        extreme += int((np.abs(2 * (signs @ sizes) - sizes.sum()) >= close).sum())
    return (extreme + 1) / (flips + 1)


def mean_resamples(differences: Array, *, resamples: int, seed: int) -> Array:
    """The mean difference of rows drawn with replacement, in pairs: (resamples,)."""
    rows, generator = len(differences), np.random.default_rng(seed)
    means = [differences[generator.integers(0, rows, size=rows)].mean() for _ in range(resamples)]
    return np.array(means)


def group_resamples(differences: Array, numbers: NDArray[np.int64], *, resamples: int, seed: int) -> Array:
    """The mean difference of the rows of groups (`numbered`) drawn whole with replacement: (resamples,)."""
    sums, sizes = np.bincount(numbers, differences), np.bincount(numbers)
    generator, groups = np.random.default_rng(seed), len(sizes)
    drawn = (generator.integers(0, groups, size=groups) for _ in range(resamples))
    return np.array([sums[some].sum() / sizes[some].sum() for some in drawn])


def detectable_mean(differences: Array, *, alpha: float, power: float = 0.8) -> float:
    """Smallest mean difference that a paired test at `alpha` finds with probability `power`, by the normal
    approximation from the spread of the observed differences."""
    return detectable_by(float(differences.std()) / sqrt(len(differences)), alpha=alpha, power=power)


def detectable_by(error: float, *, alpha: float, power: float = 0.8) -> float:
    """The same of a difference with this standard error."""
    return float((norm.isf(alpha / 2) + norm.isf(1 - power)) * error)


def _tested(
    apart: Array, numbers: NDArray[np.int64] | None, *, right_or_wrong: bool, alpha: float, seed: int
) -> tuple[float, float]:
    """p, and the difference that is detectable: of right and wrong never less than by single rows."""
    rows, wins, losses = len(apart), int((apart > 0).sum()), int((apart < 0).sum())
    least = detectable(rows, wins + losses, alpha=alpha) if right_or_wrong else 0.0
    if numbers is not None:
        sums = np.bincount(numbers, apart)
        found = detectable_mean(sums * len(sums) / rows, alpha=alpha)
        return permutation(sums, seed=seed), max(least, found)
    if right_or_wrong:
        return mcnemar(wins, losses), least
    return permutation(apart, seed=seed), detectable_mean(apart, alpha=alpha)
