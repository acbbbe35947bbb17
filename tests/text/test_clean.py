from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import params
from tasks.errors import ParamsError
from tasks.text import clean, shards
from tasks.text.clean import Example

DEFAULT = params.load(Path(__file__).parents[2] / "params.yaml").preparation.clean


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("mojibake", "caf\u00c3\u00a9 and it\u00e2\u20ac\u2122s", "caf\u00e9 and it\u2019s"),
        ("mojibake", "don\x92t", "don\u2019t"),
        ("mojibake", "voil\u00c3 le travail", "voil\u00e0 le travail"),
        ("mojibake", "it\u2019s \u00e2\u20ac\u02dcfine\u00e2\u20ac\u2122", "it\u2019s \u2018fine\u2019"),
        ("mojibake", "\u00e2\u20ac\ufffd", "\ufffd"),
        ("unicode", "e\u0301", "\u00e9"),
        ("html", "fish &amp; chips &lt;3 &#39; &#x2764;", "fish & chips <3 ' \u2764"),
        ("html", "&amp;lt;", "&lt;"),
        ("html", "AT&T ?a=1&copy=2 &nosuch; &amp", "AT&T ?a=1&copy=2 &nosuch; &amp"),
        ("control", "a\0b\x07c\ud800d\ufeffe\tf", "abcde\tf"),
        ("control", "\x1b[1;31mred\x1b[0m", "red"),
        ("whitespace", " a\u00a0\n\tb  c\u2003", "a b c"),
        ("mask_urls", "see http://t.co/x?y=1 and www.x.org now", "see <url> and <url> now"),
        ("mask_mentions", "@you and a@b.org", "<user> and a@b.org"),
        ("mask_emails", "write to a.b@c.org!", "write to <email>!"),
        ("accents", "Crème brûlée, Łódź", "Creme brulee, Łodz"),
    ],
)
def test_what_each_step_does(step, before, after):
    assert clean.STEPS[step](before) == after


@pytest.mark.parametrize(
    "text",
    [
        "\u201ccurly\u201d \u2018quotes\u2019",
        "\ufb01ne",
        "\uff2c\uff2f\uff35\uff24",
        "&eacute; &lt;b&gt;",
        "line\r\nline\u2028line",
        "e\u0301",
        "10\u00b3 \u00b5m",
        "\x1b[31mred\x07 \u00e9",
        "How Uber_\ufffd\ufffds cars",
        "Ünïcödé, русский, 日本語, 👩\u200d👩\u200d👧",
    ],
)
def test_mending_mojibake_leaves_meaning_and_other_steps_work_alone(text):
    assert clean.mojibake(text) == text


@pytest.mark.parametrize("step", clean.STEPS)
def test_a_step_leaves_plain_text_alone(step):
    assert clean.STEPS[step]("Plain text, 100 % ASCII.") == "Plain text, 100 % ASCII."


@pytest.mark.parametrize("step", sorted(clean.STEPS.keys() - {"html"}))
def test_a_step_twice_is_the_step_once(step):
    text = " a\0\u00a0e\u0301 @you http://t.co/x a@b.org\n caf\u00c3\u00a9 \x1b[31m"
    once = clean.STEPS[step](text)
    assert clean.STEPS[step](once) == once


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300)
def test_a_cleaned_text_can_be_stored_and_bears_no_control_character(text):
    cleaned = clean.text(text, DEFAULT)
    cleaned.encode()
    assert not clean.CONTROL.search(cleaned)
    assert cleaned == " ".join(cleaned.split())


def _table(*texts, **columns):
    base = {
        "id": pa.array([None] * len(texts), pa.string()),
        "content": pa.array(range(len(texts)), pa.uint64()),
        "place": [f"t.csv:{row + 2}" for row in range(len(texts))],
        "split": pa.array([None] * len(texts), pa.string()),
        "text": pa.array(texts, pa.string()),
    }
    return pa.table(base | columns)


def _clean(text, *steps):
    table, changed, _ = clean.clean(_table(text), steps, ("text",))
    return table["text"][0].as_py(), {step: changed[step] for step in steps}


@pytest.mark.parametrize(
    ("text", "first", "second", "right", "wrong"),
    [
        ("e\u00cc\u0081", "mojibake", "unicode", "\u00e9", "e\u0301"),
        ("don\x92t", "mojibake", "control", "don\u2019t", "dont"),
        ("na&Atilde;&macr;ve", "html", "mojibake", "na\u00efve", "na\u00c3\u00afve"),
        ("cafe&#769;", "html", "unicode", "caf\u00e9", "cafe\u0301"),
        ("a&#xfeff;b", "html", "control", "ab", "a\ufeffb"),
        ("a&nbsp; b", "html", "whitespace", "a b", "a\u00a0 b"),
        ("a \0 b", "control", "whitespace", "a b", "a  b"),
        ("&#64;you", "html", "mask_mentions", "<user>", "@you"),
    ],
)
def test_steps_apply_in_the_order_given(text, first, second, right, wrong):
    assert _clean(text, first, second)[0] == right
    assert _clean(text, second, first)[0] == wrong


def test_in_the_order_of_params_yaml_no_step_hides_work_from_another():
    dirty = " e\u00cc\u0081 don\x92t &#xfeff;&nbsp; x\0 cafe&#769; na&Atilde;&macr;ve"
    assert clean.text(dirty, DEFAULT) == "\u00e9 don\u2019t x caf\u00e9 na\u00efve"


def test_each_step_counts_the_rows_it_changed():
    table = _table("a&amp;b", "a  b", "same", pair=["x", " &lt;", "x &gt; y"])
    cleaned, changed, _ = clean.clean(table, ("unicode", "html", "whitespace"), ("text", "pair"))
    assert cleaned["text"].to_pylist() == ["a&b", "a b", "same"]
    assert cleaned["pair"].to_pylist() == ["x", "<", "x > y"]
    assert changed == {"unicode": 0, "html": 3, "whitespace": 1}


def test_other_columns_and_the_schema_stay():
    table = _table(" a ", other=[" b "])
    cleaned = clean.clean(table, ("whitespace",), ("text",)).table
    assert cleaned.schema == table.schema
    assert cleaned.drop(["text"]).equals(table.drop(["text"]))
    assert cleaned.schema.names[:5] == shards.DOCUMENT.names


@pytest.mark.parametrize("columns", [(), ("text",)])
def test_an_empty_shard_stays_one(columns):
    table, changed, examples = clean.clean(_table(), DEFAULT, columns)
    assert (len(table), set(changed.values()), examples) == (0, {0}, ())


def test_a_kind_without_cleaned_columns_is_left_alone():
    table = _table(" a ", "&amp;")
    assert clean.clean(table, DEFAULT, ()) == (table, dict.fromkeys(DEFAULT, 0), ())


def test_rewritten_texts_are_shown_before_mere_spaces():
    _, _, examples = clean.clean(_table("a  b", "&amp;", "same"), ("html", "whitespace"), ("text",))
    assert examples == (
        Example("t.csv:3", "&amp;", "&", 1),
        Example("t.csv:2", "a  b", "a b", 0, only_spaces=True),
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("word " * 500 + "&lt;3 end", "&lt;3 end"),
        ("word " * 500 + " end", "word  end"),
        ("&gt;" + " word" * 500, "&gt; word"),
        ("word  word" + " word" * 500 + "&lt;", "word&lt;"),
        ("x" * 1000 + "&lt;", "xxx"),
    ],
)
def test_of_a_long_text_the_first_change_is_shown(text, shown):
    _, _, (example,) = clean.clean(_table(text), ("html", "whitespace"), ("text",))
    assert shown in example.before
    assert len(example.before) <= clean.CHARACTERS
    assert len(example.after) <= clean.CHARACTERS


@given(
    texts=st.lists(st.sampled_from(["a", " b", "&lt;", "c  d", "\0e", "e\u0301" * 200, "f\t"]), max_size=30),
    size=st.integers(1, 30),
)
def test_the_size_of_shards_changes_nothing(texts, size):
    whole = _table(*texts)
    parts = [
        clean.clean(whole.slice(start, size), DEFAULT, ("text",), shown=3)
        for start in range(0, len(texts), size)
    ]
    one = clean.clean(whole, DEFAULT, ("text",), shown=3)
    assert one.table["text"].to_pylist() == [t for part in parts for t in part.table["text"].to_pylist()]
    assert one.changed == {step: sum(part.changed[step] for part in parts) for step in DEFAULT}
    assert one.examples == clean.best([e for part in parts for e in part.examples], 3)


def test_an_unknown_step_is_refused():
    with pytest.raises(ParamsError, match=r"preparation.clean: unknown step 'htm'; did you mean 'html'\?"):
        _clean("a", "htm")
