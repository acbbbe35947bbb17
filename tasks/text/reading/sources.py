"""Read a table of text: every row becomes a document of its kind, or is quarantined with a reason.

Rows come from readers.py, cells are judged by cells.py; here they become shards.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tasks.errors import DataError, ParamsError, SourceError, did_you_mean
from tasks.text import shards
from tasks.text.kinds import KINDS
from tasks.text.reading import cells, readers, streams
from tasks.text.reading.cells import Fault
from tasks.text.reading.layout import Layout, Row, Table, dump, too_large

__all__ = ["Layout", "Shard", "read"]

LONGEST_RAW = 2000  # bytes of a quarantined row that are kept to look at
LARGEST_SHARD = 2**26  # bytes of text, so that a shard of long documents stays small too
MEASUREMENT = 20  # so many different fractional numbers are a measurement, not classes
OWN = ("id", "split")  # roles that say nothing, and so are no part of a row's content
# What rows and slices are told by: no column that comes along may be called so.
TAKEN = ("id", "text", "label", "labels", "content", "characters", "cluster", "split")


class Shard(NamedTuple):
    """`documents`: shards.DOCUMENT, the kind's columns and what comes along; `quarantined`:
    shards.QUARANTINED; `repaired`: in how many documents bytes were replaced by U+FFFD."""

    documents: pa.Table
    quarantined: pa.Table
    repaired: int


def read(path: Path, layout: Layout, *, rows: int = 20_000) -> Iterator[Shard]:
    """The rows at `path` in its order, at most `rows` to a shard; nothing larger than a shard is held.

    `content` is a hash of what the kind's columns say, so neither new rows, another order nor what comes
    along change it; of a quarantined row, of its bytes.

    Raises SourceError for what is no table, a missing column or no usable row; ParamsError for an unknown
    column of the kind or encoding, and for a column that cannot come along; DataError, at the end, for labels
    that are measurements.
    """
    wanted = _wanted(layout)
    if not path.exists():
        raise SourceError(f"no such path: {path}")
    basket, seen = _Basket(layout, wanted), _Seen(layout)
    for table in readers.tables(path, wanted, layout):
        for row in table.rows:
            basket.add(row, table)
            if basket.count >= rows or basket.size >= LARGEST_SHARD:
                yield seen.note(basket.empty())
    if basket.count:
        yield seen.note(basket.empty())
    seen.check(path.name, wanted)


def _wanted(layout: Layout) -> dict[str, str]:
    """Role (the kind's name, "id", "split", what is kept) -> column of the table."""
    names = KINDS[layout.kind].wanted()
    for name in layout.columns:
        if name not in names:
            near = did_you_mean(name, names)
            raise ParamsError(f"sources.text.columns: rows of kind {layout.kind} have no {name!r}; {near}")
    wanted = {name: layout.columns.get(name, name) for name in names}
    columns = list(wanted.values())
    for one, column in wanted.items():
        if columns.count(column) > 1:
            other = next(name for name in names if name != one and wanted[name] == column)
            raise SourceError(f"{one} and {other} are both read from column {column!r}")
    own = {"id": layout.id, "split": layout.split}
    wanted |= {role: column for role, column in own.items() if column is not None}
    _demand_free(layout, wanted)
    return wanted | {f"{shards.KEPT}{column}": column for column in layout.keep}


def _demand_free(layout: Layout, wanted: Mapping[str, str]) -> None:
    """Raises ParamsError that lists every column of `keep` that is a row's already, or is called like one."""
    read = {column: role for role, column in wanted.items()}
    faults = [
        f"sources.text.keep: column {column!r} is read as {read[column]} already: leave it out"
        for column in layout.keep
        if column in read
    ]
    faults += [
        f"sources.text.keep: {column!r} is what rows call a column of their own: rename it in the table"
        for column in layout.keep
        if column not in read and column in (*TAKEN, *KINDS[layout.kind].columns)
    ]
    if faults:
        raise ParamsError("\n".join(faults))


class _Basket:
    """The rows of the shard that is being filled."""

    def __init__(self, layout: Layout, wanted: Mapping[str, str]) -> None:
        kind = KINDS[layout.kind]
        self._convert = [(_converter(role, layout), column) for role, column in wanted.items()]
        self._roles = list(wanted)
        self._own = [role for role in wanted if role in OWN]
        self._width = len(kind.wanted())
        self._whole = cells.WHOLE.get(layout.kind)
        self._maximum = layout.maximum_row
        self._schema = _schema(kind.columns, layout.keep)
        self._start()

    def _start(self) -> None:
        self._documents: list[tuple[Any, ...]] = []
        self._quarantined: list[tuple[Any, ...]] = []
        self.count = self.size = self._repaired = 0

    def add(self, row: Row, table: Table) -> None:
        self.count += 1
        try:
            if row.fault:
                raise Fault(*row.fault)
            self._documents.append(self._document(row, table))
            self._repaired += row.torn
        except Fault as fault:
            self._quarantined.append(self._set_aside(row, table, fault))

    def _document(self, row: Row, table: Table) -> tuple[Any, ...]:
        pairs = zip(self._convert, row.cells, strict=True)
        values = [convert(cell, column) for (convert, column), cell in pairs]
        id, split, along = None, table.split, []
        if len(values) > self._width:
            own = dict(zip(self._own, values[self._width :], strict=False))
            id, split = own.get("id"), own.get("split", split)
            along = values[self._width + len(own) :]
            del values[self._width :]
        said = _said(values)
        if len(said) > self._maximum:
            raise Fault(*too_large(self._maximum))
        self.size += len(said) + sum(len(value) for value in along if value)
        document = self._whole(values) if self._whole else values
        return id, _hash(said), f"{table.name}:{row.line}", split, *document, *along

    def _set_aside(self, row: Row, table: Table, fault: Fault) -> tuple[Any, ...]:
        raw = _raw(row, table.encoding)
        self.size += min(len(raw), LONGEST_RAW)
        return (
            self._id(row),
            _hash(raw),
            "sources",
            fault.reason,
            fault.detail.encode("utf-8", "replace").decode(),
            table.name,
            row.line,
            raw[:LONGEST_RAW],
        )

    def _id(self, row: Row) -> str | None:
        """The table's own, where it can be had: a faulty row is easier found by it."""
        found = dict(zip(self._roles, row.cells, strict=False)).get("id")
        try:
            return streams.mend(cells.identity(found, "id"))
        except Fault:
            return None

    def empty(self) -> Shard:
        shard = Shard(
            _columns(self._documents, self._schema),
            _columns(self._quarantined, shards.QUARANTINED),
            self._repaired,
        )
        self._start()
        return shard


class _Seen:
    """What is known of all shards together: whether there was a document, and whether labels are classes."""

    def __init__(self, layout: Layout) -> None:
        self._documents = self._set_aside = 0
        self._first = ""
        self._fractional: set[str] | None = set() if layout.kind == "label" else None

    def note(self, shard: Shard) -> Shard:
        self._documents += shard.documents.num_rows
        self._set_aside += shard.quarantined.num_rows
        if shard.quarantined.num_rows and not self._first:
            first = shard.quarantined.slice(0, 1).to_pylist()[0]
            self._first = f"{first['file']}:{first['line']}: {first['detail']} ({first['reason']})"
        if self._fractional is not None:
            found = cells.fractional(set(shard.documents["label"].to_pylist()))
            few = sorted(self._fractional | (found or set()))[: MEASUREMENT + 1]
            self._fractional = None if found is None else set(few)
        return shard

    def check(self, name: str, wanted: Mapping[str, str]) -> None:
        if not self._documents:
            faulty = f"no usable row: all {self._set_aside} are faulty, the first at {self._first}"
            raise SourceError(f"{name} holds {faulty if self._set_aside else 'a header and no rows'}")
        if self._fractional and len(self._fractional) > MEASUREMENT:
            raise DataError(
                f"column {wanted['label']!r} holds more than {MEASUREMENT} different numbers such as "
                f"{min(self._fractional)}: classification needs the names of classes; name another column in "
                "sources.text.columns.label, or say sources.text.kind: score"
            )


def _converter(role: str, layout: Layout) -> Callable[[Any, str], Any]:
    if role == "labels":
        return partial(cells.labels, separator=layout.separator)
    if role.startswith(shards.KEPT):
        return cells.kept
    return {"id": cells.identity, "split": cells.split}.get(role) or cells.CELLS[role]


def _schema(columns: Mapping[str, pa.DataType], keep: Sequence[str]) -> pa.Schema:
    found = {**columns, **{f"{shards.KEPT}{name}": pa.string() for name in keep}}
    return pa.schema([*shards.DOCUMENT, *(pa.field(name, type) for name, type in found.items())])


def _columns(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    if not rows:
        return schema.empty_table()
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, type=kind) for column, kind in zip(columns, schema.types, strict=True)]
    return pa.table(arrays, schema=schema)


def _said(values: Sequence[Any]) -> bytes:
    """Bytes that differ wherever the values do: joined by NUL, or as JSON, which holds no NUL."""
    try:
        joined = "\0".join((*values, ""))
    except TypeError:  # not all are texts
        joined = ""
    try:
        if joined.count("\0") == len(values):
            return joined.encode()
        return json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Fault("lone_surrogate", "half of a surrogate pair is no character") from None


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _raw(row: Row, encoding: str) -> bytes:
    if isinstance(row.raw, str):
        return streams.encode(row.raw, encoding)
    return dump(row.cells) if row.raw is None else row.raw
