"""What the pictures show is decided by plain functions; the drawings are sound and always the same."""

from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest

from tasks.training import pictures
from tasks.training.events import Change, Finished, Measure
from tasks.training.loop import Step
from tasks.training.phases import NEW

FLOORS = ("embeddings", "layer 0", "layer 1", "head")
SVG = "{http://www.w3.org/2000/svg}"


def _phase(name, learning, *, steps=4, best=4, moved=(0.01, 0.02)):
    """Two epochs of equal length; learning floors move by `moved` at the end of each."""
    told, half = [], steps // 2
    for number in range(1, steps + 1):
        told.append(Step(name, number, 1 / number, 1e-3 / number, 1.0, 8))
        if number in (half, steps):
            value = moved[number == steps]
            told.append(Change(name, number, {floor: value * (floor in learning) for floor in FLOORS}))
            told.append(Measure(name, number, {"accuracy": 0.5 + 0.1 * (number == best), "loss": 1.0}))
    return [*told, Finished(name, learning, 10, steps, best, {"accuracy": 0.6, "loss": 1.0})]


HEAD = _phase("head", ("head",), steps=6, best=3, moved=(0.5, 0.9))
UPPER = _phase("upper", ("layer 1", "head"))
WHOLE = _phase("whole", FLOORS, steps=2, best=2)
TOLD = [*HEAD, *UPPER, *WHOLE]

DRAWINGS = {
    "heat map": lambda: pictures.heat_map(pictures.stretches(TOLD), FLOORS),
    "nothing moved": lambda: pictures.heat_map(
        pictures.stretches(_phase("still", FLOORS, moved=(0.0, 0.0))), FLOORS
    ),
    "one phase": lambda: pictures.heat_map(pictures.stretches(HEAD), FLOORS),
    "by accuracy": lambda: pictures.curves(pictures.stretches(TOLD), select="accuracy"),
    "by loss": lambda: pictures.curves(pictures.stretches(TOLD), select="loss"),
    "many phases": lambda: pictures.curves(
        pictures.stretches([e for n in range(7) for e in _phase(f"p{n}", FLOORS)]), select="loss"
    ),
}


@cache
def _drawn(name):
    return DRAWINGS[name]()


def _texts(svg):
    return [node.text.strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text") if node.text]


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_sound_xml_and_the_same_each_time(name):
    svg = _drawn(name)
    assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
    assert svg == DRAWINGS[name]()
    assert "date" not in svg


def test_every_text_can_take_the_colour_of_the_page():
    for name in ("heat map", "by accuracy"):
        texts = list(ElementTree.fromstring(_drawn(name)).iter(f"{SVG}text"))
        assert texts
        assert all(pictures.INK in (node.get("style") or "") for node in texts)


def test_phases_follow_one_another_on_one_axis_of_steps():
    found = pictures.stretches(TOLD)
    assert [(one.name, one.start, one.stop) for one in found] == [
        ("head", 0, 6),
        ("upper", 6, 10),
        ("whole", 10, 12),
    ]
    assert [one.best for one in found] == [3, 10, 12]
    assert found[1].steps.tolist() == [7, 8, 9, 10]
    assert found[1].told.tolist() == found[1].measured.tolist() == [8, 10]


def test_borders_and_names_of_phases_are_drawn():
    texts = _texts(_drawn("heat map"))
    assert [text for text in texts if text in ("head", "upper", "whole")].count("upper") == 1
    assert {"0", "6", "10", "12"} <= set(texts)


def test_a_phase_that_ended_early_is_as_long_as_its_steps():
    early = [event for event in HEAD if getattr(event, "number", 0) <= 3 and getattr(event, "step", 0) <= 3]
    early[-1] = Finished("head", ("head",), 10, 3, 3, {"accuracy": 0.6, "loss": 1.0})
    head, whole = pictures.stretches([*early, *WHOLE])
    assert (head.stop, whole.start) == (3, 3)


def test_a_phase_that_is_not_finished_is_not_shown():
    assert [one.name for one in pictures.stretches([*HEAD, *UPPER[:-1]])] == ["head"]


def test_cells_are_hatched_exactly_where_nothing_learned():
    hatched = [one.frozen.tolist() for one in pictures.stretches(TOLD)]
    assert hatched == [[True, True, True, False], [True, True, False, False], [False] * 4]


def test_a_single_kind_of_tensor_that_learns_below_is_not_hatched():
    assert pictures.frozen(FLOORS, ("embeddings", "head")).tolist() == [False, True, True, False]


def test_the_rows_of_new_tokens_are_on_the_lowest_floor():
    assert pictures.frozen(FLOORS, (NEW, "head")).tolist() == [False, True, True, False]


def _hatches(svg):
    clipped = [node.get("style") or node.get("fill") or "" for node in ElementTree.fromstring(svg).iter()]
    return sum("url(#h" in style for style in clipped)


def test_a_run_of_frozen_floors_is_one_hatched_field():
    """Beside the key's: one in phase head, one in phase upper, none where all learn."""
    key = 1
    assert _hatches(_drawn("heat map")) == key + 2
    assert _hatches(pictures.heat_map(pictures.stretches(WHOLE), FLOORS)) == key
    apart = _phase("parts", ("layer 0", "head"))
    assert _hatches(pictures.heat_map(pictures.stretches(apart), FLOORS)) == key + 2


def test_a_head_that_began_at_random_does_not_take_the_colours_from_the_layers():
    moved = np.array([[0.0, 0.001], [0.0, 0.02], [0.0, 0.04], [2.0, 3.0]])
    assert pictures.scale(moved) == pytest.approx((0.0004, 0.04))


def test_where_only_the_head_moved_the_colours_are_the_heads():
    assert pictures.scale(np.array([[0.0, 0.0], [0.0, 0.0], [0.5, 2.0]])) == pytest.approx((0.02, 2.0))


def test_the_numbers_beside_the_map_are_those_of_the_weights_that_were_kept():
    earlier = _phase("whole", FLOORS, best=2, moved=(0.0123, 0.0456))
    texts = _texts(pictures.heat_map(pictures.stretches(earlier), FLOORS))
    assert texts.count("1.23 %") == len(FLOORS)
    assert "4.56 %" not in texts


@pytest.mark.parametrize(("share", "text"), [(2.727, "273 %"), (0.0106, "1.06 %"), (6.03e-5, "0.00603 %")])
def test_percentages_keep_three_digits_whatever_their_size(share, text):
    assert pictures.percent(share) == text


def test_the_best_epoch_is_marked_by_its_value_and_by_the_chosen_figure_alone():
    texts = _texts(_drawn("by accuracy"))
    assert texts.count("0.600") == 3
    assert "accuracy" in texts
    assert "accuracy" not in _texts(_drawn("by loss"))


def test_a_smoothed_constant_is_that_constant_from_its_first_step():
    assert pictures.smooth(np.full(5, 0.7)) == pytest.approx(0.7)
    assert pictures.smooth(np.array([1.0, 0.0]))[1] == pytest.approx(0.09 / 0.19)


def test_a_users_matplotlibrc_changes_nothing():
    import matplotlib

    expected = _drawn("one phase")
    with matplotlib.rc_context({"font.size": 25, "axes.grid": True, "hatch.linewidth": 3}):
        assert DRAWINGS["one phase"]() == expected
