"""Figures of how good answers are, each with a bootstrap interval. Numpy only.

A metric takes what is true of the rows and what is said of them and returns one number. Those of METRICS, at
the foot, are for rows with one label: labels (rows,) int64 and probabilities (rows, classes). The table says
of each which direction is better.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.predictions import Array, Labels

BINS = 15  # of confidence, equally wide (Guo et al. 2017, section 4)
SMALLEST = float(np.finfo(np.float32).eps)  # probabilities are float32: below this a logarithm says nothing


@dataclass(frozen=True)
class Metric:
    """anywhere: it says something of any rows, be they of one class alone."""

    score: Callable[[Array, Array], float]
    higher_is_better: bool
    anywhere: bool = False

    def __call__(self, actual: Array, answer: Array) -> float:
        return float(self.score(actual, answer))


@dataclass(frozen=True)
class Interval:
    """A metric's value on the test rows and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Occurrences:
    """Which row has which class: `rows` and `classes` (times,) int64, where a row of words may repeat one."""

    rows: Array
    classes: Array

    def where(self, mask: NDArray[np.bool_]) -> "Occurrences":
        return Occurrences(self.rows[mask], self.classes[mask])

    def count(self, weights: Array, classes: int) -> Array:
        """(classes,) float64, a row counted as often as its weight says."""
        return np.bincount(self.classes, weights=weights[self.rows], minlength=classes)


@dataclass(frozen=True, eq=False)
class Sampling:
    """How intervals are found. groups: (rows,) int64; rows of one number say nearly the same."""

    resamples: int
    confidence: float
    seed: int
    groups: NDArray[np.int64] | None = None

    def of(self, mask: NDArray[np.bool_]) -> "Sampling":
        """For the rows of `mask` alone."""
        return self if self.groups is None else replace(self, groups=self.groups[mask])


def measure(
    actual: Array, answer: Array, metrics: Mapping[str, Metric], sampling: Sampling
) -> dict[str, Interval]:
    """Each metric with its interval."""
    ranges = bootstrap(
        actual,
        answer,
        metrics,
        resamples=sampling.resamples,
        confidence=sampling.confidence,
        seed=sampling.seed,
        groups=sampling.groups,
    )
    return {name: Interval(metric(actual, answer), *ranges[name]) for name, metric in metrics.items()}


def bootstrap(
    actual: Array,
    answer: Array,
    metrics: Mapping[str, Metric],
    *,
    resamples: int,
    confidence: float,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over rows drawn with replacement (Efron & Tibshirani 1993, chapter 13).

    groups: (rows,), numbers of groups that are drawn whole, since their rows are not independent (Field &
    Welsh 2007, section 3); None where each row stands for itself. The same seed draws the same rows for every
    contestant. Returns metric -> (low, high).
    """
    draw, generator = drawing(len(actual), groups), np.random.default_rng(seed)
    values = np.empty((resamples, len(metrics)))
    for number in range(resamples):
        drawn = draw(generator)
        some, those = actual[drawn], answer[drawn]
        values[number] = [metric(some, those) for metric in metrics.values()]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)  # (metrics,) each
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(metrics)}


def class_ranges(
    given: Occurrences, said: Occurrences, right: Occurrences, sampling: Sampling, *, rows: int, classes: int
) -> dict[str, Array]:
    """Percentile intervals of each class's precision, recall and f1 over rows or groups, as in `bootstrap`:
    (2, classes) float64 each, low and high. Resamples in which a ratio has no denominator do not count for
    it; 0 where it never has one.

    right: what of `said` is given.
    """
    draw, generator = drawing(rows, sampling.groups), np.random.default_rng(sampling.seed)
    values = np.empty((sampling.resamples, 3, classes))
    for number in range(sampling.resamples):
        weights = np.bincount(draw(generator), minlength=rows)
        hits, actual, predicted = (one.count(weights, classes) for one in (right, given, said))
        with np.errstate(invalid="ignore"):  # 0 / 0: no hit without both
            values[number] = hits / predicted, hits / actual, 2 * hits / (actual + predicted)
    values[:, np.isnan(values).all(axis=0)] = 0
    tail = (1 - sampling.confidence) / 2
    found = np.nanquantile(values, [tail, 1 - tail], axis=0)  # (2, 3, classes)
    return {name: found[:, place] for place, name in enumerate(("precision", "recall", "f1"))}


def confusion(labels: Labels, chosen: Labels, classes: int) -> NDArray[np.int64]:
    """Counts, (actual, predicted) = (classes, classes)."""
    return np.bincount(labels * classes + chosen, minlength=classes**2).reshape(classes, classes)


def per_class(labels: Labels, chosen: Labels, classes: int) -> dict[str, Array]:
    """precision, recall, f1 (classes,) float64, rows (classes,) int64; a ratio without denominator is 0."""
    table = confusion(labels, chosen, classes)
    hits, actual, predicted = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, actual),
        "f1": ratio(2 * hits, actual + predicted),
        "rows": actual,
    }


def reliability(labels: Labels, probabilities: Array, bins: int = BINS) -> dict[str, Array]:
    """Mean confidence in the chosen class, accuracy and rows of each bin of confidence that has rows.

    Bin k holds confidence in (k / bins, (k + 1) / bins].
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    rows = np.bincount(place, minlength=bins)
    held = rows > 0
    return {
        "confidence": np.bincount(place, weights=confidence, minlength=bins)[held] / rows[held],
        "accuracy": np.bincount(place, weights=correct, minlength=bins)[held] / rows[held],
        "rows": rows[held],
    }


def accuracy(labels: Labels, probabilities: Array) -> float:
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def macro_f1(labels: Labels, probabilities: Array) -> float:
    """Mean F1 of the classes that occur or are predicted; a class absent from both has no F1."""
    classes = probabilities.shape[1]
    table = confusion(labels, probabilities.argmax(axis=1), classes)
    either = table.sum(axis=1) + table.sum(axis=0)
    return float(np.mean(2 * np.diag(table)[either > 0] / either[either > 0]))


def mcc(labels: Labels, probabilities: Array) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004, R_K); 0 where a side has one class."""
    table = confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1]).astype(np.float64)
    rows, actual, predicted = table.sum(), table.sum(axis=1), table.sum(axis=0)
    spread = (rows**2 - predicted @ predicted) * (rows**2 - actual @ actual)
    return float((np.trace(table) * rows - actual @ predicted) / np.sqrt(spread)) if spread else 0.0


def log_loss(labels: Labels, probabilities: Array) -> float:
    """Mean -ln p(actual class), natural units, p not below float32's epsilon."""
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(given, SMALLEST)).mean())


def brier(labels: Labels, probabilities: Array) -> float:
    """Mean squared distance to the one-hot truth, summed over classes: 0 to 2 (Brier 1950)."""
    squares = np.square(probabilities, dtype=np.float64).sum(axis=1)
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(np.mean(squares - 2 * given + 1))


def ece(labels: Labels, probabilities: Array) -> float:
    """Expected calibration error over 15 equal bins (Guo et al. 2017, eq. 3). Resampling biases it upward, so
    its value may lie near the low end of its interval."""
    table = reliability(labels, probabilities)
    return float(table["rows"] @ np.abs(table["accuracy"] - table["confidence"]) / len(labels))


def drawing(
    rows: int, groups: NDArray[np.int64] | None
) -> Callable[[np.random.Generator], NDArray[np.int64]]:
    """Row numbers of one resample: of so many rows, or of so many groups."""
    if groups is None:
        return lambda generator: generator.integers(0, rows, size=rows)
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)

    def draw(generator: np.random.Generator) -> NDArray[np.int64]:
        drawn = generator.integers(0, len(starts), size=len(starts))
        lengths = sizes[drawn]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        return np.asarray(order[np.repeat(starts[drawn], lengths) + within])

    return draw


def ratio(above: Array, below: Array) -> Array:
    """above / below, 0 where below is 0; both (n,)."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(accuracy, higher_is_better=True, anywhere=True),
    "macro_f1": Metric(macro_f1, higher_is_better=True),
    "micro_f1": Metric(accuracy, higher_is_better=True),  # one label a row: micro F1 equals accuracy
    "mcc": Metric(mcc, higher_is_better=True),
    "log_loss": Metric(log_loss, higher_is_better=False, anywhere=True),
    "brier": Metric(brier, higher_is_better=False, anywhere=True),
    "ece": Metric(ece, higher_is_better=False),
}
