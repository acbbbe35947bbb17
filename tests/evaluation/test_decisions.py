import numpy as np
import pytest

from tasks.evaluation import decisions
from tasks.evaluation.decisions import NEVER
from tasks.evaluation.figures import multilabel


def _correct(*values):
    return np.array(values, dtype=bool)


def test_the_smallest_confidence_that_is_right_often_enough_is_taken():
    confidence = np.array([0.95, 0.9, 0.8, 0.7, 0.6], dtype=np.float32)
    correct = _correct(1, 1, 0, 1, 0)
    assert decisions.abstain_below(correct, confidence, 0.99) == pytest.approx(0.9, abs=2e-6)
    assert decisions.abstain_below(correct, confidence, 0.75) == pytest.approx(0.7, abs=2e-6)
    assert decisions.abstain_below(correct, confidence, 0.6) == pytest.approx(0.6, abs=2e-6)


def test_the_row_that_a_confidence_was_read_off_is_answered():
    generator = np.random.default_rng(1)
    confidence = generator.random(500).astype(np.float32)
    correct = generator.random(500) < confidence
    below = decisions.abstain_below(correct, confidence, 0.8)
    answered = confidence >= below
    assert correct[answered].mean() >= 0.8
    assert not correct[confidence >= np.sort(confidence[~answered])[-1]].mean() >= 0.8


def test_rows_of_equal_confidence_are_answered_together():
    confidence = np.array([0.9, 0.7, 0.7, 0.7], dtype=np.float32)
    assert decisions.abstain_below(_correct(1, 1, 0, 0), confidence, 0.9) == pytest.approx(0.9, abs=2e-6)


def test_where_no_confidence_is_enough_nothing_short_of_certainty_is_answered():
    assert decisions.abstain_below(_correct(0, 1), np.array([0.9, 0.8]), 0.9) == NEVER


def test_coverage_goes_to_all_rows_and_their_accuracy():
    coverage, accuracy = decisions.coverage_curve(_correct(1, 0, 1), np.array([0.9, 0.5, 0.7]))
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert accuracy.tolist() == pytest.approx([1, 1, 2 / 3])


def test_accuracy_is_that_of_the_rows_answered():
    labels, said = np.array([0, 1, 0]), np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8]])
    assert decisions.coverage(said, 0.6) == pytest.approx(2 / 3)
    assert decisions.selective_accuracy(labels, said, 0.6) == 0.5
    assert decisions.selective_accuracy(labels, said, 0.99) == 0


def test_the_threshold_of_each_label_is_the_best_there_is():
    generator = np.random.default_rng(0)
    said = generator.random((300, 2)).astype(np.float32)
    actual = np.stack([said[:, 0] > 0.2, generator.random(300) < said[:, 1] ** 3], axis=1).astype(np.int8)
    chosen = decisions.best_f1(actual, said)
    f1 = multilabel.per_class(actual, decisions.held(said, chosen))["f1"]
    tried = [
        multilabel.per_class(actual, decisions.held(said, (t, t)))["f1"] for t in np.linspace(0.001, 1, 1000)
    ]
    assert (f1 >= np.max(tried, axis=0) - 1e-3).all()
    assert chosen[0] == pytest.approx(0.2, abs=0.02)


def test_a_label_that_no_row_has_is_asked_for_one_half():
    assert decisions.best_f1(np.zeros((4, 1), dtype=np.int8), np.full((4, 1), 0.3)) == (0.5,)


def test_where_no_confidence_is_enough_not_even_certainty_answers():
    certain = np.ones((4, 1), dtype=np.float32)
    assert decisions.coverage(certain, NEVER) == 0


def test_a_threshold_is_never_so_low_that_it_holds_for_every_row():
    said = np.array([[5e-7], [1e-9], [0.0]], dtype=np.float32)
    thresholds = decisions.best_f1(np.array([[1], [0], [0]], dtype=np.int8), said)
    assert decisions.held(said, thresholds).tolist() == [[1], [0], [0]]
