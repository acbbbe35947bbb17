"""The formats of tables by suffix, and how one file of any of them is opened."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tasks.errors import SourceError
from tasks.text.reading import columnar, objects, separated, streams
from tasks.text.reading.layout import Layout, Row, Table, Wanted


class Format(NamedTuple):
    """How files of a format give the rows of some columns, and the names of all columns.

    Both ask for the encoding, which is UTF-8 where the format `is_text` not.
    """

    rows: Callable[[Path, str, Sequence[str], Layout], Iterator[Row]]
    columns: Callable[[Path, str, Layout], list[str]]
    is_text: bool = True


COMMAS = Format(partial(separated.rows, separator=","), partial(separated.columns, separator=","))
TABS = Format(partial(separated.rows, separator="\t"), partial(separated.columns, separator="\t"))
OBJECTS = Format(objects.rows, objects.columns)
COLUMNAR = Format(columnar.rows, columnar.columns, is_text=False)
FORMATS: Mapping[str, Format] = {
    ".csv": COMMAS,
    ".tsv": TABS,
    ".tab": TABS,
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), OBJECTS),
    **dict.fromkeys((*columnar.PARQUET, *columnar.ARROW), COLUMNAR),
}


def table(path: Path, name: str, split: str | None, wanted: Wanted, layout: Layout) -> Table:
    """The file at `path`, as CSV where its suffix is none that we know.

    Raises SourceError for what is no table, and where no encoding fits.
    """
    streams.refuse_other_formats(path, layout.maximum_bytes)
    found = encoding(path, layout)
    if found is None:
        raise SourceError(f"{name}: no encoding fits its first bytes; name it in sources.text.encoding")
    return Table(name, split, _format(path).rows(path, found, list(wanted.values()), layout), found)


def columns(path: Path, layout: Layout) -> list[str]:
    """The names of all columns of the file at `path`. Raises SourceError for what is no table."""
    streams.refuse_other_formats(path, layout.maximum_bytes)
    return _format(path).columns(path, encoding(path, layout) or "utf-8", layout)


def encoding(path: Path, layout: Layout) -> str | None:
    """The encoding of the file at `path`, or None where none fits."""
    if not _format(path).is_text:
        return "utf-8"
    return streams.encoding(path, layout.encoding, layout.maximum_bytes)


def _format(path: Path) -> Format:
    return FORMATS.get(streams.suffix(path), COMMAS)
