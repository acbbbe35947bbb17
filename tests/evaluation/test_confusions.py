import numpy as np

from tasks.evaluation import confusions
from tasks.evaluation.predictions import Predictions


def answered(labels, shares):
    ids = tuple(f"r{number:03}" for number in range(len(labels)))
    return Predictions("model", ids, np.array(labels), np.array(shares, dtype=np.float32))


def test_labels_that_were_changed_are_suspected_the_least_likely_first():
    chance = np.random.default_rng(0)
    true = chance.integers(0, 3, 300)
    logits = chance.normal(size=(300, 3)) + 5 * np.eye(3)[true]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels, wrong = true.copy(), chance.choice(300, 12, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 3
    found = confusions.suspects(answered(labels, shares))
    assert len(set(wrong) & {one.row for one in found}) >= 10
    assert len(found) <= 16
    assert [one.share for one in found] == sorted(one.share for one in found)
    assert all(
        (one.given, one.likely) == (labels[one.row], true[one.row]) for one in found if one.row in wrong
    )


def test_a_row_between_two_classes_is_no_suspect():
    shares = [[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 5 + [[0.55, 0.45]]
    assert confusions.suspects(answered([0] * 5 + [1] * 5 + [1], shares)) == []


def test_a_class_that_no_row_bears_takes_none():
    assert confusions.suspects(answered([0, 0], [[0.2, 0.8], [0.3, 0.7]])) == []


def test_the_commonest_confusions_come_with_their_surest_rows():
    shares = [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.9, 0], [0.3, 0.7, 0], [0.4, 0.6, 0], [0, 0.4, 0.6]]
    first, second = confusions.pairs(answered([0, 0, 0, 0, 0, 1], shares))
    assert (first.actual, first.predicted, first.count, first.share) == (0, 1, 4, 0.8)
    assert first.rows == (2, 1, 3)
    assert (second.actual, second.predicted, second.rows) == (1, 2, (5,))
    assert confusions.pairs(answered([0], [[1, 0]])) == []
