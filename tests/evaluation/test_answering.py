import numpy as np
import pytest

from tasks.evaluation import answering
from tasks.evaluation.answering import Span


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


TEXT = "It was in Paris, France."
OFFSETS = np.array([(-1, -1), (-1, -1), (0, 2), (3, 6), (7, 9), (10, 15), (15, 16), (17, 23), (-1, -1)])


def test_the_likeliest_span_never_ends_before_it_starts_nor_leaves_the_text():
    starts, ends = np.zeros(9), np.zeros(9)
    starts[[1, 7]], ends[[1, 5]] = (9, 3), (9, 2)  # the likeliest of all is in the question
    found = answering.span(starts, ends, OFFSETS)
    assert TEXT[found.start : found.stop] == "France"
    assert found.margin == 3


def test_no_span_is_longer_than_squads_own_baseline_allows():
    offsets = np.array([(-1, -1), *((n, n + 1) for n in range(50))])
    starts, ends = np.zeros(51), np.zeros(51)
    starts[1], ends[50] = 5, 5
    found = answering.span(starts, ends, offsets)
    assert found.stop - found.start <= answering.LONGEST


def test_of_several_windows_the_surest_answers_and_none_if_none_is_surer_than_nothing():
    assert answering.chosen([Span(3, 6, 0.5), Span(10, 15, 2.0)], TEXT) == "Paris"
    assert answering.chosen([Span(3, 6, -0.5), Span(0, 0, -np.inf)], TEXT) == ""
    assert answering.span(np.zeros(2), np.zeros(2), np.full((2, 2), -1)).margin == -np.inf
