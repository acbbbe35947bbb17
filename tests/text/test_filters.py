import sys

import pyarrow as pa
import pytest

from tasks.errors import ParamsError
from tasks.text import filters, report
from tasks.text.filters import Bounds

ENGLISH = "I am still waiting for my luggage at the airport."
GERMAN = "Ich warte am Flughafen immer noch auf mein Gepäck."


def _table(*texts, **columns):
    return pa.table({"text": pa.array(texts, pa.string()), **columns})


def _reasons(text, **bounds):
    (outcome,) = filters.reasons(_table(text), Bounds(**{"minimum": 1, "maximum": 99} | bounds), classes=None)
    return outcome


@pytest.mark.parametrize(
    ("text", "bounds", "outcome"),
    [
        ("ab", {"minimum": 3}, ("too_short", "2 characters, fewer than 3")),
        ("abc", {"minimum": 3, "maximum": 4}, None),
        ("abcd", {"minimum": 3, "maximum": 4}, None),
        ("abcde", {"maximum": 4}, ("too_long", "5 characters, more than 4")),
        ("né 😀", {"minimum": 4, "maximum": 4}, None),  # characters, not bytes
        ("", {}, ("too_short", "0 characters, fewer than 1")),
        (" \n\t ", {}, ("too_short", "0 characters, fewer than 1")),
        (" ab\u2003", {"minimum": 2, "maximum": 2}, None),  # white space around it is no text
        ("!!_a", {"symbols": 0.5}, ("too_many_symbols", "75% symbols, more than 50%")),
        ("!!ab", {"symbols": 0.5}, None),
        ("!!!!", {}, None),  # 1.0 drops none
        ("हिन्दी में", {"symbols": 0.0}, None),  # vowel signs belong to letters
        ("7 été", {"symbols": 0.0}, None),
        ("!", {"minimum": 2, "symbols": 0.1}, ("too_short", "1 characters, fewer than 2")),  # the first fault
    ],
)
def test_what_passes_and_why_the_rest_does_not(text, bounds, outcome):
    assert _reasons(text, **bounds) == outcome


def test_outcomes_keep_the_order_of_the_rows():
    outcomes = filters.reasons(_table("abc", "a", "", "abcd"), Bounds(2, 3), classes=None)
    assert [outcome and outcome[0] for outcome in outcomes] == [None, "too_short", "too_short", "too_long"]


@pytest.mark.parametrize(
    ("labels", "details"),
    [
        (["yes", "yess"], [None, "label 'yess'; did you mean 'yes'?"]),
        ([["yes", "no"], ["yes", "maybe"], []], [None, "label 'maybe'; known: no, yes", None]),
    ],
)
def test_a_label_that_is_not_declared_leaves_and_is_named(labels, details):
    table = _table(*["text"] * len(labels), kind=labels)
    outcomes = filters.reasons(table, Bounds(1, 9, labels=("yes", "no")), classes="kind")
    assert outcomes == [detail and ("outside_labels", detail) for detail in details]


@pytest.mark.parametrize(
    ("text", "chosen", "rejected", "outcome"),
    [
        ("abc", "a", "abcd ", None),
        ("abc", "", "b", ("empty_answer", "column 'chosen' is empty")),
        ("abc", "a", " \n\u2003", ("empty_answer", "column 'rejected' is empty")),
        ("abc", "a", "abcde", ("too_long", "5 characters in column 'rejected', more than 4")),
        ("abcde", "", "", ("empty_answer", "column 'chosen' is empty")),
        ("a", "", "", ("too_short", "1 characters, fewer than 3")),
    ],
)
def test_answers_are_neither_empty_nor_too_long(text, chosen, rejected, outcome):
    table = _table(text, chosen=[chosen], rejected=[rejected])
    found = filters.reasons(table, Bounds(3, 4), classes=None, answers=("chosen", "rejected"))
    assert found == [outcome]


def test_labels_for_rows_that_bear_none_are_refused():
    with pytest.raises(
        ParamsError, match=r"preparation\.labels is set, but rows of this kind bear no labels"
    ):
        _reasons("text", labels=("a",))


def test_bounds_that_nothing_can_pass_are_refused():
    with pytest.raises(ParamsError, match=r"minimum_characters \(5\) is above maximum_characters \(4\)"):
        Bounds(5, 4)


def test_a_missing_language_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    filters._detector.cache_clear()
    with pytest.raises(ParamsError, match=r"not installed: pip install 'regraft\[language\]'"):
        _reasons(ENGLISH, languages=("en",))


def test_an_unknown_language_is_refused():
    pytest.importorskip("lingua")
    with pytest.raises(ParamsError, match=r"no language 'eng' can be told; did you mean 'en'\?"):
        _reasons("short", languages=("eng",))


@pytest.fixture
def three_languages(monkeypatch):
    """The real detector, with three models instead of 75: a twentieth of the time to load."""
    lingua = pytest.importorskip("lingua")
    chosen = (lingua.Language.ENGLISH, lingua.Language.GERMAN, lingua.Language.FRENCH)
    detector = lingua.LanguageDetectorBuilder.from_languages(*chosen).build()
    monkeypatch.setattr(filters, "_detector", lambda: detector)


@pytest.mark.parametrize(
    ("text", "languages", "reason"),
    [
        (ENGLISH, ("en",), None),
        (GERMAN, ("en",), "other_language"),
        (GERMAN, ("EN", "de"), None),
        ("Guten Morgen!", ("en",), None),  # too short to judge
        ("Berlin Paris London 2015 http://t.co/x", ("fr",), None),  # not sure enough
    ],
)
@pytest.mark.usefixtures("three_languages")
def test_only_a_text_that_is_surely_of_another_language_leaves(text, languages, reason):
    outcome = _reasons(text, languages=languages)
    assert (outcome and outcome[0]) == reason
    if outcome:
        assert outcome[1].startswith("German (")
        assert outcome[1].endswith("% sure), not en")


def test_the_report_knows_every_filter():
    assert filters.FILTERS.keys() <= report.REASONS.keys()
