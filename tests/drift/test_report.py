import re

from tasks.drift import measures, report
from tasks.drift.measures import Measure, Part


def measure(name, value, *parts):
    return Measure(name, value, 0.1, 0.005, (40, 50), "told", parts)


def facts(*found, **changes):
    wanted = {"table": "a/data.csv", "rows": 90, "new": 40, "passed": 38, "measures": found, "silent": {}}
    return report.Facts(**wanted | changes)


def test_the_page_says_what_differs_and_what_does_not():
    page = report.render(facts(measure("length", 0.05, Part("1–3", 0.2, 0.4)), measure("words", 0.5)))
    assert "40 of 90 rows are new: unlike the training rows in words; alike in length." in page
    assert (page.count("✗ differs"), page.count("✓ alike")) == (1, 1)
    assert "20.0 %" in page
    assert not re.search(r"https?://|<script", page)


def test_a_word_of_a_stranger_is_text():
    page = report.render(facts(measure("words", 0.5, Part("<b>\u202e", 1.0, 0.0))))
    assert "&lt;b&gt;\\u202e" in page


def test_why_nothing_is_measured_is_told():
    page = report.render(facts(silent={"all": measures.too_few(3, 100)}))
    assert "too few rows to say: 3 new" in page
    assert "How unlike" not in page


def test_every_measure_has_a_meaning():
    names = {"length", "words", "classes", "scores", "states"}
    assert set(report.MEANINGS) == names
