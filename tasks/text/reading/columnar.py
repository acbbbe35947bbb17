"""Read Parquet and Arrow, what `datasets` saves among them, batch by batch."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from tasks.errors import SourceError
from tasks.text.reading import streams
from tasks.text.reading.cells import Fault
from tasks.text.reading.layout import UNDECODABLE, Layout, Row, check_columns, dump

BATCH = 4096  # rows in memory as Python values
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")


def rows(path: Path, encoding: str, columns: Sequence[str], layout: Layout) -> Iterator[Row]:
    """Numbers of classes become their names, where `datasets` noted these in the file.

    Such a file has no encoding of its own. Raises SourceError for a missing column and a torn file.
    """
    schema = read_schema(path)
    check_columns(columns, schema.names, path.name)
    names = [_class_names(schema, column) for column in columns]
    replace, row = layout.undecodable == "replace", 0
    for batch in read_batches(path, columns):
        values, torn = zip(*(read_values(batch.column(column)) for column in columns), strict=True)
        bad = set().union(*torn)
        for place, cells in enumerate(zip(*values, strict=True)):
            row += 1
            if place in bad and not replace:
                yield Row(row, (), dump(cells), UNDECODABLE)
            else:
                yield _named(Row(row, cells, None, torn=place in bad), names)


def columns(path: Path, encoding: str, layout: Layout) -> list[str]:
    """The schema's names. Raises SourceError for a torn file."""
    return list(read_schema(path).names)


def read_schema(path: Path) -> pa.Schema:
    """Raises SourceError for a torn file."""
    try:
        if path.suffix.lower() in PARQUET:
            return parquet.read_schema(path)
        with _open_arrow(path) as reader:
            return reader.schema
    except (OSError, pa.ArrowInvalid) as error:
        raise _torn_file(path, error) from None


def without_views(schema: pa.Schema) -> pa.Schema:
    """With large strings and bytes for the views that polars writes: few functions of Arrow take views."""
    for place, field in enumerate(schema):
        schema = schema.set(place, _without_views(field))
    return schema


def _without_views(field: pa.Field) -> pa.Field:
    kind = field.type
    if pa.types.is_string_view(kind):
        return field.with_type(pa.large_string())
    if pa.types.is_binary_view(kind):
        return field.with_type(pa.large_binary())
    if pa.types.is_list(kind):
        return field.with_type(pa.list_(_without_views(kind.value_field)))
    if pa.types.is_large_list(kind):
        return field.with_type(pa.large_list(_without_views(kind.value_field)))
    if pa.types.is_fixed_size_list(kind):
        return field.with_type(pa.list_(_without_views(kind.value_field), kind.list_size))
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_without_views(inner) for inner in kind]))
    if pa.types.is_dictionary(kind):
        values = _without_views(pa.field("values", kind.value_type)).type
        return field.with_type(pa.dictionary(kind.index_type, values, kind.ordered))
    return field


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Of at most BATCH rows each. Raises SourceError for a torn file."""
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


def count_rows(path: Path) -> int:
    """Raises SourceError for a torn file."""
    return sum(batch.num_rows for batch in read_batches(path, ()))


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


def read_values(column: pa.Array) -> tuple[list[Any], set[int]]:
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
