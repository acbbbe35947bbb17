"""Which frozen work is worth keeping, as a table of schedules over a model of six layers."""

import logging

import pytest

from tasks.training.reuse import Reach, fitting, worth_keeping


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


def test_the_own_border_comes_first_and_what_does_not_fit_is_told(caplog):
    caplog.set_level(logging.WARNING)
    assert fitting({5: 60, 3: 50, 4: 40}, 3, 100) == [3, 4]
    assert "states that enter layer 5 would take 0 MB" in caplog.text
    assert fitting({5: 200}, 5, 100) == []
