import re

import pytest

from tasks.text import report
from tasks.text.report import Facts
from tasks.text.sources import Document, Quarantined
from tasks.text.split import Row


def facts(**changes):
    rows = [
        Row(f"{label}{split}", f"text {label}", label, "c", split)
        for label in "ab"
        for split in ("train", "validation", "test")
    ]
    values = {
        "reference": "data.csv",
        "licence": "MIT <b>",
        "rows_in": 10,
        "repaired": 0,
        "reasons": {"exact_duplicate": 1, "too_short": 3},
        "changed": {"html": 2},
        "rows": rows,
        "labels": ("a", "b"),
        "largest": (),
        "conflicts": (),
        "clashes": 0,
        "rewritten": [("<script>alert(1)</script>", "x")],
        "unread": [Quarantined("1", "sources", "no_label", "data.csv:2: empty", "<img src=x>")],
        "limits": {"train": 4800, "validation": None, "test": None},
        "threshold": 0.8,
        "shingle": 3,
    }
    return Facts(**(values | changes))


def test_texts_are_escaped_and_nothing_is_fetched():
    page = report.render(facts())
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;img src=x&gt;" in page
    assert "MIT &lt;b&gt;" in page
    assert not re.search(r"<script|src=[\"']|https?://|@import", page)


def test_the_page_says_what_is_used_and_why_the_rest_left():
    page = report.render(facts())
    assert "6 of 10 rows are used: 2 train, 2 validation, 2 test." in page
    assert "declared subset, at most 4,800 train rows" in page
    assert "dropped: fewer characters than the minimum" in page


def test_the_same_facts_make_the_same_page():
    assert report.render(facts()) == report.render(facts())


def test_the_funnel_ends_with_the_rows_that_remain():
    assert [(reason, left, remain) for reason, _, left, remain in report.funnel(10, facts().reasons)] == [
        ("too_short", 3, 7),
        ("exact_duplicate", 1, 6),
    ]


@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], [5, 80, 81, 2000], list(range(1, 1000))])
def test_every_row_has_its_bar(lengths):
    bars = report.histogram(lengths)
    assert sum(count for _, count in bars) == len(lengths)
    assert len(bars) <= report.BARS + 2


def test_without_limits_all_rows_are_used():
    assert report.subset_sentence({"train": None}) == "All rows that survived are used."


def test_a_cluster_shows_its_wordings_labels_and_fate():
    members = [
        Document(f"{n}", text, label, "t")
        for n, (text, label) in enumerate([("x", "a"), ("x", "b"), ("y", "a")])
    ]
    (story,) = report.cluster_stories(
        members, dict.fromkeys("012", "c"), {"0": "in train", "1": "gone", "2": "gone"}
    )
    assert (story.size, story.texts, story.labels) == (3, [("x", 2), ("y", 1)], {"a": 2, "b": 1})
    assert story.fate == "2 gone, 1 in train"


def test_rewritten_texts_come_before_mere_spaces():
    before = [
        Document("1", "a  b", "a", "t"),
        Document("2", "&amp;", "a", "t"),
        Document("3", "same", "a", "t"),
    ]
    after = [Document("1", "a b", "a", "t"), Document("2", "&", "a", "t"), Document("3", "same", "a", "t")]
    assert report.rewritten(before, after) == [("&amp;", "&"), ("a  b", "a b")]
