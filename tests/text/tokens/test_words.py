import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tasks.errors import CheckpointError, DataError
from tasks.text import kinds
from tasks.text.tokens import encode
from tasks.text.tokens.tally import tallied

NAMES = ("B-X", "I-X", "O")
WORD = some.text(alphabet="aeéZ中19-'\x01 s", max_size=7)
TAGGED = some.lists(some.tuples(WORD, some.sampled_from(NAMES)), min_size=1, max_size=12)


def table(*rows):
    """Rows of (word, tag)."""
    return pa.table(
        {
            "id": [f"row{n}" for n in range(len(rows))],
            "text": [" ".join(word for word, _ in row) for row in rows],
            "tokens": pa.array([[word for word, _ in row] for row in rows], kinds.STRINGS),
            "tags": pa.array([[tag for _, tag in row] for row in rows], kinds.STRINGS),
        }
    )


def encoded(tokenizer, *rows, max_length=64, names=NAMES):
    return encode.shard(table(*rows), tokenizer=tokenizer, kind="tags", max_length=max_length, names=names)


def test_each_word_has_the_place_of_its_first_piece_and_its_tag(minilm):
    row = [("Unbelievably", "O"), ("Ångström", "B-X"), ("X", "I-X")]
    (found,) = encoded(minilm, row).to_pylist()
    pieces = minilm.convert_ids_to_tokens(found["input_ids"])
    assert pieces[0] == "[CLS]"
    assert pieces[-1] == "[SEP]"
    assert [pieces[place] for place in found["places"]] == ["un", "ang", "x"]
    assert found["tags"] == [2, 0, 1]
    assert "token_type_ids" not in found


def test_words_that_are_cut_off_leave_with_their_tags(minilm):
    row = [("one", "O"), ("Ångström", "B-X"), ("three", "O"), ("four", "I-X")]
    (found,) = encoded(minilm, row, max_length=4).to_pylist()
    whole = encoded(minilm, row)["input_ids"].to_pylist()[0]
    assert found["input_ids"] == [*whole[:3], whole[-1]]
    assert (found["places"], found["tags"], found["lost"]) == ([1, 2], [2, 0], 3)


def test_a_word_without_a_piece_is_counted_and_moves_no_tag(minilm):
    found = encoded(minilm, [("one", "B-X"), ("\x01", "O"), ("two", "I-X")], [("\x01", "O")])
    assert found["places"].to_pylist() == [[1, 2], []]
    assert found["tags"].to_pylist() == [[0, 1], []]
    assert tallied(found).missed == 2


@given(TAGGED, some.integers(8, 20))
def test_every_place_is_inside_the_row_and_holds_the_beginning_of_its_word(minilm, row, max_length):
    (found,) = encoded(minilm, row, max_length=max_length).to_pylist()
    (whole,) = encoded(minilm, row, max_length=500).to_pylist()
    assert len(found["input_ids"]) == min(max_length, len(whole["input_ids"]))
    assert len(found["input_ids"]) + found["lost"] == len(whole["input_ids"])
    assert found["places"] == [place for place in whole["places"] if place < len(found["input_ids"]) - 1]
    plain = [(minilm.backend_tokenizer.normalizer.normalize_str(word).strip(), tag) for word, tag in row]
    spoken = [(word, tag) for word, tag in plain if word]
    assert (len(whole["places"]), whole["missed"]) == (len(spoken), len(row) - len(spoken))
    for place, number, (word, tag) in zip(found["places"], found["tags"], spoken, strict=False):
        piece = minilm.convert_ids_to_tokens(found["input_ids"][place])
        assert piece == minilm.unk_token or word.startswith(piece)
        assert NAMES[number] == tag


def test_words_are_cut_as_in_a_text_where_their_space_is_part_of_them(byte_level):
    row = [("a", "O"), ("red", "B-X"), ("bird", "I-X"), ("", "O"), ("dog", "O")]
    (found,) = encoded(byte_level, row).to_pylist()
    assert found["input_ids"] == byte_level("a red bird dog")["input_ids"]
    pieces = byte_level.convert_ids_to_tokens(found["input_ids"])
    assert [pieces[place] for place in found["places"]] == ["a", "Ġred", "Ġbird", "Ġdog"]
    assert (found["tags"], found["missed"]) == ([2, 0, 1, 2], 1)


def test_a_tag_without_a_number_is_refused(minilm):
    with pytest.raises(DataError, match="labels 'B-Y' are not among B-X, I-X, O"):
        encoded(minilm, [("one", "B-Y")])


@pytest.mark.parametrize("kind", encode.TRACED)
def test_a_tokenizer_that_cannot_say_where_tokens_come_from_is_refused(kind):
    from transformers import CanineTokenizer

    with pytest.raises(CheckpointError, match=f"rows of kind {kind} need a tokenizer that says where"):
        encode.shard(table(), tokenizer=CanineTokenizer(), kind=kind, max_length=64)
