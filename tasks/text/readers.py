"""From files and folders to rows of cells, whatever the format: a table of readers by suffix.

A row that cannot be read comes with its fault and costs itself alone; a file that is no table raises.
"""

import csv
import json
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as parquet

from tasks.errors import SourceError, did_you_mean
from tasks.text import streams
from tasks.text.cells import SPLIT_NAMES, Fault

LONGEST_RECORD = 1000  # lines; a quote that is still open then was never meant to close
NO_LIMIT = 2**31 - 1  # csv's own limit of 2**17 characters would refuse a long document; ours is in bytes
LOOKED_AT = 1000  # rows of JSON lines in one of which a column must occur
BLOCK = 2**16  # characters of CSV that are tried at once
BATCH = 4096  # rows of Parquet and Arrow in memory as Python values
UNDECODABLE = "undecodable", "a byte is no character in the file's encoding"
SPLIT_OF_FILE = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])")


@dataclass(frozen=True)
class Layout:
    """How a table is to be read. `columns` maps the kind's names to the table's, where they differ."""

    kind: str = "label"
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    id: str | None = None
    split: str | None = None
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


Wanted = Mapping[str, str]  # role (the kind's name, "id", "split") -> column of the table


def tables(path: Path, wanted: Wanted, layout: Layout) -> Iterator[Table]:
    """Every table at `path`, in the order of names: a file, what `datasets` saved, a folder of tables, or a
    folder of text files for each label.

    Splits that files or folders are named for hold where all are so named and they are at least two.
    Raises SourceError for what is no table.
    """
    if path.is_file():
        yield _table(path, path.name, None, wanted, layout)
    elif found := saved_by_datasets(path) or folder_of_tables(path):
        for file, split in _fixed(found).items():
            yield _table(file, _name(file, path), split, wanted, layout)
    else:
        yield from _folder_of_texts(path, wanted, layout)


def peek(path: Path, layout: Layout, rows: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns of the first table at `path`, and its first rows that can be read, by column.

    A folder of text files has the columns text and label.
    """
    if path.is_dir():
        path = next(iter(saved_by_datasets(path) or folder_of_tables(path)), path)
    read: Iterator[Row]
    if path.is_dir():
        found = islice(_folder_of_texts(path, {"text": "text", "label": "label"}, layout), rows)
        names, read = ["text", "label"], chain.from_iterable(table.rows for table in found)
    else:
        names = _columns(path, layout)
        read = _table(path, path.name, None, {name: name for name in names}, layout).rows
    good = islice((row for row in read if not row.fault), rows)
    return names, [dict(zip(names, row.cells, strict=True)) for row in good]


def encoding(path: Path, layout: Layout) -> str:
    """The encoding of the first table at `path`, UTF-8 where there is none to tell."""
    if path.is_dir():
        path = next(iter(folder_of_tables(path)), path)
    if path.is_dir() or READERS.get(streams.suffix(path)) is _arrow:
        return "utf-8"
    return streams.encoding(path, layout.encoding, layout.maximum_bytes) or "utf-8"


def _table(path: Path, name: str, split: str | None, wanted: Wanted, layout: Layout) -> Table:
    streams.refuse_other_formats(path, layout.maximum_bytes)
    reader = READERS.get(streams.suffix(path), _comma_separated)
    if reader is _arrow:
        return Table(name, split, _arrow(path, "utf-8", list(wanted.values()), layout), "utf-8")
    encoding = streams.encoding(path, layout.encoding, layout.maximum_bytes)
    if encoding is None:
        raise SourceError(f"{name}: no encoding fits its first bytes; name it in sources.text.encoding")
    return Table(name, split, reader(path, encoding, list(wanted.values()), layout), encoding)


def _columns(path: Path, layout: Layout) -> list[str]:
    streams.refuse_other_formats(path, layout.maximum_bytes)
    reader = READERS.get(streams.suffix(path), _comma_separated)
    if reader is _arrow:
        return list(_schema(path).names)
    encoding = streams.encoding(path, layout.encoding, layout.maximum_bytes) or "utf-8"
    if reader is _json_lines:
        found = islice(_objects(path, encoding, layout), LOOKED_AT)
        return list(dict.fromkeys(key for item in found if item.value is not None for key in item.value))
    separator = "\t" if reader is _tab_separated else ","
    return _header(_records(path, encoding, layout, separator), path.name)


# CSV and TSV


_Record = tuple[int, list[str], str, tuple[str, str] | None]  # line, fields, raw, fault


def _comma_separated(path: Path, encoding: str, columns: Sequence[str], layout: Layout) -> Iterator[Row]:
    return _separated(path, encoding, columns, layout, ",")


def _tab_separated(path: Path, encoding: str, columns: Sequence[str], layout: Layout) -> Iterator[Row]:
    return _separated(path, encoding, columns, layout, "\t")


def _separated(
    path: Path, encoding: str, columns: Sequence[str], layout: Layout, separator: str
) -> Iterator[Row]:
    """RFC 4180 through Python's csv module in strict mode: readers that infer types lose `N/A` and `null`."""
    records = _records(path, encoding, layout, separator)
    header = _header(records, path.name)
    check_columns(columns, header, path.name)
    places = [header.index(column) for column in columns]
    replace, width = layout.undecodable == "replace", len(header)
    for line, fields, raw, fault in records:
        torn = not raw.isascii() and streams.is_torn(raw)
        if torn and not replace:
            fault = UNDECODABLE
        elif fault is None and (len(fields) != width or fields == header):
            fault = _misfit(fields, header)
        if fault:
            yield Row(line, (), raw, fault)
        elif torn:
            yield Row(line, [streams.mend(fields[place]) for place in places], raw, torn=True)
        else:
            yield Row(line, [fields[place] for place in places], raw)


def _header(records: Iterator[_Record], name: str) -> list[str]:
    header = next(records, None)
    if header is None:
        raise SourceError(f"{name} is empty")
    _, fields, _, fault = header
    if fault:
        raise SourceError(f"{name}: the header cannot be read: {fault[1]}")
    return fields


def _misfit(fields: Sequence[str], header: Sequence[str]) -> tuple[str, str]:
    if fields == header:
        return "repeated_header", "the header again"
    reason = "missing_columns" if len(fields) < len(header) else "extra_columns"
    return reason, f"{len(fields)} fields under {len(header)} column names"


def _records(path: Path, encoding: str, layout: Layout, separator: str) -> Iterator[_Record]:
    """Blocks in which every line is a record go quickly through csv, others with care; both say the same."""
    csv.field_size_limit(NO_LIMIT)
    window = _Window(_lines(path, encoding, layout, ends=""), layout.maximum_row)
    start = 1
    while block := window.block():
        records = _one_a_line(block, separator, layout.maximum_row)
        if records is None:
            window.put_back(block)
            start = yield from _carefully(window, separator, layout.maximum_row, start)
        else:
            numbered = zip(count(start), records, block, strict=False)
            yield from ((line, fields, raw, None) for line, fields, raw in numbered if fields)
            start += len(block)


def _one_a_line(block: Sequence[str], separator: str, maximum: int) -> list[list[str]] | None:
    if 4 * max(map(len, block)) > maximum:
        return None
    try:
        records = list(csv.reader(block, delimiter=separator, strict=True))
    except csv.Error:
        return None
    return records if len(records) == len(block) else None


def _carefully(window: "_Window", separator: str, maximum: int, start: int) -> Generator[_Record, None, int]:
    """After a fault the next line is tried as a new record, so an open quote swallows nothing.

    Goes on until no line waits in `window`; returns the number of the next.
    """
    reader = csv.reader(window, delimiter=separator, strict=True)
    while window.waits():
        fields, fault = [], None
        try:
            fields = next(reader)
        except csv.Error as error:
            fault = _csv_fault(str(error))
        raw, taken = window.hand_over(first_only=fault is not None)
        if _is_too_large(raw, maximum):
            fault = too_large(maximum)
        if fields or fault:
            yield start, fields, raw, fault
        start += taken
    return start


class _Window:
    """The lines that csv.reader may see for one record: not too many, and not too much of them."""

    def __init__(self, lines: Iterator[str], maximum: int) -> None:
        self._lines, self._maximum = lines, maximum
        self._ahead: deque[str] = deque()
        self._taken: list[str] = []
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._size > self._maximum or len(self._taken) == LONGEST_RECORD:
            raise StopIteration
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self._taken.append(line)
        self._size += len(line)
        return line

    def hand_over(self, *, first_only: bool) -> tuple[str, int]:
        """The record's text and its number of lines; the others go back to be read again."""
        if first_only:
            self.put_back(self._taken[1:])
            del self._taken[1:]
        raw, taken = "".join(self._taken), len(self._taken)
        self._taken.clear()
        self._size = 0
        return raw, taken

    def put_back(self, lines: Sequence[str]) -> None:
        self._ahead.extendleft(reversed(lines))

    def waits(self) -> bool:
        return bool(self._ahead)

    def block(self) -> list[str]:
        """The next lines of the file."""
        lines, size = [], 0
        for line in self._lines:
            lines.append(line)
            size += len(line)
            if size >= BLOCK:
                break
        return lines


def _csv_fault(message: str) -> tuple[str, str]:
    is_open = "end of data" in message or "expected after" in message
    return "unclosed_quote" if is_open else "malformed", message


# JSON lines


class _Object(NamedTuple):
    line: int
    value: dict[str, Any] | None
    raw: str
    fault: tuple[str, str] | None
    torn: bool


def _json_lines(path: Path, encoding: str, columns: Sequence[str], layout: Layout) -> Iterator[Row]:
    objects = _objects(path, encoding, layout)
    first = list(islice(objects, LOOKED_AT))
    if not first:
        raise SourceError(f"{path.name} is empty")
    known = {key for item in first if item.value is not None for key in item.value}
    if known:
        check_columns(columns, sorted(known), path.name)
    for line, value, raw, fault, torn in chain(first, objects):
        cells = () if value is None else [value.get(column) for column in columns]
        yield Row(line, cells, raw, fault, torn)


def _objects(path: Path, encoding: str, layout: Layout) -> Iterator[_Object]:
    lines = _lines(path, encoding, layout, ends="\n")
    if streams.suffix(path) == ".json":
        lines = _without_array(lines, path.name)
    maximum, replace = layout.maximum_row, layout.undecodable == "replace"
    for line, raw in enumerate(lines, 1):
        if raw.isspace():
            continue
        torn = streams.is_torn(raw)
        if torn and not replace:
            yield _Object(line, None, raw, UNDECODABLE, False)
        elif _is_too_large(raw, maximum):
            yield _Object(line, None, raw, too_large(maximum), False)
        else:
            yield _object(line, raw, torn)


def _without_array(lines: Iterator[str], name: str) -> Iterator[str]:
    first = next(lines, "")
    if first.lstrip().startswith("["):
        raise SourceError(
            f"{name} is one JSON array; JSON lines are wanted, one object a line: "
            "`jq -c '.[]' in.json > out.jsonl` makes them"
        )
    return chain((first,) if first else (), lines)


def _object(line: int, raw: str, torn: bool) -> _Object:
    try:
        value = DECODER.decode(streams.mend(raw) if torn else raw)
    except Fault as fault:
        return _Object(line, None, raw, (fault.reason, fault.detail), False)
    except (ValueError, RecursionError) as error:
        return _Object(line, None, raw, ("malformed", f"no JSON: {error}"), False)
    if not isinstance(value, dict):
        return _Object(line, None, raw, ("malformed", f"a {type(value).__name__}, not an object"), False)
    return _Object(line, value, raw, None, torn)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers disagree which of two equal keys counts, so none does."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Fault("duplicate_key", f"{next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


# Parquet and Arrow


def _arrow(path: Path, encoding: str, columns: Sequence[str], layout: Layout) -> Iterator[Row]:
    """Numbers of classes become their names, where `datasets` noted these in the file."""
    schema = _schema(path)
    check_columns(columns, schema.names, path.name)
    names = [_class_names(schema, column) for column in columns]
    replace, row = layout.undecodable == "replace", 0
    for batch in _batches(path, columns):
        values, torn = zip(*(_values(batch.column(column)) for column in columns), strict=True)
        bad = set().union(*torn)
        for place, cells in enumerate(zip(*values, strict=True)):
            row += 1
            if place in bad and not replace:
                yield Row(row, (), dump(cells), UNDECODABLE)
            else:
                yield _named(Row(row, cells, None, torn=place in bad), names)


def _schema(path: Path) -> pa.Schema:
    try:
        if path.suffix.lower() in PARQUET:
            return parquet.read_schema(path)
        with _open_arrow(path) as reader:
            return reader.schema
    except (OSError, pa.ArrowInvalid) as error:
        raise _torn_file(path, error) from None


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Of at most BATCH rows each."""
    try:
        if path.suffix.lower() in PARQUET:
            with parquet.ParquetFile(path) as file:
                yield from file.iter_batches(BATCH, columns=list(columns))
            return
        with _open_arrow(path) as reader:
            for number in range(reader.num_record_batches) if _is_file(path) else ():
                yield from _slices(reader.get_batch(number))
            for batch in () if _is_file(path) else reader:
                yield from _slices(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise _torn_file(path, error) from None


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    return (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))


def _open_arrow(path: Path) -> Any:
    source = pa.memory_map(str(path))
    return pa.ipc.open_file(source) if _is_file(path) else pa.ipc.open_stream(source)


def _is_file(path: Path) -> bool:
    """Arrow has a format for files and one for streams, which is what `datasets` saves."""
    with path.open("rb") as stream:
        return stream.read(6) == b"ARROW1"


def _torn_file(path: Path, error: Exception) -> SourceError:
    kind = "Parquet" if path.suffix.lower() in PARQUET else "Arrow"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return SourceError(f"{path.name} is no whole {kind} file ({reason}): fetch or write it again")


def _values(column: pa.Array) -> tuple[list[Any], set[int]]:
    """The values, and the places of those with bytes that are no UTF-8, which become U+FFFD."""
    try:
        return column.to_pylist(), set()
    except UnicodeDecodeError:
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            raise SourceError(f"a column of {column.type} holds bytes that are no UTF-8") from None
    raw = [
        None if item is None else streams.decode(item, "utf-8") for item in column.cast("binary").to_pylist()
    ]
    torn = {place for place, item in enumerate(raw) if item is not None and streams.is_torn(item)}
    return [None if item is None else streams.mend(item) for item in raw], torn


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names that a ClassLabel of `datasets`, or a list of them, gives to its numbers."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = about.get("info", {}).get("features", {}).get(column, {})
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return list(names) if names else None


def _named(row: Row, names: Sequence[list[str] | None]) -> Row:
    if not any(names):
        return row
    try:
        cells = [
            _name_of(cell, known) if known else cell for cell, known in zip(row.cells, names, strict=True)
        ]
    except Fault as fault:
        return Row(row.line, (), dump(row.cells), (fault.reason, fault.detail))
    return row._replace(cells=cells)


def _name_of(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_name_of(item, names) for item in value]
    if not isinstance(value, int) or value == -1:  # datasets' number for a class that is not known
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise Fault("wrong_type", f"class number {value} of {len(names)}")
    return names[value]


def dump(cells: Iterable[Any]) -> bytes:
    return json.dumps(list(cells), ensure_ascii=False, default=str).encode("utf-8", "replace")


# Folders


def saved_by_datasets(folder: Path) -> dict[Path, str | None]:
    """The Arrow files of a Dataset or DatasetDict that was saved to disk, with their splits; or none."""
    if (folder / "state.json").is_file():
        return dict.fromkeys(_arrow_files(folder))
    listing = folder / "dataset_dict.json"
    if not listing.is_file():
        return {}
    splits = json.loads(listing.read_text(encoding="utf-8"))["splits"]
    return {file: SPLIT_NAMES.get(split) for split in splits for file in _arrow_files(folder / split)}


def _arrow_files(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state["_data_files"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise SourceError(f"{folder} lacks a whole state.json: save the data set again") from None


def folder_of_tables(folder: Path) -> dict[Path, str | None]:
    """The table files in a folder, with the splits that they are named for; or none.

    Raises SourceError where they are of several formats: they may be the same rows twice.
    """
    found = [path for path in _visible(folder) if streams.suffix(path) in READERS]
    others = [path for path in found if streams.suffix(path) != ".json"]  # .json may describe the others
    found = others or found
    if len(formats := sorted({streams.suffix(path) for path in found})) > 1:
        raise SourceError(f"{folder} holds tables as {' and as '.join(formats)}: name one file or folder")
    return {path: _split_of(path, folder) for path in found}


def _split_of(path: Path, folder: Path) -> str | None:
    """As data sets on the Hub are named: train.csv, data/test-00000-of-00001.parquet, train/0000.parquet."""
    for part in reversed(path.relative_to(folder).parts):
        if match := SPLIT_OF_FILE.match(part.lower()):
            return SPLIT_NAMES[match[1]]
    return None


def _fixed(found: Mapping[Path, str | None]) -> dict[Path, str | None]:
    """A data set that is all train was not divided yet."""
    named = set(found.values())
    return dict(found) if len(named) > 1 and None not in named else dict.fromkeys(found)


def _folder_of_texts(folder: Path, wanted: Wanted, layout: Layout) -> Iterator[Table]:
    """label/name.txt, or split/label/name.txt where all first names are splits; one file is one row."""
    files = [path for path in _visible(folder) if path.suffix.lower() == ".txt"]
    if not files:
        known = ", ".join(sorted(READERS))
        raise SourceError(f"{folder} holds neither tables ({known}) nor text files in folders of labels")
    if beyond := sorted(wanted.keys() - {"text", "label"}):
        raise SourceError(f"{folder} is a folder of text files, which give text and label, not {beyond[0]}")
    parts = {path: path.relative_to(folder).parts for path in files}
    depth = 2 if "label" in wanted else 1
    divided = all(len(steps) > depth and steps[0].lower() in SPLIT_NAMES for steps in parts.values())
    splits = {path: SPLIT_NAMES[steps[0].lower()] if divided else None for path, steps in parts.items()}
    for path, split in _fixed(splits).items():
        steps = parts[path][1:] if divided else parts[path]
        cells = {"label": _shown(steps[0]) if len(steps) > 1 else None}
        row, encoding = _text_file(path, list(wanted), cells, layout)
        yield Table(_name(path, folder), split, iter((row,)), encoding)


def _text_file(path: Path, roles: Sequence[str], cells: dict[str, Any], layout: Layout) -> tuple[Row, str]:
    encoding = streams.encoding(path, layout.encoding, layout.maximum_bytes)
    with path.open("rb") as stream:
        data = stream.read(layout.maximum_row + 1)
    if len(data) > layout.maximum_row:
        return Row(1, (), data, too_large(layout.maximum_row)), "utf-8"
    text = streams.decode(data, encoding or "utf-8")
    torn = streams.is_torn(text)
    if encoding is None or (torn and layout.undecodable == "quarantine"):
        return Row(1, (), data, UNDECODABLE), "utf-8"
    found = {"text": streams.mend(text), **cells}
    return Row(1, [found[role] for role in roles], data, torn=torn), encoding


def _visible(folder: Path) -> list[Path]:
    """Every file below `folder` by name, without what begins with a dot: the Hub's and git's own."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    named = {path: path.relative_to(folder) for path in found}
    kept = [path for path in found if not any(part.startswith(".") for part in named[path].parts)]
    return sorted(kept, key=lambda path: named[path].as_posix())


def _name(path: Path, folder: Path) -> str:
    return _shown(path.relative_to(folder).as_posix())


def _shown(name: str) -> str:
    """A file's name may hold bytes of no character, which no table of ours could store."""
    return os.fsencode(name).decode("utf-8", "replace")


# Shared by all


def check_columns(columns: Collection[str], present: Sequence[str], name: str) -> None:
    for column in columns:
        if column not in present:
            raise SourceError(f"{name} has no column {column!r}; {did_you_mean(column, present)}")
        if (times := list(present).count(column)) > 1:
            raise SourceError(f"{name} has {times} columns called {column!r}: rename all but one")


def _lines(path: Path, encoding: str, layout: Layout, *, ends: str) -> Iterator[str]:
    return streams.lines(
        path, encoding, ends=ends, maximum_row=layout.maximum_row, maximum_bytes=layout.maximum_bytes
    )


def _is_too_large(text: str, maximum: int) -> bool:
    """Characters are counted first, which costs nothing; none has more than four bytes."""
    if 4 * len(text) <= maximum:
        return False
    return len(text) > maximum or len(text.encode("utf-8", "surrogatepass")) > maximum


def too_large(maximum: int) -> tuple[str, str]:
    return "too_large", f"more than sources.text.maximum_row = {maximum} bytes"


PARQUET = (".parquet", ".pq")
READERS: Mapping[str, Callable[[Path, str, Sequence[str], Layout], Iterator[Row]]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".tab": _tab_separated,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    **dict.fromkeys((*PARQUET, ".arrow", ".feather", ".ipc"), _arrow),
}
