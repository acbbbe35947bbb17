import re

import numpy as np
import pytest

from tasks.evaluation import report
from tasks.evaluation.exhibits import EXHIBITS
from tasks.evaluation.metrics import Interval
from tasks.evaluation.pairing import Comparison
from tasks.evaluation.pictures import Picture
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.report import Facts


def _comparison(difference, p_value):
    return Comparison(
        measure="accuracy", rows=100, score=0.8, other=0.8 - difference, wins=9, losses=4, difference=difference,
        low=difference - 0.05, high=difference + 0.05, confidence=0.95, p_value=p_value, detectable=0.06,
    )  # fmt: skip


BETTER, LEVEL, WORSE = _comparison(0.2, 1e-5), _comparison(0.01, 0.8), _comparison(-0.1, 0.01)
ANSWERS = Predictions(
    "model",
    ("r1", "r2", "r3", "r4"),
    np.array([0, 1, 1, 0]),
    np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.05, 0.95]], dtype=np.float32),
)
TEXTS = {"r1": "fine", "r2": "<script>alert(1)</script>", "r3": "fine", "r4": "x" * 1000}


def _facts(**changes):
    facts = {
        "labels": ("bad", "good & well"),
        "figures": {n: {"accuracy": Interval(0.8125, 0.75, 0.875)} for n in ("tfidf", "model")},
        "descriptions": {"tfidf": "words", "model": "fine-tuned"},
        "comparisons": {"tfidf": BETTER},
        "confidence": 0.95,
        "answers": ANSWERS,
        "texts": TEXTS,
        "pictures": [Picture("Classes", "A caption.", '<svg fill="#767676"></svg>')],
        "sources": {"Data": "data.csv", "Licence of the data": "CC <BY>"},
        "rows": {"train": 4800, "test": 4},
        "subset": {"train": 4800, "validation": None, "test": 2400},
        "test": "sha256:abc",
    }
    return Facts(**(facts | changes))


def test_the_headline_of_a_model_that_beats_all_names_the_nearest():
    lines = report.headline({"majority": _comparison(0.4, 1e-9), "tfidf": BETTER}, alpha=0.05)
    assert lines[0] == "The fine-tuned model beats majority and tfidf by a paired test at p ≤ 0.05."
    assert lines[1].startswith("The nearest is tfidf: accuracy 0.800 > tfidf 0.600 on the same 100 rows")


def test_the_headline_says_what_brings_no_gain_and_what_is_worse():
    lines = report.headline({"tfidf": BETTER, "frozen": LEVEL, "head": WORSE}, alpha=0.05)
    assert lines[0] == "The fine-tuned model beats tfidf by a paired test at p ≤ 0.05."
    assert lines[1].startswith("It brings no measurable gain over frozen: accuracy 0.800 > frozen 0.790")
    assert lines[2].startswith("It is worse than head: accuracy 0.800 < head 0.900")
    assert len(lines) == 3


def test_a_model_that_beats_nothing_has_no_sentence_that_it_does():
    assert not any("beats" in line for line in report.headline({"tfidf": LEVEL}, alpha=0.05))


def test_the_surest_mistakes_come_first():
    found = EXHIBITS["label"].worst(ANSWERS, TEXTS, ("bad", "good")).rows
    assert [(m.id, m.actual, m.predicted) for m in found] == [("r4", "bad", "good"), ("r2", "good", "bad")]
    assert found[0].figure == pytest.approx(0.95)
    assert len(found[0].text) == 400


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ({"train": None, "test": None}, "All rows that preparation kept were used."),
        (
            {"train": 4800, "validation": None, "test": 2400},
            "These figures come from a declared subset: at most 4,800 train and 2,400 test rows, "
            "chosen by hash.",
        ),
    ],
)
def test_a_subset_is_declared(subset, expected):
    assert report.subset_sentence(subset) == expected


def test_the_page_escapes_texts_and_names_sources():
    page = report.render(_facts())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "good &amp; well" in page
    assert "CC &lt;BY&gt;" in page
    assert "0.812" in page
    assert "at most 4,800 train" in page
    assert "sha256:abc" in page


def test_the_page_needs_nothing_from_elsewhere_and_is_the_same_each_time():
    page = report.render(_facts())
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert page == report.render(_facts())
    assert "prefers-color-scheme: dark" in page


def test_pictures_take_the_colour_of_the_page():
    assert '<svg fill="currentColor"></svg>' in report.render(_facts())


def test_without_mistakes_the_page_is_suspicious():
    perfect = Predictions("model", ("r1",), np.array([0]), np.array([[0.9, 0.1]], dtype=np.float32))
    assert "Look for test rows that training has seen" in report.render(_facts(answers=perfect))
