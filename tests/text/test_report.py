import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ArtifactError
from tasks.text import report
from tasks.text.clean import Example
from tasks.text.report import Cluster, Facts

EVIL = "<script>alert(1)</script>"


def facts(**changes):
    values = {
        "reference": "data.csv",
        "licence": "MIT <b>",
        "kind": "label",
        "rows_in": 10,
        "repaired": 0,
        "reasons": {"exact_duplicate": 1, "too_short": 3},
        "changed": {"html": 2},
        "examples": [Example("data.csv:7", f"{EVIL} &amp; x", f"{EVIL} & x", 1)],
        "balance": {(label, split): 1 for label in "ab" for split in ("train", "validation", "test")},
        "labels": ("a", "b"),
        "lengths": {"train": [(3, 1), (9, 1)], "validation": [(4, 2)], "test": [(400, 2)]},
        "largest": [Cluster(3, {EVIL: 2, "b": 1}, [(EVIL, 2), ("y", 1)], 0, "2 gone, 1 in train")],
        "conflicts": (),
        "clashes": 0,
        "crossing": {"train–test": [(0.5, 7), (0.75, 2)], "train–validation": []},
        "closest": [(0.79, "train", EVIL, "test", "near")],
        "straddling": 0,
        "ledger": {"known texts": 4, "new texts": 2, "held out": 0},
        "contamination": [("eval.csv", 50, 5)],
        "unread": [
            {"place": "data.csv:2", "reason": "no_label", "detail": "empty", "raw": "<img src=x>\udcff\0"}
        ],
        "limits": {"train": 4800, "validation": None, "test": None},
        "threshold": 0.8,
        "shingle": 3,
        "bands": 16,
        "rows_per_band": 8,
    }
    return Facts(**(values | changes))


@pytest.mark.parametrize("rows", [0, 3])
def test_tags_that_begin_within_a_span_are_told(rows):
    assert (f"In {rows} rows a tag I-X follows neither" in report.render(facts(detached=rows))) == bool(rows)


def test_texts_are_escaped_and_nothing_is_fetched():
    page = report.render(facts())
    assert page.count("&lt;script&gt;alert(1)") == 5
    assert r"&lt;img src=x&gt;\udcff\x00" in page
    assert "MIT &lt;b&gt;" in page
    assert not re.search(r"<script|src=[\"']|https?://|@import|url\(", page)
    page.encode()


class _Balanced(HTMLParser):
    VOID = frozenset(("meta", "line", "rect", "circle", "polyline"))

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "reasons": {},
            "changed": {},
            "examples": (),
            "largest": (),
            "closest": (),
            "contamination": (),
            "unread": (),
            "ledger": {},
            "crossing": {},
        },
        {"balance": {}, "lengths": {}, "labels": (), "rows_in": 0},
        {"balance": {("", "train"): 6}, "labels": (), "lengths": {"train": [(0, 6)], "test": []}},
        {"straddling": 2, "crossing": {"train–test": [(0.8, 1), (0.95, 1)]}},
        {"threshold": 1.0, "conflicts": [Cluster(2, {"a": 1, "b": 1}, [("x", 2)], 3, "gone")], "clashes": 1},
    ],
)
def test_every_tag_that_opens_closes(changes):
    parser = _Balanced()
    parser.feed(report.render(facts(**changes)))
    assert parser.open == []


def test_the_page_says_what_is_used_and_why_the_rest_left():
    page = report.render(facts())
    assert "6 of 10 rows are used: 2 train, 2 validation, 2 test." in page
    assert "declared subset, at most 4,800 train rows" in page
    assert "dropped: fewer characters than the minimum" in page
    assert "4 known texts, 2 new texts, 0 held out" in page
    assert "5<small>10.00%</small>" in page
    assert "of pairs at 0.8, 94.7 % are found" in page


def test_a_leak_is_told_at_once_and_its_bars_are_red():
    clean, leaky = (
        report.render(facts()),
        report.render(facts(straddling=2, crossing={"train–test": [(0.8, 2)]})),
    )
    assert (
        'class="verdict good">✓ No pair of rows in different splits has a similarity of 0.8 or more' in clean
    )
    assert 'rect class="above"' not in clean
    assert 'class="verdict bad">✗ 2 pairs of rows in different splits' in leaky
    assert 'rect class="above"' in leaky
    assert "No pair" not in leaky


def test_a_cluster_shows_its_wordings_labels_and_fate():
    page = report.render(
        facts(largest=[Cluster(9, {"a": 8, "b": 1}, [("x", 7), ("y", 1)], 1, "8 gone, 1 in train")])
    )
    for shown in (
        'x <span class="soft">× 7</span>',
        "and 1 more wordings",
        'a <span class="soft">8</span>',
        "8 gone, 1 in train",
    ):
        assert shown in page


def test_the_same_facts_make_the_same_page_whatever_their_order():
    one, other = (
        facts(),
        facts(
            reasons={"too_short": 3, "exact_duplicate": 1}, balance=dict(reversed(facts().balance.items()))
        ),
    )
    assert report.render(one) == report.render(other)


def test_the_funnel_follows_the_steps_and_ends_with_the_rows_that_remain():
    steps = report.funnel(10, {"near_duplicate": 1, "too_short": 3, "exact_duplicate": 2, "no_text": 0})
    assert [
        (step, [(left.reason, left.rows, left.remain) for left in reasons]) for step, reasons in steps
    ] == [
        ("filters", [("too_short", 3, 7)]),
        ("duplicates", [("exact_duplicate", 2, 5), ("near_duplicate", 1, 4)]),
    ]


def test_the_reasons_of_a_step_stand_together():
    steps = [reason.step for reason in report.REASONS.values()]
    assert steps == sorted(steps, key=list(dict.fromkeys(steps)).index)


def test_every_reason_is_shown_with_its_meaning():
    page = report.render(facts(rows_in=100, reasons=dict.fromkeys(report.REASONS, 2)))
    for reason in report.REASONS:
        assert f"{reason}<small>" in page


def test_a_reason_without_explanation_is_refused():
    with pytest.raises(
        ArtifactError, match="cannot explain rows that left for 'too_shor'; did you mean 'too_short'"
    ):
        report.funnel(10, {"too_shor": 1})


@given(
    st.dictionaries(
        st.sampled_from(["train", "validation", "test"]),
        st.dictionaries(st.integers(0, 3000), st.integers(1, 50)).map(lambda pairs: sorted(pairs.items())),
    )
)
def test_every_row_has_its_bar(lengths):
    ranges, counts = report.histogram(lengths)
    assert {split: sum(bars) for split, bars in counts.items()} == {
        split: sum(rows for _, rows in pairs) for split, pairs in lengths.items()
    }
    assert all(len(bars) == len(ranges) for bars in counts.values())
    assert 1 <= len(ranges) <= report.BARS + 1


def test_the_longest_hundredth_shares_one_bar():
    ranges, counts = report.histogram({"train": [(length, 1) for length in range(1, 100)] + [(5000, 1)]})
    assert (ranges[0], ranges[-1]) == ("1–5", "over 100")
    assert counts["train"][-1] == 1


@pytest.mark.parametrize(
    ("balance", "labels", "names"),
    [
        ({("b", "train"): 9, ("a", "test"): 1}, ("a", "b", "gone"), ["a", "b"]),
        (
            {("a + b", "train"): 1, ("a", "train"): 1, ("b + c", "train"): 2},
            ("a", "b", "c"),
            ["a", "b + c", "a + b"],
        ),
        ({("", "train"): 9}, (), []),
        ({}, ("a",), []),
    ],
)
def test_classes_stand_in_the_order_of_the_labels(balance, labels, names):
    assert report.classes(balance, labels) == names


def test_of_many_classes_the_rest_is_counted():
    page = report.render(facts(balance={(f"class {n}", "train"): 1 for n in range(50)}, labels=()))
    assert "and 10 more classes" in page


@pytest.mark.parametrize(
    ("similarity", "bands", "rows", "probability"),
    [(0, 16, 8, 0), (1, 16, 8, 1), (0.8, 16, 8, 0.947), (0.5, 1, 1, 0.5)],
)
def test_the_curve_of_the_banding(similarity, bands, rows, probability):
    assert report.found(similarity, bands, rows) == pytest.approx(probability, abs=5e-4)


def test_without_limits_all_rows_are_used():
    assert report.subset_sentence({"train": None}) == "All rows that survived are used."


@given(st.text(max_size=40), st.text(max_size=40))
def test_marking_loses_no_character(before, after):
    old, new = report.marked(before, after)
    assert ("".join(piece for piece, _ in old), "".join(piece for piece, _ in new)) == (before, after)
    same = "".join(piece for piece, changed in old if not changed)
    assert same == "".join(piece for piece, changed in new if not changed)


def test_what_cleaning_took_away_is_marked():
    assert report.marked("a &amp; b", "a & b") == (
        [("a &", False), ("amp;", True), (" b", False)],
        [("a &", False), (" b", False)],
    )
