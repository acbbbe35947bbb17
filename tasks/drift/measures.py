"""How unlike new rows are to those that were trained on, each number beside what chance makes of it.

Every measure is 0 where both have the same distribution and 1 where they have nothing in common. `chance` is
what one random division of the same rows in a hundred exceeds (Fisher's permutation test): few rows are
never quite like many, so that a value alone says nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from scipy.special import rel_entr
from scipy.stats import chi2_contingency, ks_2samp, permutation_test
from sklearn.feature_extraction.text import CountVectorizer

Array = NDArray[Any]
FEW = 30  # rows; of fewer a share of one half is known to 18 points at best (binomial, 95 %)
LEVEL = 0.01  # four measures then differ by chance once in 25 looks
RESAMPLES = 199  # random divisions: the smallest p is 1 / 200
BINS = 10
SHOWN = 12  # parts of a measure that are told


@dataclass(frozen=True)
class Part:
    """A class, a word or a range: its share among new and among training rows."""

    name: str
    new: float
    trained: float


@dataclass(frozen=True)
class Measure:
    """value: 0 alike, 1 nothing in common. chance: what LEVEL of random divisions exceed. rows: new, trained
    on."""

    name: str
    value: float
    chance: float
    p_value: float
    rows: tuple[int, int]
    told: str
    parts: tuple[Part, ...] = ()

    @property
    def excess(self) -> float:
        """By how much chance does not explain it; 0 where it does."""
        return max(0.0, self.value - self.chance)

    @property
    def differs(self) -> bool:
        return self.value > self.chance


def too_few(new: int, trained: int) -> str | None:
    """Why nothing can be said of so many rows, if so."""
    if min(new, trained) >= FEW:
        return None
    return f"too few rows to say: {new:,} new, {trained:,} trained on; from {FEW} on"


def numbers(name: str, unit: str, new: Sequence[float], trained: Sequence[float]) -> Measure:
    """Jensen-Shannon divergence of shares between the deciles of all rows (Lin, 1991, Divergence measures
    based on the Shannon entropy), and Kolmogorov and Smirnov's largest distance of cumulated shares."""
    pooled = np.concatenate([new, trained]).astype(np.float64)
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, BINS + 1)[1:-1], method="lower"))
    places = np.searchsorted(edges, pooled, side="left")
    middle, largest = np.median(new), ks_2samp(new, trained).statistic
    told = f"median {middle:g} {unit}, trained on {np.median(trained):g}; Kolmogorov-Smirnov {largest:.3f}"
    names = _ranges(pooled, places)
    return _counted(name, _one_hot(places, len(names)), len(new), told, names, ordered=True)


def lengths(new: Sequence[str], trained: Sequence[str]) -> Measure:
    """Of texts, in words between white space."""
    return numbers("length", "words", *([len(text.split()) for text in texts] for texts in (new, trained)))


def words(new: Sequence[str], trained: Sequence[str]) -> Measure | None:
    """Jensen-Shannon divergence of the frequencies of words in lower case, and the share of the new rows'
    words that no training row has. None where either has no words."""
    counter = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    try:
        counts = counter.fit_transform([*new, *trained])
    except ValueError:  # scikit-learn's word for texts without any
        return None
    ours, theirs = _summed(counts, slice(len(new))), _summed(counts, slice(len(new), None))
    if not (ours.sum() and theirs.sum()):
        return None
    unseen = ours[theirs == 0].sum() / ours.sum()
    told = f"{100 * unseen:.1f} % of the new rows' words are in none of these training rows"
    return _counted("words", counts, len(new), told, list(counter.get_feature_names_out()))


def classes(new: Sequence[str], trained: Sequence[str]) -> Measure:
    """Jensen-Shannon divergence of the shares of classes, and Pearson's chi-square test of the same table."""
    names = sorted({*new, *trained})
    numbers = {name: number for number, name in enumerate(names)}
    counts = _one_hot(np.array([numbers[name] for name in (*new, *trained)]), len(names))
    told = "one class alone"
    if len(names) > 1:
        table = [[Counter(rows)[name] for name in names] for rows in (new, trained)]
        told = f"chi-square p = {chi2_contingency(table).pvalue:.3f}"
    if fresh := sorted(set(new) - set(trained)):
        told += f"; new: {', '.join(fresh[:SHOWN])}"
    return _counted("classes", counts, len(new), told, names)


def states(new: Array, trained: Array) -> Measure:
    """Energy coefficient of inhomogeneity of a model's states (rows, width): the energy distance as a share
    of the largest that the distances allow (Székely and Rizzo, 2013, Energy statistics, 1249-1272)."""
    both = np.concatenate([new, trained])
    distances = cdist(both, both)
    told = "mean states of the converted checkpoint, before any training; energy distance"
    return _tested("states", len(new), len(trained), lambda x, y: _energy(distances, x, y), told)


def _energy(distances: Array, new: Array, trained: Array) -> float:
    across = distances[np.ix_(new, trained)].mean()
    within = (distances[np.ix_(rows, rows)].mean() for rows in (new, trained))
    return float((2 * across - sum(within)) / (2 * across)) if across else 0.0


def _counted(
    name: str, counts: csr_matrix, new: int, told: str, names: Sequence[str], *, ordered: bool = False
) -> Measure:
    """Of counts (rows, categories), the new rows first."""
    rows = counts.shape[0]
    terms = _terms(_summed(counts, slice(new)), _summed(counts, slice(new, None)))
    shown = range(len(names)) if ordered else np.argsort(-terms, kind="stable")[:SHOWN]
    shares = [_shares(_summed(counts, each)) for each in (slice(new), slice(new, None))]
    parts = tuple(Part(names[place], *(float(share[place]) for share in shares)) for place in shown)

    def statistic(x: Array, y: Array) -> float:
        return float(_terms(_summed(counts, x), _summed(counts, y)).sum())

    return _tested(name, new, rows - new, statistic, told, parts)


def _tested(
    name: str,
    new: int,
    trained: int,
    statistic: Callable[[Array, Array], float],
    told: str,
    parts: tuple[Part, ...] = (),
) -> Measure:
    """`statistic` of the places of new and trained rows, and of random divisions of all of them."""
    places = np.arange(new + trained)
    found = permutation_test(
        (places[:new], places[new:]),
        lambda x, y: statistic(x.astype(np.int64), y.astype(np.int64)),
        vectorized=False,
        n_resamples=RESAMPLES,
        alternative="greater",
        rng=np.random.default_rng(0),  # the same rows tell the same
    )
    chance = float(np.quantile(found.null_distribution, 1 - LEVEL))
    return Measure(name, float(found.statistic), chance, float(found.pvalue), (new, trained), told, parts)


def _terms(new: Array, trained: Array) -> Array:
    """What each category adds to the divergence, in bits: they sum to at most 1."""
    p, q = _shares(new), _shares(trained)
    middle = (p + q) / 2
    return np.asarray((rel_entr(p, middle) + rel_entr(q, middle)) / (2 * np.log(2)))


def _shares(counts: Array) -> Array:
    return np.asarray(counts / max(counts.sum(), 1))


def _summed(counts: csr_matrix, rows: Any) -> Array:
    """Over these rows: (categories,)."""
    return np.asarray(counts[rows].sum(axis=0), dtype=np.float64).ravel()


def _one_hot(places: Array, categories: int) -> csr_matrix:
    ones = np.ones(len(places))
    return csr_matrix((ones, (np.arange(len(places)), places)), shape=(len(places), categories))


def _ranges(values: Array, places: Array) -> list[str]:
    """What is really in each bin: 3–7. A bin that nothing is in has no name of its own."""
    held = (values[places == place] for place in range(int(places.max()) + 1))
    ends = [(each.min(), each.max()) if len(each) else (None, None) for each in held]
    return ["–" if low is None else f"{low:g}" if low == high else f"{low:g}–{high:g}" for low, high in ends]
