"""How the rate moves: what each shape promises."""

import pytest

from tasks.training.schedule import LOWEST, SHAPES, rate_share


def _shares(schedule, *, steps=10, warmup=0.3):
    return [rate_share(step, steps, schedule=schedule, warmup=warmup) for step in range(steps)]


def test_a_linear_rate_rises_falls_and_never_reaches_zero_within_the_phase():
    shares = _shares("linear")
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])


def test_a_constant_rate_stays_at_the_peak_behind_its_warm_up():
    assert _shares("constant") == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_a_cosine_falls_slowly_first_and_is_half_way_down_in_the_middle():
    shares = _shares("cosine", steps=8, warmup=0)
    assert shares[4] == pytest.approx(0.5)
    assert shares[0] - shares[1] < shares[3] - shares[4]


def test_a_slanted_triangle_begins_and_ends_at_a_32nd_of_the_peak():
    shares = _shares("slanted-triangular", steps=1000, warmup=0.1)
    assert shares[0] == pytest.approx(LOWEST, abs=0.01)
    assert (shares.index(max(shares)), max(shares)) == (100, 1.0)
    assert shares[-1] == pytest.approx(LOWEST, abs=0.01)


@pytest.mark.parametrize("schedule", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_step_of_any_shape_is_without_a_rate(schedule, steps):
    assert all(0 < share <= 1 for share in _shares(schedule, steps=steps, warmup=0.5))
