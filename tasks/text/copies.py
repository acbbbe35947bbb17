"""Copy a table with more columns, chunk by chunk: what cannot be asked about is set aside, with its reason.

A table is read as `reading` reads it and written in its own format, unpacked; the other columns come along.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as parquet

from tasks.errors import InputError, SourceError
from tasks.text.reading import cells, columnar, formats, objects, separated, streams
from tasks.text.reading.cells import Fault
from tasks.text.reading.layout import UNDECODABLE, Layout, Row, check_columns, dump

ROWS = 2048  # of a chunk, at most
CHARACTERS = 2**24  # of the texts of a chunk, about
LONGEST_RAW = 2000  # characters of a row that is set aside

Clean = Callable[[str], str]
Write = Callable[[Any, Sequence[Sequence[Any]]], None]  # rows as they are, what is added to each
Added = Mapping[str, pa.DataType]  # column -> type


class Aside(NamedTuple):
    line: int
    reason: str
    detail: str
    raw: str


class Chunk(NamedTuple):
    """rows: as the copy takes them. texts: of each, cleaned. aside: what is no such row. lines: how many of
    the table these are."""

    rows: Any
    texts: list[tuple[str, ...]]
    aside: list[Aside]
    lines: int = 0


class Format(NamedTuple):
    """How tables of a format give their columns, their size in lines, and chunks of rows by the columns of
    texts; and how a copy is written: of the table, to a draft that ends in one of `suffixes`, with what is
    added, and what stands between several values of a cell."""

    suffixes: tuple[str, ...]
    columns: Callable[[Path, Layout], list[str]]
    lines: Callable[[Path, Layout], int]
    chunks: Callable[[Path, Sequence[str], Layout, Clean], Iterator[Chunk]]
    copy: Callable[[Path, Path, Added, Layout, str], AbstractContextManager[Write]]


def is_table(name: str) -> bool:
    """Whether its suffix is that of a table."""
    return streams.suffix(Path(name)) in FORMATS


def of(path: Path) -> Format:
    """Raises InputError where there is no such file."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return FORMATS[streams.suffix(path)]


@contextmanager
def aside(draft: Path) -> Iterator[Callable[[Sequence[Aside]], None]]:
    """Writes what is set aside, as CSV."""
    with draft.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Aside._fields)
        yield writer.writerows


def is_aside(path: Path) -> bool:
    """Whether `path` is a file that begins as what `aside` writes."""
    header = ",".join(Aside._fields).encode() + b"\r\n"
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(header)) == header


def _lines_of_text(path: Path, layout: Layout) -> int:
    with streams.unpacked(path, layout.maximum_bytes) as stream:
        return sum(block.count(b"\n") for block in iter(partial(stream.read, streams.BUFFER), b""))


def _separated(
    path: Path, columns: Sequence[str], layout: Layout, clean: Clean, *, separator: str
) -> Iterator[Chunk]:
    encoding = _encoding(path, layout)
    names = separated.columns(path, encoding, layout, separator)
    check_columns(columns, names, path.name)
    places = [names.index(column) for column in columns]
    rows = separated.rows(path, encoding, names, layout, separator)
    taken = ((row, row.cells, [row.cells[place] for place in places] if row.cells else ()) for row in rows)
    return _chunks(taken, columns, clean)


def _objects(path: Path, columns: Sequence[str], layout: Layout, clean: Clean) -> Iterator[Chunk]:
    rows = objects.rows(path, _encoding(path, layout), columns, layout)
    return _chunks(((row, row.raw, row.cells) for row in rows), columns, clean)


def _chunks(
    rows: Iterator[tuple[Row, Any, Sequence[Any]]], columns: Sequence[str], clean: Clean
) -> Iterator[Chunk]:
    """Of rows of text, each with what the copy takes and with its texts."""
    chunk, size, before = Chunk([], [], []), 0, 0
    for row, whole, given in rows:
        try:
            if row.fault:
                raise Fault(*row.fault)
            chunk.texts.append(_texts(given, columns, clean))
            chunk.rows.append(whole)
            size += sum(map(len, chunk.texts[-1]))
        except Fault as fault:
            chunk.aside.append(_aside(row.line, fault, row.raw))
        if len(chunk.rows) + len(chunk.aside) == ROWS or size > CHARACTERS:
            yield chunk._replace(lines=row.line - before)
            chunk, size, before = Chunk([], [], []), 0, row.line
    if chunk.rows or chunk.aside:
        yield chunk._replace(lines=row.line - before)


def _columnar(path: Path, columns: Sequence[str], layout: Layout, clean: Clean) -> Iterator[Chunk]:
    names, line = columnar.read_schema(path).names, 0
    check_columns(columns, names, path.name)
    for given_batch in columnar.read_batches(path, names):
        batch = given_batch.cast(columnar.without_views(given_batch.schema))
        values, torn = zip(*(columnar.read_values(batch.column(column)) for column in columns), strict=True)
        bad = set().union(*torn) if layout.undecodable == "quarantine" else set()
        chunk, kept = Chunk(None, [], [], batch.num_rows), list[int]()
        for place, given in enumerate(zip(*values, strict=True)):
            try:
                if place in bad:
                    raise Fault(*UNDECODABLE)
                chunk.texts.append(_texts(given, columns, clean))
                kept.append(place)
            except Fault as fault:
                chunk.aside.append(_aside(line + place + 1, fault, dump(given)))
        yield chunk._replace(rows=batch.take(pa.array(kept, pa.int64())))
        line += batch.num_rows


def _texts(values: Sequence[Any], columns: Sequence[str], clean: Clean) -> tuple[str, ...]:
    """Raises Fault for a value that is no text, and for one of which cleaning leaves nothing."""
    pairs = zip(values, columns, strict=True)
    found = tuple(clean(streams.mend(cells.text(value, column))) for value, column in pairs)
    for text, column in zip(found, columns, strict=True):
        if not text.strip():
            raise Fault("no_text", f"column {column!r} is empty")
    return found


def _aside(line: int, fault: Fault, raw: str | bytes | None) -> Aside:
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else streams.mend(raw or "")
    return Aside(line, fault.reason, fault.detail, text.rstrip("\r\n")[:LONGEST_RAW])


@contextmanager
def _copy_separated(
    path: Path, draft: Path, added: Added, layout: Layout, joint: str, *, separator: str
) -> Iterator[Write]:
    names = separated.columns(path, _encoding(path, layout), layout, separator)
    with draft.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerow([*names, *added])

        def write(rows: Any, answers: Sequence[Sequence[Any]]) -> None:
            for row, values in zip(rows, answers, strict=True):
                writer.writerow([*row, *(_cell(value, joint) for value in values)])

        yield write


def _cell(value: Any, joint: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return joint.join(value)
    return "" if value is None else str(value)


@contextmanager
def _copy_objects(path: Path, draft: Path, added: Added, layout: Layout, joint: str) -> Iterator[Write]:
    with draft.open("w", encoding="utf-8") as stream:

        def write(rows: Any, answers: Sequence[Sequence[Any]]) -> None:
            for row, values in zip(rows, answers, strict=True):
                told = json.loads(streams.mend(row))
                if there := sorted(added.keys() & told.keys()):
                    raise InputError(
                        f"{path}: an object has {', '.join(map(repr, there))} already: rename it"
                    )
                told |= zip(added, values, strict=True)
                stream.write(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n")

        yield write


@contextmanager
def _copy_columnar(path: Path, draft: Path, added: Added, layout: Layout, joint: str) -> Iterator[Write]:
    schema = columnar.without_views(columnar.read_schema(path))
    for name, kind in added.items():
        schema = schema.append(pa.field(name, kind))
    with parquet.ParquetWriter(draft, schema) as writer:

        def write(rows: Any, answers: Sequence[Sequence[Any]]) -> None:
            columns = zip(*answers, strict=True) if answers else [()] * len(added)
            more = [pa.array(list(v), kind) for v, kind in zip(columns, added.values(), strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays([*rows.columns, *more], schema=schema))

        yield write


def _encoding(path: Path, layout: Layout) -> str:
    streams.refuse_other_formats(path, layout.maximum_bytes)
    found = formats.encoding(path, layout)
    if found is None:
        raise SourceError(f"{path}: no encoding fits its first bytes; name it in sources.text.encoding")
    return found


def _of_separator(suffixes: tuple[str, ...], separator: str) -> Format:
    return Format(
        suffixes,
        formats.columns,
        _lines_of_text,
        partial(_separated, separator=separator),
        partial(_copy_separated, separator=separator),
    )


COMMAS, TABS = _of_separator((".csv",), ","), _of_separator((".tsv", ".tab"), "\t")
OBJECTS = Format((".jsonl", ".ndjson", ".json"), formats.columns, _lines_of_text, _objects, _copy_objects)
COLUMNAR = Format(
    columnar.PARQUET,
    formats.columns,
    lambda path, layout: columnar.count_rows(path),
    _columnar,
    _copy_columnar,
)
FORMATS: Mapping[str, Format] = {
    **{suffix: each for each in (COMMAS, TABS, OBJECTS, COLUMNAR) for suffix in each.suffixes},
    **dict.fromkeys(columnar.ARROW, COLUMNAR),  # a copy of which is Parquet
}
