"""The page of a sweep and its pictures: all trials are there, texts are escaped, equal results give equal bytes."""

import xml.etree.ElementTree as tree
from dataclasses import replace

import numpy as np
import pytest

from tasks.sweeps import pictures, report
from tasks.sweeps.results import Result, ranked

SVG = "{http://www.w3.org/2000/svg}"


def _results(**values):
    """A result for each place of the lists in `values`."""
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    found = [
        Result(f"t{n}", row, {"accuracy": 0.5 + 0.05 * n, "loss": 1 - 0.05 * n}, 1.5, cached=n == 1)
        for n, row in enumerate(rows)
    ]
    return ranked(found, "accuracy")


def _facts(results, **changes):
    tested = {"accuracy": {"value": 0.6, "low": 0.55, "high": 0.65}}
    facts = report.Facts(
        ranked=results, select="accuracy", tested=tested, confidence=0.95, shared="", remedy="regraft init -S a=1"
    )  # fmt: skip
    return replace(facts, **changes)


RATE, SEED = "finetuning.phases.0.learning_rate", "finetuning.seed"
BOTH = _results(**{SEED: ["1", "1", "2", "2"], RATE: ["1.0e-3", "3.0e-3", "1.0e-3", "3.0e-3"]})


@pytest.mark.parametrize(
    ("values", "places"),
    [
        (["3", "1", "2"], [1.0, 0.0, 0.5]),
        (["1.0e-3", "0.01", "1.0e-3"], [0.0, 1.0, 0.0]),
        (["lora", "full", "lora"], [0.0, 1.0, 0.0]),
        (["half"], [0.0]),
        ([f"{10.0**-n}" for n in range(9)], [1 - n / 8 for n in range(9)]),  # many: by logarithm
        ([str(n) for n in range(1, 10)], [n / 8 for n in range(9)]),  # many, less than a decade
    ],
)
def test_values_stand_by_size_where_they_are_numbers(values, places):
    assert np.allclose(pictures.scale(values).places, places)


@pytest.mark.parametrize("results", [BOTH, _results(**{SEED: ["1", "2", "3"]})], ids=["parallel", "dots"])
def test_a_picture_is_svg_and_the_same_each_time(results):
    drawn = pictures.trials(results, "accuracy")
    assert drawn == pictures.trials(results, "accuracy")
    root = tree.fromstring(drawn)
    assert "validation accuracy" in [element.text for element in root.iter(f"{SVG}text")]


def test_parallel_coordinates_draw_a_line_a_trial():
    lines = list(tree.fromstring(pictures.parallel(BOTH, "accuracy")).iter(f"{SVG}path"))
    thick = [path for path in lines if "stroke-width: 3" in path.get("style", "")]
    thin = [path for path in lines if "stroke-width: 1.3" in path.get("style", "")]
    assert (len(thick), len(thin)) == (1, 3)


def test_the_page_tells_every_trial_and_the_winners_test_figure():
    page = report.render(_facts(BOTH))
    for result in BOTH:
        assert f">{result.trial}<" in page
    assert "Best of 4 trials by validation accuracy, 0.6500: seed 2, phases.0.learning_rate 3.0e-3." in page
    assert "from cache" in page
    assert "0.5500–0.6500" in page
    assert "No other trial has seen them" in page
    assert "<svg" in page


def test_failures_are_told_and_texts_are_escaped():
    torn = Result("t9", {SEED: "<b>"}, {}, 0.0, cached=False, failure="row 7 <script>")
    page = report.render(_facts(ranked([*_results(**{SEED: ["1", "2"]}), torn], "accuracy")))
    assert "row 7 &lt;script&gt;" in page
    assert "&lt;b&gt;" in page
    assert "<script>" not in page
    assert "1 failed." in page


def test_a_page_where_all_failed_claims_no_winner():
    torn = Result("t0", {SEED: "1"}, {}, 0.0, cached=False, failure="no rows")
    page = report.render(_facts([torn], tested={}, remedy=""))
    assert "The only trial failed." in page
    assert "winner" not in page


def test_a_single_trial_needs_no_picture():
    page = report.render(_facts([Result("t0", {}, {"accuracy": 0.5, "loss": 1.0}, 1.0, cached=False)]))
    assert "The only trial by validation accuracy, 0.5000." in page
    assert "<svg" not in page
