"""Figures for rows with a score: a metric takes actual and predicted numbers, (rows,) each. No torch."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from tasks.evaluation.figures.metrics import Metric
from tasks.evaluation.predictions import Array


def rmse(actual: Array, predicted: Array) -> float:
    """Root of the mean squared error, in the unit of the score."""
    return float(np.sqrt(np.mean(_errors(actual, predicted) ** 2)))


def mae(actual: Array, predicted: Array) -> float:
    """Mean absolute error, in the unit of the score."""
    return float(np.mean(np.abs(_errors(actual, predicted))))


def r2(actual: Array, predicted: Array) -> float:
    """Share of the scores' variance that is explained; 0 where they do not vary and are not all right."""
    left = np.sum(_errors(actual, predicted) ** 2)
    spread = np.sum((actual.astype(np.float64) - actual.mean(dtype=np.float64)) ** 2)
    return float(1 - left / spread) if spread else float(left == 0)


def pearson(actual: Array, predicted: Array) -> float:
    """Linear correlation; 0 where a side does not vary."""
    a, b = (side.astype(np.float64) - side.mean(dtype=np.float64) for side in (actual, predicted))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else 0.0


def spearman(actual: Array, predicted: Array) -> float:
    """Correlation of ranks, equal numbers sharing theirs; 0 where a side does not vary."""
    return pearson(rankdata(actual), rankdata(predicted))


def _errors(actual: Array, predicted: Array) -> Array:
    return predicted.astype(np.float64) - actual


METRICS: Mapping[str, Metric] = {
    "rmse": Metric(rmse, higher_is_better=False, anywhere=True),
    "mae": Metric(mae, higher_is_better=False, anywhere=True),
    "r2": Metric(r2, higher_is_better=True),
    "pearson": Metric(pearson, higher_is_better=True),
    "spearman": Metric(spearman, higher_is_better=True),
}
