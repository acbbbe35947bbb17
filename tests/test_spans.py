import numpy as np

from tasks import spans
from tasks.spans import Span

TEXT = "It was in Paris, France."
OFFSETS = np.array([(-1, -1), (-1, -1), (0, 2), (3, 6), (7, 9), (10, 15), (15, 16), (17, 23), (-1, -1)])


def test_the_likeliest_span_never_ends_before_it_starts_nor_leaves_the_text():
    starts, ends = np.zeros(9), np.zeros(9)
    starts[[1, 7]], ends[[1, 5]] = (9, 3), (9, 2)  # the likeliest of all is in the question
    found = spans.likeliest(starts, ends, OFFSETS)
    assert TEXT[found.start : found.stop] == "France"
    assert found.margin == 3


def test_no_span_is_longer_than_squads_own_baseline_allows():
    offsets = np.array([(-1, -1), *((n, n + 1) for n in range(50))])
    starts, ends = np.zeros(51), np.zeros(51)
    starts[1], ends[50] = 5, 5
    found = spans.likeliest(starts, ends, offsets)
    assert found.stop - found.start <= spans.LONGEST


def test_of_several_windows_the_surest_answers_and_none_if_none_is_surer_than_nothing():
    assert spans.chosen([Span(3, 6, 0.5), Span(10, 15, 2.0)], TEXT) == "Paris"
    assert spans.chosen([Span(3, 6, -0.5), Span(0, 0, -np.inf)], TEXT) == ""
    assert spans.likeliest(np.zeros(2), np.zeros(2), np.full((2, 2), -1)).margin == -np.inf
