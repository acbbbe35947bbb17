"""Figures for rows with any number of labels. Numpy only.

A metric takes what is true, (rows, classes) of 0 and 1, and probabilities (rows, classes), each class by
itself; a class is said to hold from one half on.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.figures.metrics import SMALLEST, Metric, ratio
from tasks.evaluation.predictions import Array


def chosen(probabilities: Array) -> NDArray[np.bool_]:
    return np.asarray(probabilities >= 0.5)


def per_class(actual: Array, probabilities: Array) -> dict[str, Array]:
    """precision, recall, f1 (classes,) float64, rows (classes,) int64; a ratio without denominator is 0."""
    hits, given, said = _counts(actual, probabilities, axis=0)
    return {
        "precision": ratio(hits, said),
        "recall": ratio(hits, given),
        "f1": ratio(2 * hits, given + said),
        "rows": given,
    }


def row_f1(actual: Array, probabilities: Array) -> Array:
    """F1 of each row's labels (rows,); 1 where the row has none and none is said."""
    hits, given, said = _counts(actual, probabilities, axis=1)
    return np.where(given + said > 0, ratio(2 * hits, given + said), 1.0)


def exact_match(actual: Array, probabilities: Array) -> float:
    """Share of rows with all labels right and none too many: subset accuracy."""
    return float(np.mean((chosen(probabilities) == (actual > 0)).all(axis=1)))


def row_f1_mean(actual: Array, probabilities: Array) -> float:
    """Mean of the rows' F1 (Godbole & Sarawagi 2004)."""
    return float(row_f1(actual, probabilities).mean())


def micro_f1(actual: Array, probabilities: Array) -> float:
    """F1 of all labels of all rows together; 1 where there are none and none is said."""
    hits, given, said = (count.sum() for count in _counts(actual, probabilities, axis=0))
    return float(2 * hits / (given + said)) if given + said else 1.0


def macro_f1(actual: Array, probabilities: Array) -> float:
    """Mean F1 of the classes that occur or are said; 1 where there is none."""
    hits, given, said = _counts(actual, probabilities, axis=0)
    either = given + said > 0
    return float(np.mean(2 * hits[either] / (given + said)[either])) if either.any() else 1.0


def mean_average_precision(actual: Array, probabilities: Array) -> float:
    """Mean over the classes that occur of the sum of precision times gain in recall, from the surest row
    down; rows that are equally sure count at once. 0 where no class occurs."""
    occurring = np.flatnonzero(actual.any(axis=0))
    values = [_average_precision(actual[:, place], probabilities[:, place]) for place in occurring]
    return float(np.mean(values)) if values else 0.0


def log_loss(actual: Array, probabilities: Array) -> float:
    """Mean over rows and classes of -ln p(what is true), p not below float32's epsilon."""
    given = np.where(actual > 0, probabilities, 1 - probabilities).astype(np.float64)
    return float(-np.log(np.maximum(given, SMALLEST)).mean())


def _counts(actual: Array, probabilities: Array, *, axis: int) -> tuple[Array, Array, Array]:
    """Labels that are said and true, that are true, that are said; summed over `axis`."""
    said, given = chosen(probabilities), actual > 0
    return (said & given).sum(axis=axis), given.sum(axis=axis), said.sum(axis=axis)


def _average_precision(actual: Array, scores: Array) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(actual[order] > 0)
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last of equals
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float(precision @ np.diff(recall, prepend=0.0))


METRICS: Mapping[str, Metric] = {
    "exact_match": Metric(exact_match, higher_is_better=True, anywhere=True),
    "row_f1": Metric(row_f1_mean, higher_is_better=True, anywhere=True),
    "micro_f1": Metric(micro_f1, higher_is_better=True, anywhere=True),
    "macro_f1": Metric(macro_f1, higher_is_better=True),
    "mean_average_precision": Metric(mean_average_precision, higher_is_better=True),
    "log_loss": Metric(log_loss, higher_is_better=False, anywhere=True),
}
