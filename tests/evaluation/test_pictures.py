from xml.etree import ElementTree

import numpy as np
import pytest

from tasks.evaluation import pictures
from tasks.evaluation.figures import metrics
from tasks.evaluation.figures.metrics import Interval

LABELS = ["a < b", "$x$ & $y$", "plain"]
TABLE = np.array([[5, 1, 0], [0, 7, 2], [0, 0, 0]])  # the last class has no rows
ANSWERS = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], dtype=np.float32)

DRAWINGS = {
    "confusion": lambda: pictures.confusion_matrix(TABLE, LABELS),
    "routes": lambda: pictures.routes([np.array([[9, 1, 2], [0, 7, 5]])] * 5, ["law", "code"]),
    "many classes": lambda: pictures.confusion_matrix(np.eye(40, dtype=int), [f"c{i}" for i in range(40)]),
    "reliability": lambda: pictures.reliability_diagram({"model": metrics.reliability(*ANSWERS)}),
    "contestants": lambda: pictures.contestants({c: {"accuracy": Interval(0.7, 0.6, 0.8)} for c in "ab"}),
    "one contestant": lambda: pictures.contestants({"model": {"accuracy": Interval(0.7, 0.6, 0.8)}}),
    "classes": lambda: pictures.class_bars(
        metrics.per_class(np.array([0, 1]), np.array([0, 0]), 3),
        {name: np.array([[0.2, 0, 0], [0.9, 0, 0]]) for name in ("precision", "recall", "f1")},
        LABELS,
    ),
    "learning": lambda: pictures.learning_curve(np.array([1.0, 0.5, 0.4]), ["head", "head", "whole"]),
    "one step": lambda: pictures.learning_curve(np.array([1.0]), ["head"]),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_sound_xml_and_the_same_each_time(name):
    svg = DRAWINGS[name]()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg == DRAWINGS[name]()
    assert "date" not in svg


def test_labels_are_shown_as_they_are():
    texts = {node.text for node in ElementTree.fromstring(DRAWINGS["confusion"]()).iter() if node.text}
    assert {text.strip() for text in texts} >= {"a < b", "$x$ & $y$", "plain"}


def test_routes_name_domains_and_number_experts_and_layers():
    svg = ElementTree.fromstring(DRAWINGS["routes"]())
    across, down = (
        {text.strip() for text in svg.find(f".//*[@id='matplotlib.axis_{axis}']").itertext()}
        for axis in (1, 2)
    )
    assert across >= {"0", "1", "2"}
    assert down >= {"law", "code"}
    texts = [text.strip() for text in svg.itertext()]
    assert texts.count("law") == 2  # five panels in two rows
    assert {"expert", *(f"layer {number}" for number in range(5))} <= set(texts)


def test_every_text_can_take_the_colour_of_the_page():
    svg = ElementTree.fromstring(DRAWINGS["confusion"]())
    styles = [node.get("style") or "" for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert styles
    assert all(pictures.INK in style for style in styles)


def test_a_smoothed_constant_is_that_constant_from_its_first_step():
    assert pictures.smooth(np.full(5, 0.7)) == pytest.approx(0.7)
    assert pictures.smooth(np.array([1.0, 0.0]))[1] == pytest.approx(0.09 / 0.19)


def test_a_users_matplotlibrc_changes_nothing():
    import matplotlib

    expected = DRAWINGS["classes"]()
    with matplotlib.rc_context({"font.size": 25, "axes.grid": True, "figure.facecolor": "red"}):
        assert DRAWINGS["classes"]() == expected
