"""The encoded rows whose answers are texts: a part of the row's own, or another that is written.

What is true of them stands in preparation's rows, whole; encoding may have cut it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.evaluation.asking.rows import Rows
from tasks.evaluation.predictions import texts_of

Prepared = Mapping[str, Mapping[str, Any]]  # row id -> preparation's row


def answered(table: pa.Table, prepared: Prepared) -> tuple[Rows, list[str]]:
    """Questions, each once, in the order of its first window, and what is shown of them: the question, a line
    break, the text. `tokens` has the windows: input_ids, token_type_ids, `offsets`, and `owners`, the number
    of each one's question."""
    ids = list(dict.fromkeys(table["id"].to_pylist()))
    number = {id: place for place, id in enumerate(ids)}
    names = [name for name in ("input_ids", "token_type_ids", "offsets") if name in table.column_names]
    tokens: dict[str, Any] = {name: table[name].to_pylist() for name in names}
    tokens["owners"] = [[number[id]] for id in table["id"].to_pylist()]
    actual = np.empty(len(ids), dtype=object)
    for place, id in enumerate(ids):
        actual[place] = [text for text in prepared[id]["answers"]["text"] if text]
    texts = [prepared[id]["text"] for id in ids]
    questions = [" ".join(prepared[id]["question"].split()) for id in ids]
    shown = [f"{question}\n{text}" for question, text in zip(questions, texts, strict=True)]
    return Rows(tuple(ids), tokens, actual, texts), shown


def translated(table: pa.Table, prepared: Prepared) -> tuple[Rows, list[str]]:
    """Texts, and what should be written of each."""
    ids = table["id"].to_pylist()
    actual = texts_of(prepared[id]["target"] for id in ids)
    texts = [prepared[id]["text"] for id in ids]
    return Rows(tuple(ids), {"input_ids": table["input_ids"].to_pylist()}, actual, texts), texts


READINGS: Mapping[str, Callable[[pa.Table, Prepared], tuple[Rows, list[str]]]] = {
    "answer": answered,
    "translation": translated,
    "prefix-remainder": translated,
}
COLUMNS: Mapping[str, Sequence[str]] = {  # of preparation's rows
    "answer": ("id", "text", "question", "answers"),
    "translation": ("id", "text", "target"),
    "prefix-remainder": ("id", "text", "target"),
}
