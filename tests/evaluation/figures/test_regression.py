import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from tasks.evaluation.figures.regression import METRICS


def _random(rows=200):
    generator = np.random.default_rng(7)
    actual = generator.integers(0, 6, rows).astype(np.float32)  # many are equal
    return actual, (actual + generator.normal(size=rows)).round(1).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rmse", reference.root_mean_squared_error),
        ("mae", reference.mean_absolute_error),
        ("r2", reference.r2_score),
        ("pearson", lambda y, p: stats.pearsonr(y, p).statistic),
        ("spearman", lambda y, p: stats.spearmanr(y, p).statistic),
    ],
)
def test_metrics_equal_those_of_scikit_learn_and_scipy(name, expected):
    actual, predicted = _random()
    assert METRICS[name](actual, predicted) == pytest.approx(expected(actual, predicted), rel=1e-5)


def test_large_scores_lose_no_digits():
    actual = np.array([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3], np.float32)
    assert METRICS["r2"](actual, actual[[0, 1, 3, 2]]) == pytest.approx(0.6)


def test_what_does_not_vary_correlates_with_nothing():
    actual, flat = np.array([1, 2, 3], np.float32), np.full(3, 2, np.float32)
    assert METRICS["pearson"](actual, flat) == METRICS["spearman"](flat, actual) == 0.0
    assert METRICS["r2"](actual, flat) == 0.0
    assert (METRICS["r2"](flat, actual), METRICS["r2"](flat, flat)) == (0.0, 1.0)
