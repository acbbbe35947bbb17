"""Questions and their contexts as token ids: a long context becomes several rows that overlap."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from tasks.errors import ParamsError

ROWS = 512  # at once: a context may be long, and none of it is cut off
NAMES = ("id", "input_ids", "start", "end", "offsets", "lost", "missed")
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Row:
    """The tokens of a question and its context, by their positions before any cut; `start` and `stop` are the
    characters of the answer, equal where there is none."""

    id: str
    sides: Sequence[int | None]  # 0 for the question, 1 for the context, None for special tokens
    offsets: Sequence[tuple[int, int]]
    start: int
    stop: int

    def positions(self, side: int | None) -> list[int]:
        return [place for place, other in enumerate(self.sides) if other == side]


@dataclass(frozen=True)
class Window:
    """The positions that make one encoded row; `start` and `end` are places in it, 0 without the answer."""

    positions: Sequence[int]
    start: int
    end: int


def check(stride: int | None, kind: str) -> None:
    """Raises ParamsError where `stride` is given for rows without windows."""
    if stride is not None and kind != "answer":
        raise ParamsError(
            f"encoding.stride = {stride} is for rows of kind answer; these are of kind {kind}: set it to null"
        )


def overlap(tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int | None) -> int:
    """Tokens that neighbouring windows share: `stride`, or a quarter of `max_length`.

    Raises ParamsError where windows would not move on, or have no room for question and context.
    """
    frame = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_length - frame
    if room < 2:
        raise ParamsError(
            f"encoding.max_length = {max_length} leaves no room for a question and its context: {frame} "
            "special tokens frame them"
        )
    most = room - room // 2 - 1
    if stride is not None and stride > most:
        raise ParamsError(
            f"encoding.stride = {stride} is too much for encoding.max_length = {max_length}: beside a long "
            f"question a window would not move on; at most {most}"
        )
    return min(max_length // 4, most) if stride is None else stride


def encode(
    rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int | None = None
) -> Columns:
    """The windows of all rows: `id` of the row, `input_ids`, `start` and `end` of its first answer (positions
    of tokens, both 0 where the window does not hold it whole), `offsets` (two numbers a token: its characters
    in the context, -1 outside of it), token_type_ids where the tokenizer makes them.

    A question may fill half of a window where the row does not fit; what is cut off is `lost`. An answer that
    no window holds is `missed`. Both stand with the first window of a row.
    """
    shared = overlap(tokenizer, max_length, stride)
    types = ("token_type_ids",) if "token_type_ids" in tokenizer.model_input_names else ()
    columns: Columns = {name: [] for name in (*NAMES, *types)}
    if not len(rows):  # an empty list is no batch to a tokenizer
        return columns
    found = _call(tokenizer, rows)
    for number, row in enumerate(_rows(rows, found)):
        kept = _kept(row, max_length)
        windows = list(_windows(row, kept, max_length, shared))
        for name in ("input_ids", *types):
            values = found[name][number]
            columns[name] += [[values[place] for place in window.positions] for window in windows]
        for name, column in _told(row, windows, len(row.sides) - len(kept)).items():
            columns[name] += column
    return columns


def _call(tokenizer: PreTrainedTokenizerBase, rows: pa.Table) -> Any:
    return tokenizer(
        rows["question"].to_pylist(),
        rows["text"].to_pylist(),
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        return_offsets_mapping=True,
        verbose=False,
    )


def _rows(rows: pa.Table, found: Any) -> Iterator[Row]:
    ids, answers = rows["id"].to_pylist(), rows["answers"].to_pylist()
    for number, (id, answer) in enumerate(zip(ids, answers, strict=True)):
        yield Row(id, found.sequence_ids(number), found["offset_mapping"][number], *_characters(answer))


def _characters(answers: Mapping[str, Sequence[Any]]) -> tuple[int, int]:
    """Of the first answer, as SQuAD is trained on: where it starts and stops in the context."""
    if not any(answers["text"][:1]):
        return 0, 0
    start = answers["answer_start"][0]
    return start, start + len(answers["text"][0])


def _kept(row: Row, max_length: int) -> list[int]:
    """All positions but the end of a question that leaves a context too little room."""
    room = max_length - len(row.positions(None))
    most = max(room // 2, room - len(row.positions(1)))
    gone = set(row.positions(0)[most:])
    return [place for place in range(len(row.sides)) if place not in gone]


def _windows(row: Row, kept: Sequence[int], max_length: int, shared: int) -> Iterator[Window]:
    """The context in turns, between what stands before it and behind it."""
    context = row.positions(1)
    first, last = (context[0], context[-1]) if context else (len(row.sides), len(row.sides))
    head, tail = [place for place in kept if place < first], [place for place in kept if place > last]
    room = max_length - len(head) - len(tail)
    answer = [number for number, place in enumerate(context) if _answers(row, place)]
    starts = [0] if len(context) <= room else range(0, len(context) - shared, room - shared)
    for start in starts:
        positions = [*head, *context[start : start + room], *tail]
        if answer and start <= answer[0] and answer[-1] < start + room:
            ahead = len(head) - start
            yield Window(positions, answer[0] + ahead, answer[-1] + ahead)
        else:
            yield Window(positions, 0, 0)


def _answers(row: Row, place: int) -> bool:
    start, stop = row.offsets[place]
    return start < row.stop and stop > row.start


def _told(row: Row, windows: Sequence[Window], lost: int) -> Columns:
    held = row.start == row.stop or any(window.end for window in windows)
    more = [0] * (len(windows) - 1)
    return {
        "id": [row.id] * len(windows),
        "start": [window.start for window in windows],
        "end": [window.end for window in windows],
        "offsets": [_flat(row, window) for window in windows],
        "lost": [lost, *more],
        "missed": [int(not held), *more],
    }


def _flat(row: Row, window: Window) -> list[int]:
    pairs = (row.offsets[place] if row.sides[place] == 1 else (-1, -1) for place in window.positions)
    return [number for pair in pairs for number in pair]
