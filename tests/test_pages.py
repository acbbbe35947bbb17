import pytest
from jinja2 import UndefinedError

from tasks import pages


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "some.jinja"
    path.write_text(
        '{% extends "page.jinja" %}{% block body %}<p>{{ number(rows) }} {{ text | visible }}</p>{% endblock %}'
    )
    return path


def test_a_page_is_whole_and_escapes_what_it_is_given(template):
    page = pages.render(template, rows=12345, text="<b>\u202e")
    assert page.startswith("<!doctype html>")
    assert "<p>12,345 &lt;b&gt;\\u202e</p>" in page


def test_a_name_that_is_not_given_is_no_blank(tmp_path):
    (tmp_path / "some.jinja").write_text("{{ missing }}")
    with pytest.raises(UndefinedError, match="missing"):
        pages.render(tmp_path / "some.jinja")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\0b\r", r"a\x00b\r"),
        ("\x92\u202e\udc80", r"\x92\u202e\udc80"),
        ("a\n\tb é 👩\u200d👧", "a\n\tb é 👩\u200d👧"),
    ],
)
def test_what_no_browser_shows_is_shown(text, shown):
    assert pages.visible(text) == shown
