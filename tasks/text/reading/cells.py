"""From the cells of a row to the columns of its kind, or to the reason why they are none.

A table of converters by the kind's column, and one of what a kind asks of a row as a whole.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

from tasks.text.kinds import prompt_of, split_text

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
ROLES = ("system", "user", "assistant", "tool", "function", "developer")
SHOWN = 60  # characters of a faulty value in a detail


class Fault(Exception):
    """Why a row is no document; it becomes a row of the quarantine, whose reason is one of report.REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def text(value: Any, column: str) -> str:
    if type(value) is str:
        return value
    if _is_missing(value):
        raise Fault("no_text", f"column {column!r} is null or missing")
    raise _wrong_type(value, column, "text")


def label(value: Any, column: str) -> str:
    """Names, whole numbers, true and false; 3 and 3.0 are the label "3"."""
    if type(value) is str:
        name = value.strip()
    elif _is_missing(value):
        name = ""
    elif isinstance(value, bool):
        name = "true" if value else "false"
    elif isinstance(value, int | float):
        name = str(value if isinstance(value, int) or not value.is_integer() else int(value))
    else:
        raise _wrong_type(value, column, "a label")
    if not name:
        raise Fault("no_label", f"column {column!r} is empty")
    return name


def labels(value: Any, column: str, separator: str | None = None) -> tuple[str, ...]:
    """Sorted, each once; none is allowed, for a row to which no label applies."""
    if isinstance(value, str) and separator:
        value = [part for part in value.split(separator) if part.strip()]
    if _is_missing(value):
        raise Fault("no_label", f"column {column!r} is null or missing")
    if not isinstance(value, list):
        raise _wrong_type(value, column, "a list of labels (or name sources.text.separator)")
    return tuple(sorted({label(item, column) for item in value}))


def score(value: Any, column: str) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        if _is_missing(value):
            raise Fault("not_a_number", f"column {column!r} is null or missing")
        raise _wrong_type(value, column, "a number")
    try:
        number = float("nan" if isinstance(value, str) and "_" in value else value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault("not_a_number", f"column {column!r} holds {_shown(value)}")
    return number


def words(value: Any, column: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong_type(value, column, "a list of texts")
    return tuple(text(item, column) for item in value)


def tags(value: Any, column: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong_type(value, column, "a list of tags")
    return tuple(label(item, column) for item in value)


def answers(value: Any, column: str) -> dict[str, Any]:
    """As in SQuAD: {"text": [...], "answer_start": [...]}; two empty lists where there is no answer."""
    wanted = 'an object {"text": [...], "answer_start": [...]}'
    if not isinstance(value, dict) or not {"text", "answer_start"} <= value.keys():
        raise _wrong_type(value, column, wanted)
    found, starts = value["text"], value["answer_start"]
    if not isinstance(found, list) or not isinstance(starts, list):
        raise _wrong_type(value, column, wanted)
    if any(isinstance(start, bool) or not isinstance(start, int) for start in starts):
        raise _wrong_type(starts, column, "a list of places as answer_start")
    return {"text": [text(item, column) for item in found], "answer_start": list(starts)}


def messages(value: Any, column: str) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise _wrong_type(value, column, "a list of messages")
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise Fault("bad_messages", f"{_shown(message)} has no role and content that are texts")
        if message["role"] not in ROLES:
            raise Fault("bad_messages", f"role {message['role']!r} is none of {', '.join(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def split(value: Any, column: str) -> str | None:
    """None where nothing stands in the cell: the row's split is not given."""
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    name = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if name is None:
        raise Fault("unknown_split", f"column {column!r} holds {_shown(value)}: train, validation or test")
    return name


def identity(value: Any, column: str) -> str:
    """An id as text; the whole number 7 is "7"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if _is_missing(value) or value == "":
        raise Fault("no_id", f"column {column!r} is empty")
    if not isinstance(value, str):
        raise _wrong_type(value, column, "an id")
    return value


def kept(value: Any, column: str) -> str | None:
    """What comes along, as text: numbers as labels are written, dates as 2026-01-31; None where nothing
    stands in the cell."""
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, date | time | Decimal):
        return str(value)
    if not isinstance(value, str | int | float):
        raise _wrong_type(value, column, "a text, a number or a date")
    found = label(value, column)
    if any("\ud800" <= character <= "\udfff" for character in found):
        raise Fault("lone_surrogate", f"column {column!r} holds half of a surrogate pair")
    return found


Row = Sequence[Any]  # text, then the kind's columns


def _tagged(cells: Row) -> Row:
    tokens, tags = cells
    if len(tokens) != len(tags):
        raise Fault("tags_mismatch", f"{len(tokens)} tokens and {len(tags)} tags")
    if not tokens:
        raise Fault("no_text", "there are no tokens")
    return " ".join(tokens), tokens, tags


def _answered(cells: Row) -> Row:
    """The answers must stand in the context where they say: everything that is learnt hangs on it."""
    context, _, answers = cells
    spans, starts = answers["text"], answers["answer_start"]
    if len(spans) != len(starts):
        raise Fault("span_mismatch", f"{len(spans)} answers and {len(starts)} starts")
    for span, start in zip(spans, starts, strict=True):
        if not span.strip():
            raise Fault("span_mismatch", "an answer is empty: a question without one has two empty lists")
        if start < 0 or not context.startswith(span, start):
            raise Fault("span_mismatch", f"{_shown(span)} does not stand at character {start} of the context")
    return cells


def _conversed(cells: Row) -> Row:
    (messages,) = cells
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        last = f"the last of {len(messages)} is {messages[-1]['role']}'s" if messages else "there are none"
        raise Fault("bad_messages", f"the assistant must answer at least one message: {last}")
    if not messages[-1]["content"].strip():
        raise Fault("bad_messages", "the assistant's last reply is empty")
    return prompt_of(messages), messages


def _halved(cells: Row) -> Row:
    halves = split_text(cells[0])
    if halves is None:
        raise Fault("nothing_to_split", "the text has fewer than two words")
    return halves


CELLS: Mapping[str, Callable[[Any, str], Any]] = {
    "label": label,
    "labels": labels,
    "score": score,
    "tokens": words,
    "tags": tags,
    "answers": answers,
    "messages": messages,
    **dict.fromkeys(
        ("text", "pair", "prompt", "completion", "source", "target", "context", "question", "chosen",
         "rejected"),
        text,
    ),
}  # fmt: skip
WHOLE: Mapping[str, Callable[[Row], Row]] = {  # by kind; others are complete as they are
    "tags": _tagged,
    "answer": _answered,
    "chat": _conversed,
    "prefix-remainder": _halved,
}


def fractional(labels: Collection[str]) -> set[str] | None:
    """Those labels that are numbers with a fraction, or None where one is no number at all."""
    try:
        return {label for label in labels if not float(label).is_integer()}
    except (ValueError, OverflowError):  # a name among them; infinity is one
        return None


def _is_missing(value: Any) -> bool:
    """Tables that pandas wrote hold NaN where there was nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _wrong_type(value: Any, column: str, wanted: str) -> Fault:
    found = "nothing" if value is None else f"{type(value).__name__} {_shown(value)}"
    return Fault("wrong_type", f"column {column!r} holds {found}: {wanted} is wanted")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN else shown[:SHOWN] + "…"
