import pytest

from tasks.errors import ParamsError
from tasks.text import filters
from tasks.text.filters import Drop
from tasks.text.sources import Document


def _document(text):
    return Document("1", text, "a", "t:1")


@pytest.mark.parametrize(
    ("text", "reason"), [("ab", "too_short"), ("abc", None), ("abcd", None), ("abcde", "too_long")]
)
def test_both_bounds_belong_to_what_passes(text, reason):
    (outcome,) = filters.by_length([_document(text)], minimum=3, maximum=4)
    if reason is None:
        assert outcome == _document(text)
    else:
        assert outcome == Drop("1", "filters", reason, f"{len(text)} characters", text)


def test_bounds_that_nothing_can_pass_are_refused():
    with pytest.raises(ParamsError, match=r"minimum_characters \(5\) is above maximum_characters \(4\)"):
        list(filters.by_length([], minimum=5, maximum=4))
