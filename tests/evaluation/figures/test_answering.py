import numpy as np
import pytest

from tasks.evaluation.figures import answering


@pytest.mark.parametrize(
    ("true", "said", "exact", "overlap"),
    [
        (["the Eiffel Tower"], "Eiffel tower.", True, 1.0),
        (["Paris", "the city of Paris"], "city of Paris", True, 1.0),
        (["Denver Broncos"], "Broncos", False, 2 / 3),
        (["Denver Broncos"], "Carolina", False, 0.0),
        ([], "", True, 1.0),
        ([], "Paris", False, 0.0),
        (["Paris"], "", False, 0.0),
    ],
)
def test_answers_are_compared_as_squad_does(true, said, exact, overlap):
    assert answering.exact(true, said) is exact
    assert answering.overlap(true, said) == pytest.approx(overlap)


def test_figures_are_means_over_rows():
    actual, predicted = np.array([["a cat"], [], ["red dog"]], dtype=object), ["cat", "no", "dog"]
    given, told = answering.counted(actual, predicted)
    assert given.tolist() == [1, 0, 1]
    assert answering.exact_match(given, told) == pytest.approx(1 / 3)
    assert answering.f1(given, told) == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert answering.answerable_f1(given, told) == pytest.approx((1 + 2 / 3) / 2)
    assert answering.row_score(actual, predicted).tolist() == pytest.approx([1, 0, 2 / 3])
