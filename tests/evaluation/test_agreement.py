import re

import numpy as np
import pytest

from tasks.errors import TrainingError
from tasks.evaluation import agreement
from tasks.evaluation.agreement import TOLERANCE, Agreement

FAR, NEAR = 1.5 * TOLERANCE, 0.9 * TOLERANCE


def _rows(*rows):
    return [np.array([row], dtype=np.float32) for row in rows]


def test_the_difference_is_that_of_the_furthest_row_relative_to_the_largest_logit():
    ours, theirs = _rows([-4, 1], [2, 0], [0, 1]), _rows([-4, 1], [2, 1e-4], [5e-5, 1])
    found = agreement.measure("label", ["one", "two", "three"], ours, theirs)
    assert found == Agreement(difference=pytest.approx(2.5e-5), row="two", close=0)


@pytest.mark.parametrize("off", [4 * FAR, -4 * FAR, np.nan, np.inf])
def test_a_row_that_is_further_off_is_named(off):
    ours, theirs = _rows([-4, 1], [2, 0]), _rows([-4, 1], [2, off])
    with pytest.raises(TrainingError, match=r"row two: logits differ by .* more than 0\.0001"):
        agreement.measure("score", ["one", "two"], ours, theirs)


@pytest.mark.parametrize("kind", ["label", "pair", "tags"])
def test_another_label_is_allowed_only_where_the_best_are_that_close(kind):
    ours, close = _rows([1, 0], [0.5, 0.5 - NEAR]), _rows([1, 0], [0.5 - NEAR, 0.5])
    assert agreement.measure(kind, ["one", "two"], ours, close).close == 1
    ours, apart = _rows([1, 0], [0.5, 0.5 - FAR]), _rows([1, 0], [0.5 - NEAR, 0.5 - FAR + NEAR])
    with pytest.raises(
        TrainingError, match=r"row two: another label, where the best logit leads by 0\.00015"
    ):
        agreement.measure(kind, ["one", "two"], ours, apart)


def test_of_several_labels_each_is_one_that_holds_or_not():
    ours = [np.array([[3, 2, 1e-5]], dtype=np.float32)]
    same, other = ([np.array([row], dtype=np.float32)] for row in ([3, 2 + 1e-4, 2e-5], [3 - 1e-4, 2, -1e-5]))
    assert agreement.measure("labels", ["one"], ours, same).close == 0
    assert agreement.measure("labels", ["one"], ours, other).close == 1


def test_each_tag_of_a_row_is_an_answer():
    ours = [np.array([[1, 0], [0.5, 0.5 - NEAR], [0, 1]], dtype=np.float32)]
    theirs = [np.array([[1, 0], [0.5 - NEAR, 0.5], [0, 1]], dtype=np.float32)]
    assert agreement.measure("tags", ["one"], ours, theirs).close == 1


def test_a_score_has_no_labels():
    found = agreement.measure("score", ["one"], _rows([2]), _rows([2]))
    assert re.fullmatch(r"0\.0", str(found.difference))
    assert found.close == 0
