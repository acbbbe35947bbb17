"""Which frozen work is worth keeping, as a table of schedules over a model of six layers."""

import pytest

from tasks.training.reuse import Reach, kept, passes, passing, shared, worth_keeping


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        ([(6, 10)], [6]),  # the head alone: its features, whatever the epochs
        ([(6, 1), (3, 1), (None, 1)], [6, 3]),  # the pass for the head leaves the border of the next phase
        ([(4, 3)], [4]),
        ([(4, 1)], []),  # one epoch: keeping costs a pass and saves none
        ([(4, 1), (4, 1)], [4]),  # two phases at the same border share it
        ([(4, 3), (2, 2), (1, 1)], [4, 2]),  # gradual, top down: lower layers are untouched until then
        ([(2, 2), (4, 3)], [2]),  # layers 2 and 3 will have changed by then
        ([(None, 1), (6, 5)], []),
        ([(3, 2), (None, 1), (3, 2)], [3]),  # the later one is above layers that have learned
    ],
)
def test_states_are_kept_where_several_passes_use_them(schedule, kept):
    assert sorted(worth_keeping([Reach(*one) for one in schedule], 6), reverse=True) == kept


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        (
            [(6, 10), (3, 1), (None, 1)],
            [[6, 3], [3], []],
        ),  # the head's pass serves the next phase's one epoch
        ([(6, 1), (2, 1), (4, 1)], [[6, 2], [2], []]),  # layers 2 and 3 have learned: 4's states are no more
        ([(6, 1), (4, 1), (2, 1), (4, 1)], [[6, 4, 2], [4], [2], []]),
        ([(None, 1), (6, 2), (6, 2)], [[], [6], [6]]),
        ([(4, 1), (3, 1)], [[], []]),
    ],
)
def test_what_an_earlier_pass_has_left_is_used(schedule, kept):
    found = shared([Reach(*one) for one in schedule], 6)
    assert [one[:1] + sorted(one[1:], reverse=True) for one in found] == kept


GRADUAL = [Reach(6, 5), Reach(4, 3), Reach(2, 2), Reach(None, 1)]
SIZES = {6: 1, 4: 100, 2: 100}


@pytest.mark.parametrize(
    ("maximum", "dtype", "expected"),
    [
        (201, "float16", [[6, 4, 2], [4, 2], [2], []]),
        (101, "float16", [[6, 4], [4], [2], []]),  # a phase's own first
        (99, "float16", [[6], [], [], []]),
        (0, "float16", [[], [], [], []]),
        (201, "none", [[6], [], [], []]),  # the head's features are small
    ],
)
def test_what_does_not_fit_is_not_kept(maximum, dtype, expected):
    assert kept(GRADUAL, 6, SIZES.__getitem__, dtype=dtype, maximum=maximum) == expected


def test_a_few_steps_are_no_pass():
    assert passes(1, 5, batch_size=32, rows=4_800) == 0
    assert passes(1, 300, batch_size=32, rows=4_800) == 2
    assert passes(7, None, batch_size=32, rows=4_800) == 7
    assert worth_keeping([Reach(6, 0), Reach(3, 0)], 6) == []


def test_a_pass_is_made_once_for_the_phases_that_it_serves():
    reaches = [Reach(4, 2), Reach(2, 3), Reach(2, 1), Reach(None, 1), Reach(4, 2)]
    assert passing([[4, 2], [2], [2], [], [4]], reaches) == [True, False, False, False, True]
