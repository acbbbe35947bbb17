import numpy as np
import pytest

from tasks.errors import ParamsError
from tasks.evaluation import baselines
from tasks.evaluation.baselines import Inputs
from tasks.evaluation.predictions import ragged

BASELINES = baselines.BASELINES["label"]
LEARNERS = [name for name in BASELINES if not name.endswith("_shot")]  # which read labels off their names
GOOD, BAD = (
    ["a very good day", "good food indeed", "such good luck"],
    ["a bad day", "bad food", "such bad luck"],
)
LABELS = np.array([2, 2, 2, 0, 0, 0])


def _inputs(texts):
    def features():
        return np.array([["good" in text, len(text)] for text in texts], dtype=np.float32)

    return Inputs(texts, features)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_baseline_gives_probabilities_in_label_order_and_none_to_an_unseen_class(name):
    found = BASELINES[name].answer(_inputs(GOOD + BAD), LABELS, _inputs(["good", "bad"]), 4)
    assert (found.shape, found.dtype) == ((2, 4), np.float32)
    assert found.sum(axis=1) == pytest.approx(1)
    assert found[:, [1, 3]].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("name", ["tfidf", "frozen"])
def test_a_baseline_learns(name):
    found = BASELINES[name].answer(
        _inputs(20 * (GOOD + BAD)), np.tile(LABELS, 20), _inputs([GOOD[0], BAD[2]]), 3
    )
    assert found.argmax(axis=1).tolist() == [2, 0]


def test_majority_answers_with_the_shares_of_training():
    found = BASELINES["majority"].answer(_inputs(["a"] * 4), np.array([0, 1, 1, 1]), _inputs(["b"] * 2), 2)
    assert found.tolist() == [[0.25, 0.75]] * 2


@pytest.mark.parametrize("name", LEARNERS)
def test_a_baseline_is_deterministic(name):
    train, test = _inputs(GOOD + BAD), _inputs(["good luck", "bad day"])
    first = BASELINES[name].answer(train, LABELS, test, 3)
    assert np.array_equal(first, BASELINES[name].answer(train, LABELS, test, 3))


@pytest.mark.parametrize("name", LEARNERS)
def test_training_rows_of_one_class_give_that_class(name):
    found = BASELINES[name].answer(_inputs(GOOD), np.array([1, 1, 1]), _inputs(["bad"]), 2)
    assert found.tolist() == [[0, 1]]


def test_words_that_all_occur_once_still_make_a_vocabulary():
    found = BASELINES["tfidf"].answer(
        _inputs(["red apple", "blue sky"]), np.array([0, 1]), _inputs(["sky"]), 2
    )
    assert found[0, 1] > found[0, 0]


def test_features_are_made_only_when_asked_for():
    def never():
        raise AssertionError("not needed")

    test = Inputs(["good"], never)
    for name in ("majority", "tfidf"):
        BASELINES[name].answer(Inputs(GOOD + BAD, never), LABELS, test, 3)


def test_unknown_baselines_are_named():
    message = r"evaluation\.baselines: no baseline 'tfdif' for rows of kind label; did you mean 'tfidf'\?"
    with pytest.raises(ParamsError, match=message):
        baselines.chosen("label", ["majority", "tfdif"])


def test_auto_means_all_that_fit():
    assert list(baselines.chosen("score", "auto")) == ["mean", "tfidf", "frozen"]
    with pytest.raises(ParamsError, match="no baseline 'majority' for rows of kind score"):
        baselines.chosen("score", ["majority"])


FLAGS = np.array([[0, 0, 1, 0, 1]] * 3 + [[1, 0, 0, 0, 1]] * 3, np.int8)


@pytest.mark.parametrize("name", baselines.BASELINES["labels"])
def test_each_label_has_a_probability_of_its_own_and_one_that_never_varies_is_certain(name):
    answer = baselines.BASELINES["labels"][name].answer
    found = answer(_inputs(20 * (GOOD + BAD)), np.tile(FLAGS, (20, 1)), _inputs([GOOD[0], BAD[2]]), 5)
    assert (found.shape, found.dtype) == ((2, 5), np.float32)
    assert found[:, [1, 3, 4]].tolist() == [[0, 0, 1]] * 2
    if name != "shares":
        assert (found[:, [0, 2]] > 0.5).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("name", baselines.BASELINES["score"])
def test_scores_are_answered_in_the_unit_of_training(name):
    scores = np.array([30, 30, 30, 10, 10, 10], np.float32)
    answer = baselines.BASELINES["score"][name].answer
    found = answer(_inputs(20 * (GOOD + BAD)), np.tile(scores, 20), _inputs([GOOD[0], BAD[2]]), 1)
    assert (found.shape, found.dtype) == ((2,), np.float32)
    assert found == pytest.approx([20, 20] if name == "mean" else [30, 10], abs=2)


def test_tags_are_looked_up_by_the_word_or_are_the_commonest():
    train = Inputs(["", ""], lambda: None, [[7, 8, 7], [7, 9]])
    test = Inputs(["", ""], lambda: None, [[8, 6], [7]])
    tags = ragged([[1, 0, 2], [1, 2]])
    found = {n: b.answer(train, tags, test, 3) for n, b in baselines.BASELINES["tags"].items()}
    assert [row.tolist() for row in found["majority"]] == [[1, 1], [1]]
    assert [row.tolist() for row in found["lookup"]] == [[0, 1], [1]]
