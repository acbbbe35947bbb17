import numpy as np
import pytest

from tasks.errors import DataError, ParamsError
from tasks.evaluation import judging
from tasks.evaluation.asking import written
from tasks.evaluation.asking.rows import READINGS
from tasks.evaluation.asking.sequences import STARTS
from tasks.evaluation.baselines import BASELINES
from tasks.evaluation.exhibits import EXHIBITS
from tasks.evaluation.judging import JUDGINGS
from tasks.evaluation.predictions import FORMS, Predictions, ragged, texts_of
from tasks.evaluation.telling import TELLINGS


def test_unknown_metrics_are_all_named():
    with pytest.raises(ParamsError) as caught:
        judging.find("label").chosen(["acuracy", "brier", "loglos"])
    assert "no metric 'acuracy' for rows of this kind; did you mean 'accuracy'?" in str(caught.value)
    assert "no metric 'loglos' for rows of this kind; did you mean 'log_loss'?" in str(caught.value)


@pytest.mark.parametrize("kind", sorted(JUDGINGS))
def test_the_usual_metrics_of_a_kind_fit_it(kind):
    judged = judging.find(kind)
    assert tuple(judged.chosen("auto")) == judged.usual


def test_every_table_knows_the_same_kinds_of_row():
    for table in (BASELINES, EXHIBITS, FORMS, {**READINGS, **STARTS, **written.READINGS}, TELLINGS):
        assert set(table) == set(JUDGINGS)


def test_a_metric_of_another_kind_does_not_fit():
    with pytest.raises(ParamsError, match="no metric 'accuracy' for rows of this kind"):
        judging.find("score").chosen(["accuracy"])


def test_a_kind_that_nobody_can_judge_is_named_with_those_that_can_be():
    with pytest.raises(
        DataError, match="rows of kind 'rating' cannot be evaluated yet; kinds that can: text"
    ):
        judging.find("rating")


SENTENCES = ("the cat is in the hall", "it rained all day", "nobody has seen the dog", "we go home now")
TRUTH = {
    "label": (np.array([0, 1, 1, 1]), np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]),
    "labels": (np.eye(3, dtype=np.int8)[[0, 1, 2, 1]], np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]),
    "text": (np.array([[1, 2], [2, 3], [4, 9], [8, 9]]), np.array([[0.1, 1], [0.1, 2], [0.2, 4], [0.1, 8]])),
    "score": (np.array([1, 2, 4, 8], np.float32), np.array([1, 2, 4, 8], np.float32)),
    "answer": (texts_of([["a"], ["b c"], [], ["d", "e"]]), texts_of(["a", "b c", "", "e"])),
    "translation": (texts_of(SENTENCES), texts_of(SENTENCES)),
}


@pytest.mark.parametrize("kind", sorted(TRUTH))
def test_the_truth_scores_best_in_every_way(kind):
    actual, truth = TRUTH[kind]
    judged, other = judging.find(kind), truth * [2, 0.5] if kind == "text" else truth[::-1]
    assert not judged.unfit(actual, truth).any()
    assert judged.score(actual, truth).mean() > judged.score(actual, other).mean()
    for name, metric in judged.metrics.items():
        gain = np.subtract(*(metric(*judged.view(actual, said, ())) for said in (truth, other)))
        assert (gain > 0) == metric.higher_is_better, name


def test_a_word_without_a_tag_is_no_answer():
    actual, said = ragged([[0, 1], [2]]), ragged([[0], [1]])
    assert judging.find("tags").unfit(actual, said).tolist() == [True, False]


@pytest.mark.parametrize("kind", sorted(TRUTH))
def test_what_is_no_number_is_no_answer(kind):
    actual, truth = TRUTH[kind]
    spoiled = truth.copy()
    spoiled[2] = np.nan
    assert judging.find(kind).unfit(actual, spoiled).tolist() == [False, False, True, False]
    ids = tuple("abcd")
    assert judging.scores(Predictions("m", ids, actual, truth, kind)).shape == (4,)
