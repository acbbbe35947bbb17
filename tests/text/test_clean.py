import pytest

from tasks.errors import ParamsError
from tasks.text import clean
from tasks.text.sources import Document


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("unicode", "e\u0301", "\u00e9"),
        ("html", "fish &amp; chips &lt;3 &#39;", "fish & chips <3 '"),
        ("control", "a\0b\x07c\ud800d\ufeffe\tf", "abcde\tf"),
        ("whitespace", " a\u00a0\n\tb  c\u2003", "a b c"),
        ("mask_urls", "see http://t.co/x?y=1 and www.x.org now", "see <url> and <url> now"),
        ("mask_mentions", "@you and a@b.org", "<user> and a@b.org"),
        ("mask_emails", "write to a.b@c.org!", "write to <email>!"),
        ("accents", "Crème brûlée, Łódź", "Creme brulee, Łodz"),
    ],
)
def test_what_each_step_does(step, before, after):
    assert clean.STEPS[step](before) == after


@pytest.mark.parametrize("step", clean.STEPS)
def test_a_step_leaves_plain_text_alone(step):
    assert clean.STEPS[step]("Plain text, 100 % ASCII.") == "Plain text, 100 % ASCII."


@pytest.mark.parametrize("step", sorted(clean.STEPS.keys() - {"html"}))
def test_a_step_twice_is_the_step_once(step):
    text = " a\0\u00a0e\u0301 @you http://t.co/x a@b.org\n"
    once = clean.STEPS[step](text)
    assert clean.STEPS[step](once) == once


def _clean(text, *steps):
    documents, changed = clean.clean([Document("1", text, "a", "t:1")], steps)
    return documents[0].text, dict(changed)


def test_steps_apply_in_the_order_given():
    assert _clean("a&#7;&nbsp; b", "html", "whitespace") == ("a b", {"html": 1, "whitespace": 1})
    assert _clean("a&nbsp; b", "whitespace", "html") == ("a\u00a0 b", {"whitespace": 0, "html": 1})


def test_a_text_that_nothing_alters_counts_for_no_step():
    assert _clean("a b", "unicode", "whitespace") == ("a b", {"unicode": 0, "whitespace": 0})


def test_an_unknown_step_is_refused():
    with pytest.raises(ParamsError, match=r"preparation.clean: unknown step 'htm'; did you mean 'html'\?"):
        _clean("a", "htm")
