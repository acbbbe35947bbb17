"""Find the rows of a table that are to be forgotten, and take their lines out of it."""

import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tasks import files
from tasks.errors import SourceError
from tasks.text import identities
from tasks.text.reading import readers, sources, streams
from tasks.text.reading.layout import Layout

SEPARATED = (".csv", ".tsv", ".tab")
LINES = (*SEPARATED, ".jsonl", ".ndjson", ".json")  # formats in which a row is some lines
MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark


class Place(NamedTuple):
    """Where a row stands; `file` is relative to a folder of tables."""

    file: str
    line: int  # from 1; of Parquet and Arrow the row


def places(path: Path, layout: Layout, digests: Collection[str]) -> list[Place]:
    """Where the rows of these `digests` stand in the table at `path`, also faulty ones.

    Digests are those of tasks/text/identities.py. Raises what `sources.read` raises.
    """
    return [place for shard in sources.read(path, layout) for place in _inside(shard, digests)]


def _inside(shard: sources.Shard, digests: Collection[str]) -> Iterator[Place]:
    for row in _matching(shard.documents, digests, ["place"]):
        file, _, line = row["place"].rpartition(":")
        yield Place(file, int(line))
    for row in _matching(shard.quarantined, digests, ["file", "line"]):
        yield Place(row["file"], row["line"])


def _matching(table: pa.Table, digests: Collection[str], columns: list[str]) -> Iterator[dict[str, Any]]:
    rows = table.select(["id", "content", *columns]).to_pylist()
    return (row for row in rows if identities.forgotten(row) in digests)


def check_lines(path: Path, layout: Layout) -> None:
    """Raises SourceError where `remove_lines` could not work on the table at `path`."""
    if not path.is_file() or path.suffix.lower() not in LINES:
        raise SourceError(f"{path} is not one CSV, TSV or JSON lines file: its rows cannot be taken out")
    name = streams.encoding(path, layout.encoding, layout.maximum_bytes) or "utf-8"
    if "\n\n".encode(name)[-2:] != b"\n\n":
        raise SourceError(f"{path} is {name}, whose lines cannot be taken out: write it as UTF-8 first")


def remove_lines(path: Path, layout: Layout, lines: Collection[int]) -> None:
    """Take the rows that begin at `lines` out of the table at `path`; every other byte stays as it was.

    Raises SourceError, with the table untouched, where a row's bytes are not what was read.
    """
    path = path.resolve()  # of a link the file that it names
    rows = _rows(path, layout, lines)
    doomed = {line + more for line, pieces in rows.items() for more in range(len(pieces))}
    expected = {line + more: piece for line, pieces in rows.items() for more, piece in enumerate(pieces)}
    with files.replace_file(path) as draft:
        with path.open("rb") as source, draft.open("wb") as target:
            for number, line in enumerate(_lines(source, path), 1):
                if number not in doomed:
                    target.write(line)
                elif not line.removeprefix(MARK).startswith(expected[number]):
                    raise SourceError(f"{path}:{number} is not the row to be forgotten: delete it by hand")
        shutil.copymode(path, draft)


def _rows(path: Path, layout: Layout, lines: Collection[int]) -> Mapping[int, list[bytes]]:
    """The lines, as bytes, of each row that begins at one of `lines`."""
    found = {}
    for table in readers.tables(path, {}, layout):
        name = "utf-8" if table.encoding.lower().replace("_", "-") == "utf-8-sig" else table.encoding
        for row in table.rows:
            if row.line in lines:
                found[row.line] = _split(streams.encode(str(row.raw), name), path)
    return found


def _lines(source: Iterator[bytes], path: Path) -> Iterator[bytes]:
    return (line for chunk in source for line in _split(chunk, path))


def _split(data: bytes, path: Path) -> list[bytes]:
    """As the readers do: CSV at any end of line; JSON at the newline alone, where `data` ends."""
    return data.splitlines(keepends=True) if streams.suffix(path) in SEPARATED else [data]
