from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

from tasks.errors import ParamsError
from tasks.text import kinds
from tasks.text.tokens import encode, windows
from tasks.text.tokens.tally import tallied

WORDS = some.sampled_from(["Paris", "unbelievably", "é", "1889.", "中中", "don't", "\x01", "a", " "])
TEXT = some.lists(WORDS, min_size=1, max_size=40).map(" ".join)
NONE = {"text": [], "answer_start": []}


def table(*rows):
    """Rows of (question, context, answers)."""
    return pa.table(
        {
            "id": [f"row{n}" for n in range(len(rows))],
            "text": pa.array([context for _, context, _ in rows], pa.string()),
            "question": pa.array([question for question, _, _ in rows], pa.string()),
            "answers": pa.array([answers for _, _, answers in rows], kinds.ANSWERS),
        }
    )


def encoded(tokenizer, *rows, max_length=16, stride=None):
    return encode.shard(
        table(*rows), tokenizer=tokenizer, kind="answer", max_length=max_length, stride=stride
    )


def answer(context, text, *others):
    return {"text": [text, *others], "answer_start": [context.index(part) for part in (text, *others)]}


def context_of(window):
    """(token, characters) of the tokens of a window that are the context's."""
    pairs = zip(window["offsets"][::2], window["offsets"][1::2], strict=True)
    each = zip(window["input_ids"], pairs, strict=True)
    return [(token, place) for token, place in each if place != (-1, -1)]


def test_a_short_row_is_one_window_with_the_tokens_of_its_answer(minilm):
    context = "Built by Gustave Eiffel."
    (found,) = encoded(minilm, ("Who?", context, answer(context, "Gustave Eiffel", "Eiffel"))).to_pylist()
    assert found["input_ids"] == minilm("Who?", context)["input_ids"]
    assert found["token_type_ids"] == minilm("Who?", context)["token_type_ids"]
    assert minilm.decode(found["input_ids"][found["start"] : found["end"] + 1]) == "gustave eiffel"
    assert context[found["offsets"][2 * found["start"]] : found["offsets"][2 * found["end"] + 1]] == (
        "Gustave Eiffel"
    )
    assert (found["lost"], found["missed"]) == (0, 0)


def test_types_of_tokens_stand_only_where_the_tokenizer_makes_them(byte_level):
    context = "a big red dog sees a bird"
    found = encoded(byte_level, ("a red dog", context, answer(context, "red dog")), max_length=64)
    assert found.schema.names[:5] == ["id", "input_ids", "start", "end", "offsets"]
    (row,) = found.to_pylist()
    assert row["input_ids"] == byte_level("a red dog", context)["input_ids"]
    assert byte_level.decode(row["input_ids"][row["start"] : row["end"] + 1]) == " red dog"


def test_without_an_answer_both_places_are_those_of_the_first_token(minilm):
    found = encoded(minilm, ("Who?", "nobody at all " * 9, NONE)).to_pylist()
    assert len(found) > 1
    assert {(row["id"], row["start"], row["end"], row["missed"]) for row in found} == {("row0", 0, 0, 0)}


def test_windows_that_do_not_hold_the_whole_answer_point_nowhere(minilm):
    context = "one two three four five six seven eight"
    found = encoded(minilm, ("w", context, answer(context, "six seven")), max_length=8, stride=1).to_pylist()
    said = [minilm.decode(row["input_ids"][row["start"] : row["end"] + 1]) for row in found]
    assert [minilm.decode([token for token, _ in context_of(row)]) for row in found] == [
        "one two three four", "four five six seven", "seven eight",
    ]  # fmt: skip
    assert said == ["[CLS]", "six seven", "[CLS]"]


def test_an_answer_that_no_window_holds_is_counted_once(minilm):
    context = "one two three four five six seven eight"
    found = encoded(minilm, ("w", context, answer(context, context)), max_length=8)
    assert set(found["end"].to_pylist()) == {0}
    told = tallied(found)
    assert (told.rows, told.missed, told.lost, sum(told.lengths.values())) == (1, 1, 0, len(found))


def test_a_long_question_leaves_half_of_the_window_to_the_context(minilm):
    context = "one two three four five six seven eight"
    found = encoded(minilm, ("who " * 20, context, answer(context, "eight"))).to_pylist()
    assert [row["lost"] for row in found] == [14, 0]
    assert [len(context_of(row)) for row in found] == [7, 5]
    assert [row["input_ids"].count(minilm.convert_tokens_to_ids("who")) for row in found] == [6, 6]
    assert found[1]["start"] > 0


def test_a_question_keeps_the_room_that_its_context_does_not_need(minilm):
    (found,) = encoded(minilm, ("who " * 20, "one", NONE)).to_pylist()
    assert (len(found["input_ids"]), found["lost"]) == (16, 8)


@given(TEXT, TEXT, some.data(), some.integers(8, 24))
def test_windows_cover_every_token_and_hold_each_answer_that_fits(minilm, question, context, data, length):
    most = windows.overlap(minilm, length, None)
    stride = data.draw(some.none() | some.integers(0, most))
    start = data.draw(some.integers(0, len(context) - 1))
    text = context[start : data.draw(some.integers(start + 1, len(context)))].strip()
    assume(text)
    start = context.index(text, start)
    rows = encoded(
        minilm,
        (question, context, {"text": [text], "answer_start": [start]}),
        max_length=length,
        stride=stride,
    ).to_pylist()
    shared = most if stride is None else stride

    assert all(len(row["input_ids"]) <= length for row in rows)
    parts = [context_of(row) for row in rows]
    assert all(one[len(one) - shared :] == other[:shared] for one, other in pairwise(parts))
    tokens = [*parts[0], *(token for part in parts[1:] for token in part[shared:])]
    whole = minilm(context, add_special_tokens=False, return_offsets_mapping=True)
    assert tokens == list(zip(whole["input_ids"], whole["offset_mapping"], strict=True))
    for token, (first, last) in tokens:
        piece = minilm.convert_ids_to_tokens(token).removeprefix("##")
        assert minilm.backend_tokenizer.normalizer.normalize_str(context[first:last]).strip() == piece

    covered = [place for _, place in tokens if place[0] < start + len(text) and place[1] > start]
    holding = [row for row in rows if row["end"]]
    assert rows[0]["missed"] == (not holding)
    if 0 < len(covered) <= shared + 1:
        assert holding
    for row in holding:
        found = context[row["offsets"][2 * row["start"]] : row["offsets"][2 * row["end"] + 1]]
        assert text.strip("\x01 ") in found
        assert row["end"] - row["start"] + 1 == len(covered)


@pytest.mark.parametrize(
    ("max_length", "stride", "message"),
    [
        (16, 7, "encoding.stride = 7 is too much for encoding.max_length = 16: .* at most 6"),
        (4, None, "encoding.max_length = 4 leaves no room for a question and its context: 3 special"),
    ],
)
def test_windows_that_could_not_move_on_are_refused(minilm, max_length, stride, message):
    with pytest.raises(ParamsError, match=message):
        encoded(minilm, ("who", "one", NONE), max_length=max_length, stride=stride)


def test_a_stride_is_only_for_answers():
    windows.check(None, "label")
    windows.check(3, "answer")
    with pytest.raises(ParamsError, match=r"encoding.stride = 3 is for rows of kind answer; .* kind label"):
        windows.check(3, "label")
