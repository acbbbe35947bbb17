"""What all readers share: how a table is to be read, what a row of it is, and which rows are none."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tasks.errors import SourceError, did_you_mean
from tasks.text.reading import streams

UNDECODABLE = "undecodable", "a byte is no character in the file's encoding"


@dataclass(frozen=True)
class Layout:
    """How a table is to be read. `columns` maps the kind's names to the table's, where they differ; `keep`
    are columns that come along."""

    kind: str = "label"
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    id: str | None = None
    split: str | None = None
    keep: tuple[str, ...] = ()
    separator: str | None = None
    encoding: str = "utf-8"
    undecodable: Literal["quarantine", "replace"] = "quarantine"
    maximum_row: int = 2**24
    maximum_bytes: int = 2**36


class Row(NamedTuple):
    """`cells` in the order of the wanted columns, none where there is a `fault` (reason, detail)."""

    line: int
    cells: Sequence[Any]
    raw: str | bytes | None  # None: the cells are all there is
    fault: tuple[str, str] | None = None
    torn: bool = False  # bytes were replaced


class Table(NamedTuple):
    """One file: its name in places, the split that its name stands for, its rows and their encoding."""

    name: str
    split: str | None
    rows: Iterator[Row]
    encoding: str


Wanted = Mapping[str, str]  # role (the kind's name, "id", "split", what is kept) -> column of the table


def check_columns(columns: Collection[str], present: Sequence[str], name: str) -> None:
    """Raises SourceError for a column that the table `name` lacks or has twice."""
    for column in columns:
        if column not in present:
            raise SourceError(f"{name} has no column {column!r}; {did_you_mean(column, present)}")
        if (times := list(present).count(column)) > 1:
            raise SourceError(f"{name} has {times} columns called {column!r}: rename all but one")


def lines(path: Path, encoding: str, layout: Layout, *, ends: str) -> Iterator[str]:
    """`streams.lines` within the bounds of `layout`."""
    return streams.lines(
        path, encoding, ends=ends, maximum_row=layout.maximum_row, maximum_bytes=layout.maximum_bytes
    )


def is_too_large(text: str, maximum: int) -> bool:
    """Characters are counted first, which costs nothing; none has more than four bytes."""
    if 4 * len(text) <= maximum:
        return False
    return len(text) > maximum or len(text.encode("utf-8", "surrogatepass")) > maximum


def too_large(maximum: int) -> tuple[str, str]:
    """The fault (reason, detail) of such a row."""
    return "too_large", f"more than sources.text.maximum_row = {maximum} bytes"


def dump(cells: Iterable[Any]) -> bytes:
    """What stands in the quarantine for a row that has no bytes of its own in the file."""
    return json.dumps(list(cells), ensure_ascii=False, default=str).encode("utf-8", "replace")
