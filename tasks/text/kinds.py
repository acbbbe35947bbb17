"""What a row is: a table of row kinds, each with its columns and with what it is compared by.

Duplicates, splits and conflicts are told by the column `text` (of a pair: both texts): the prompt of a
completion, the source of a translation, the context of a question. The `answer` is what the text should give.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import polars as pl
import pyarrow as pa

from tasks.text import signatures

STRINGS = pa.list_(pa.string())
MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
BETWEEN = " \u241e "  # the texts of a pair: a symbol, which keys keep, so that no word changes sides unseen
JOINT = "\x1f"  # between the labels of one row: ASCII's unit separator, which no label holds
ANSWERS = pa.struct({"text": STRINGS, "answer_start": pa.list_(pa.int32())})  # as in SQuAD


@dataclass(frozen=True)
class Kind:
    """Every row has a column `text`; `columns` are the others (name -> type)."""

    columns: Mapping[str, pa.DataType]
    text: str | None = "text"  # the table's name for it; None: it is made from the other columns
    made: tuple[str, ...] = ()  # columns that are made from `text` and not looked for in the table
    answer: tuple[str, ...] = ()
    one_answer: bool = False  # a text with two different answers is a conflict
    classes: str | None = None  # the column that names classes, for strata and label sets
    near_answers: bool = False  # near-duplicates with different answers are a conflict too
    cleaned: tuple[str, ...] = ("text",)  # spans and tags would slip under cleaning
    compared: tuple[str, ...] = ("text",)
    beside: tuple[str, ...] = ()  # what a model is given beside what is compared

    @property
    def asked(self) -> tuple[str, ...]:
        """The columns that a model is given."""
        return (*self.compared, *self.beside)

    def wanted(self) -> tuple[str, ...]:
        """What the table must have, under these names unless sources.text.columns says otherwise."""
        own = tuple(name for name in self.columns if name not in self.made)
        return own if self.text is None else (self.text, *own)


def compared(table: pa.Table, kind: Kind) -> pl.Series:
    """The text of each row by which duplicates are found."""
    parts = [pl.Series(name, table[name]) for name in kind.compared]
    return parts[0] if len(parts) == 1 else pl.select(pl.concat_str(parts, separator=BETWEEN)).to_series()


def answers(table: pa.Table, kind: Kind) -> pl.Series:
    """A hash (uint64) of each row's answer; the same for all where the kind has none."""
    if not kind.answer:
        return pl.Series("answer", [0] * len(table), dtype=pl.UInt64)
    if len(kind.answer) == 1 and kind.columns[kind.answer[0]] == pa.string():
        return pl.Series("answer", signatures.hashed(pl.Series(table[kind.answer[0]])))
    rows = table.select(kind.answer).to_pylist()
    said = [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows]
    return pl.Series("answer", signatures.hashed(pl.Series(said, dtype=pl.String)))


def classes(table: pa.Table, kind: Kind) -> list[str]:
    """The class of each row for strata: its label, or its labels joined, each once and sorted; "" where the
    kind has no classes."""
    if kind.classes is None:
        return [""] * len(table)
    column = table[kind.classes]
    if column.type != pa.string():
        column = pa.chunked_array([[JOINT.join(sorted(set(row))) for row in column.to_pylist()]], pa.string())
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()  # one string a class, not one a row
    return [names[number] for number in encoded.indices.to_pylist()]


def is_detached(tags: Sequence[str]) -> bool:
    """Whether a tag I-X follows neither B-X nor I-X: IOB1, where a span may begin so, or a fault of IOB2."""
    return any(
        tag.startswith("I-") and before not in (f"B-{tag[2:]}", tag) for before, tag in pairwise(("O", *tags))
    )


def split_text(text: str) -> tuple[str, str] | None:
    """The first half of the words and the rest, or None where there are fewer than two words."""
    words = text.split()
    half = len(words) // 2
    return (" ".join(words[:half]), " ".join(words[half:])) if half else None


def prompt_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """All that is said before the last message, one message a line."""
    return "\n".join(str(message["content"]) for message in messages[:-1])


LABEL = {"label": pa.string()}
TARGET = {"target": pa.string()}
KINDS: Mapping[str, Kind] = {
    "label": Kind(LABEL, answer=("label",), one_answer=True, classes="label", near_answers=True),
    "labels": Kind(
        {"labels": STRINGS}, answer=("labels",), one_answer=True, classes="labels", near_answers=True
    ),
    "score": Kind({"score": pa.float64()}, answer=("score",), one_answer=True),
    "pair": Kind(
        {"pair": pa.string(), **LABEL},
        answer=("label",),
        one_answer=True,
        classes="label",
        near_answers=True,
        cleaned=("text", "pair"),
        compared=("text", "pair"),
    ),
    "text": Kind({}),
    "completion": Kind(
        {"completion": pa.string()},
        text="prompt",
        answer=("completion",),
        cleaned=("text", "completion"),
    ),
    "chat": Kind({"messages": MESSAGES}, text=None, answer=("messages",), cleaned=()),
    "translation": Kind(TARGET, text="source", answer=("target",), cleaned=("text", "target")),
    "prefix-remainder": Kind(TARGET, made=("target",), answer=("target",), cleaned=("text", "target")),
    "tags": Kind(
        {"tokens": STRINGS, "tags": STRINGS},
        text=None,
        answer=("tags",),
        one_answer=True,
        classes="tags",
        cleaned=(),
    ),
    "answer": Kind(
        {"question": pa.string(), "answers": ANSWERS},
        text="context",
        answer=("question", "answers"),
        cleaned=(),
        beside=("question",),
    ),
    "preference": Kind(
        {"chosen": pa.string(), "rejected": pa.string()},
        text="prompt",
        answer=("chosen", "rejected"),
        cleaned=("text", "chosen", "rejected"),
    ),
    "rating": Kind(
        {"completion": pa.string(), "score": pa.float64()},
        text="prompt",
        answer=("completion", "score"),
        cleaned=("text", "completion"),
    ),
}
