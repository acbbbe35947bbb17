import numpy as np
import pytest
from sklearn import metrics as reference

from tasks.evaluation.figures import multilabel
from tasks.evaluation.figures.multilabel import METRICS


def _random(rows=200, classes=5):
    generator = np.random.default_rng(7)
    actual = (generator.random((rows, classes)) < 0.3).astype(np.int8)
    answer = np.clip(0.4 * actual + 0.7 * generator.random((rows, classes)), 0.01, 0.99)
    return actual, answer.round(1).astype(np.float32)  # rounded: many are equal


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exact_match", lambda y, p: reference.accuracy_score(y, p >= 0.5)),
        ("micro_f1", lambda y, p: reference.f1_score(y, p >= 0.5, average="micro")),
        ("macro_f1", lambda y, p: reference.f1_score(y, p >= 0.5, average="macro")),
        ("row_f1", lambda y, p: reference.f1_score(y, p >= 0.5, average="samples", zero_division=1)),
        ("mean_average_precision", lambda y, p: reference.average_precision_score(y, p, average="macro")),
        ("log_loss", lambda y, p: reference.log_loss(y.ravel(), p.ravel().astype(np.float64))),
    ],
)
def test_metrics_equal_scikit_learns(name, expected):
    actual, answer = _random()
    assert METRICS[name](actual, answer) == pytest.approx(expected(actual, answer), abs=1e-6)


def test_classes_that_neither_occur_nor_are_said_have_no_say():
    actual, answer = np.array([[1, 0], [0, 0]], np.int8), np.array([[0.9, 0.1], [0.2, 0.1]], np.float32)
    assert METRICS["macro_f1"](actual, answer) == 1.0
    assert METRICS["mean_average_precision"](actual, answer) == 1.0


def test_rows_without_labels_of_which_none_is_said_are_right():
    actual, answer = np.zeros((3, 2), np.int8), np.full((3, 2), 0.1, np.float32)
    assert multilabel.row_f1(actual, answer).tolist() == [1, 1, 1]
    assert METRICS["micro_f1"](actual, answer) == METRICS["macro_f1"](actual, answer) == 1.0
    assert METRICS["mean_average_precision"](actual, answer) == 0.0


def test_per_class_equals_scikit_learns():
    actual, answer = _random()
    answer[:, 3] = 0.1  # never said
    found = multilabel.per_class(actual, answer)
    expected = reference.precision_recall_fscore_support(actual, answer >= 0.5, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        assert found[name] == pytest.approx(values)
