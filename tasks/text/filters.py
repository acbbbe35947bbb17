"""Rows that leave because of what they are; each filter says why, with the number or name that decided."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import pyarrow as pa

from tasks import environment
from tasks.errors import ParamsError, did_you_mean

SYMBOL = re.compile(r"[^\w\s]|_")
SHORTEST = 20  # characters; of fewer a language is a guess
# Of 1,000 English tweets lingua takes 56 for another language, 2 of them with more than this confidence; of
# 18 sentences in 14 other languages, all.
CONFIDENCE = 0.5


@dataclass(frozen=True)
class Bounds:
    """What may pass. Raises ParamsError where no length could."""

    minimum: int  # characters, without white space around them
    maximum: int
    symbols: float = 1.0  # share of characters
    languages: tuple[str, ...] = ()  # ISO 639-1; empty: any
    labels: tuple[str, ...] = ()  # empty: any

    def __post_init__(self) -> None:
        if self.minimum > self.maximum:
            raise ParamsError(
                f"preparation.minimum_characters ({self.minimum}) is above maximum_characters "
                f"({self.maximum}): no text passes"
            )


class Row(NamedTuple):
    text: str
    labels: tuple[str, ...]
    answers: tuple[tuple[str, str], ...] = ()  # (column, what the row says there)


Filter = Callable[[Row, Bounds], str | None]


def too_short(row: Row, bounds: Bounds) -> str | None:
    """The detail that drops the row, or None; so say all filters."""
    length = len(row.text.strip())
    return f"{length} characters, fewer than {bounds.minimum}" if length < bounds.minimum else None


def empty_answer(row: Row, bounds: Bounds) -> str | None:
    blank = next((column for column, answer in row.answers if not answer.strip()), None)
    return None if blank is None else f"column {blank!r} is empty"


def too_long(row: Row, bounds: Bounds) -> str | None:
    for where, text in (("", row.text), *((f" in column {name!r}", text) for name, text in row.answers)):
        if (length := len(text.strip())) > bounds.maximum:
            return f"{length} characters{where}, more than {bounds.maximum}"
    return None


def too_many_symbols(row: Row, bounds: Bounds) -> str | None:
    """Symbols are neither letters (with their marks, as in Hindi), digits nor white space."""
    if bounds.symbols >= 1 or not row.text:
        return None
    found = SYMBOL.findall(row.text)
    share = sum(unicodedata.category(c)[0] != "M" for c in found) / len(row.text)
    return f"{share:.0%} symbols, more than {bounds.symbols:.0%}" if share > bounds.symbols else None


def other_language(row: Row, bounds: Bounds) -> str | None:
    """Only a text of which lingua is sure leaves: losing a good row costs more than keeping a foreign one.

    Raises ParamsError for an unknown code, or where lingua is not installed.
    """
    if not bounds.languages:
        return None
    detector, wanted = _detector(), _languages(bounds.languages)
    if len(row.text) < SHORTEST:
        return None
    likeliest = detector.compute_language_confidence_values(row.text)[0]
    if likeliest.language in wanted or likeliest.value < CONFIDENCE:
        return None
    name = likeliest.language.name.capitalize()
    return f"{name} ({likeliest.value:.0%} sure), not {' or '.join(bounds.languages)}"


def outside_labels(row: Row, bounds: Bounds) -> str | None:
    known = bounds.labels
    strange = next((label for label in row.labels if known and label not in known), None)
    return None if strange is None else f"label {strange!r}; {did_you_mean(strange, known)}"


def reasons(
    table: pa.Table, bounds: Bounds, *, classes: str | None, answers: Sequence[str] = ()
) -> list[tuple[str, str] | None]:
    """For each row of `table` the first filter it fails and the detail, or None where it passes.

    `classes` names the column of labels (strings, or lists of them), if the rows have one; `answers` columns
    of strings besides the text, which may be neither empty nor too long. Raises ParamsError for labels where
    there are none, and for languages that cannot be told.
    """
    if bounds.labels and classes is None:
        raise ParamsError("preparation.labels is set, but rows of this kind bear no labels: set it to []")
    texts = table["text"].to_pylist()
    labels = [()] * len(texts) if classes is None else map(_labels, table[classes].to_pylist())
    rows = zip(texts, labels, _answers(table, answers), strict=True)
    return [_reason(Row(*row), bounds) for row in rows]


def _reason(row: Row, bounds: Bounds) -> tuple[str, str] | None:
    for reason, failed in FILTERS.items():
        if detail := failed(row, bounds):
            return reason, detail
    return None


def _labels(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _answers(table: pa.Table, columns: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    """Of each row (column, what it says there)."""
    said: list[tuple[tuple[str, str], ...]] = [()] * len(table)
    for column in columns:
        values = table[column].to_pylist()
        said = [(*row, (column, value)) for row, value in zip(said, values, strict=True)]
    return said


@cache
def _detector() -> Any:
    """All languages lingua knows (one that it may not name would be taken for another), about 1 GB."""
    return _lingua().LanguageDetectorBuilder.from_all_languages().build()


@cache
def _languages(codes: tuple[str, ...]) -> frozenset[Any]:
    known = {language.iso_code_639_1.name.lower(): language for language in _lingua().Language.all()}
    for code in codes:
        if code.lower() not in known:
            raise ParamsError(
                f"preparation.languages: no language {code!r} can be told; {did_you_mean(code, known)}"
            )
    return frozenset(known[code.lower()] for code in codes)


def _lingua() -> ModuleType:
    environment.demand("lingua", extra="language", wanted="preparation.languages")
    import lingua

    return lingua


FILTERS: Mapping[str, Filter] = {  # reason -> filter; what the reason means stands in report.REASONS
    "too_short": too_short,
    "empty_answer": empty_answer,
    "too_long": too_long,
    "too_many_symbols": too_many_symbols,
    "other_language": other_language,
    "outside_labels": outside_labels,
}
