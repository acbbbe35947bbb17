import re
from dataclasses import replace

import numpy as np
import pytest

from tasks.evaluation import report
from tasks.evaluation.decisions import NEVER, Decision
from tasks.evaluation.exhibits import EXHIBITS
from tasks.evaluation.figures.metrics import Interval
from tasks.evaluation.gate.pairing import Comparison
from tasks.evaluation.pictures import Picture
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.report import Facts
from tasks.evaluation.slices import Measured
from tasks.evaluation.trust import Trust


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
SMALL = Measured("about = <i>", "topic", 3, {})
LARGE = Measured("shouting", "text LIKE '%!%'", 300, {"accuracy": Interval(0.625, 0.5, 0.75)})
TRUST = Trust(
    decision=Decision(temperature=1.25, abstain_below=0.75),
    rows=80,
    before={"ece": Interval(0.1, 0.05, 0.2)},
    after={"ece": Interval(0.02, 0.01, 0.04)},
    decided={"coverage": Interval(0.5, 0.4, 0.6), "accuracy": Interval(0.9375, 0.9, 0.97)},
    probabilities=ANSWERS.answer,
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
        "groups": 4,
        "slices": [SMALL],
        "smallest": 100,
        "trust": None,
        "wanted": None,
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


def test_a_slice_of_few_rows_is_said_to_be_no_evidence():
    page = report.render(_facts(slices=[SMALL, LARGE]))
    assert "about = &lt;i&gt;" in page
    assert page.count("insufficient evidence") == 1
    assert "0.625<small>0.500 – 0.750</small>" in page


def test_rows_that_come_in_groups_are_told():
    assert "interval over rows." in report.render(_facts())
    assert "over the 3 groups of near-duplicates that they form" in report.render(_facts(groups=3))


def test_calibration_is_told_before_and_after():
    page = report.render(_facts(trust=TRUST, wanted=0.9))
    assert "The temperature of 1.250, chosen by log loss on 80 validation rows" in page
    assert page.index("0.100<small>0.050 – 0.200") < page.index("0.020<small>0.010 – 0.040")
    assert "Rows below a confidence of 0.750 are not answered" in page
    assert "50.0 % are answered, with an accuracy of 0.938 (0.900 to 0.970)" in page


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (Decision(), "Every row is answered"),
        (Decision(abstain_below=NEVER), "no smaller one gives an accuracy of 0.9 on validation rows"),
        (Decision(thresholds=(0.25, 0.5)), "from these probabilities on: bad 0.250, good & well 0.500"),
    ],
)
def test_the_decision_is_told_in_a_sentence(decision, expected):
    facts = _facts(trust=replace(TRUST, decision=decision), wanted=0.9)
    assert expected in report.decision_sentence(facts)


def test_without_logits_nothing_is_decided():
    assert report.decision_sentence(_facts()) == ""
