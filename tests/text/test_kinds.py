import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.text import kinds
from tasks.text.kinds import KINDS


@pytest.mark.parametrize("name", KINDS)
def test_what_a_kind_speaks_of_it_has(name):
    kind = KINDS[name]
    columns = {"text", *kind.columns}
    assert {*kind.answer, *kind.cleaned, *kind.compared, *kind.made} <= columns
    assert kind.classes is None or kind.classes in kind.answer
    assert kind.text is not None or kind.wanted()


def test_a_pair_is_compared_by_both_texts():
    table = pa.table({"text": ["a"], "pair": ["b"], "label": ["x"]})
    assert kinds.compared(table, KINDS["pair"]).to_list() == ["a \u241e b"]


def test_answers_are_equal_where_all_their_columns_are():
    table = pa.table({"chosen": ["a", "a", "b"], "rejected": ["b", "b", "a"]})
    one, same, other = kinds.answers(table, KINDS["preference"]).to_list()
    assert one == same != other
    assert kinds.answers(table, KINDS["text"]).to_list() == [0, 0, 0]


def test_classes_are_labels_joined_or_nothing():
    assert kinds.classes(pa.table({"labels": [["a", "b"], []]}), KINDS["labels"]) == ["a\x1fb", ""]
    assert kinds.classes(pa.table({"tags": [["O", "B-X", "O"]]}), KINDS["tags"]) == ["B-X\x1fO"]
    assert kinds.classes(pa.table({"text": ["a"]}), KINDS["text"]) == [""]


@pytest.mark.parametrize(
    ("tags", "detached"),
    [
        ("O B-X I-X I-X O", False),
        ("B-X B-Y I-Y", False),
        ("I-X", True),
        ("O I-X", True),
        ("B-X I-Y", True),
        ("B-X O I-X", True),
        ("NOUN I VERB", False),
    ],
)
def test_a_span_that_begins_within_itself_is_noticed(tags, detached):
    assert kinds.is_detached(tags.split()) == detached


@given(st.text(alphabet="ab ", max_size=20))
def test_a_prefix_and_its_remainder_are_all_the_words(text):
    words = text.split()
    found = kinds.split_text(text)
    assert (found is None) == (len(words) < 2)
    if found:
        assert " ".join(found).split() == words
        assert all(found)


def test_a_prompt_is_all_but_the_last_message():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert kinds.prompt_of(messages) == "hi"
