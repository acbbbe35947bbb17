"""Read a table of labelled text: every row becomes a document or is quarantined with a reason.

RFC 4180 through Python's csv module in strict mode, because readers that infer types lose `N/A` and `null`.
A quarantined row costs its own line, never the rest of the file.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.errors import DataError, ParamsError, SourceError, did_you_mean

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NOT_TEXT = {b"PK\x03\x04": "a zip or Excel file", b"PAR1": "a Parquet file", b"\x1f\x8b": "gzip-compressed"}
DELIMITERS = {".tsv": "\t", ".tab": "\t"}
LONGEST_RECORD = 1000  # lines; a quote that is still open then was never meant to close
LONGEST_FIELD = 2**24  # characters; csv's own limit of 2**17 would refuse a long document
LONGEST_RAW = 2000  # characters of a quarantined row that are kept to look at
SURROGATE = re.compile("[\udc80-\udcff]")  # where a byte did not decode (PEP 383)
MEASUREMENT = 20  # so many different fractional numbers are a measurement, not classes


@dataclass(frozen=True)
class Document:
    """One labelled text. `source` says where it stood: file name and line."""

    id: str
    text: str
    label: str
    source: str


@dataclass(frozen=True)
class Quarantined:
    """One row set aside for a person to look at; `raw` is the row as it stood, capped."""

    id: str
    stage: str
    reason: str
    detail: str
    raw: str


@dataclass(frozen=True)
class Table:
    """What a file held, in its order; `repaired` documents had bytes replaced by U+FFFD."""

    documents: tuple[Document, ...]
    quarantined: tuple[Quarantined, ...]
    repaired: int


def read(
    path: Path, *, text: str, label: str, encoding: str, undecodable: Literal["quarantine", "replace"]
) -> Table:
    """The documents of a CSV or TSV file (by its suffix), and the rows that are none.

    A blank line is no row. An id is a hash of text and label with a number for repetitions, so neither new
    rows nor another order change it.

    Raises SourceError for a file that is not a table, a missing column or no rows; ParamsError for an unknown
    encoding; DataError for labels that are measurements.
    """
    _refuse_other_formats(path)
    records = _records(_lines(path, encoding), DELIMITERS.get(path.suffix.lower(), ","))
    header = next(records, None)
    if header is None:
        raise SourceError(f"{path.name} is empty")
    if header.fault:
        raise SourceError(f"{path.name}: the header cannot be read: {header.fault}")
    columns = _columns(header.fields, text, label, path.name)
    table = _sort_out(records, header.fields, columns, path.name, replace=undecodable == "replace")
    if not table.documents:
        raise SourceError(f"{path.name} holds {_no_rows(table.quarantined)}")
    _refuse_measurements({document.label for document in table.documents}, label)
    return table


@dataclass(frozen=True)
class _Record:
    line: int
    fields: list[str]
    raw: str
    fault: str = ""


def _lines(path: Path, encoding: str) -> list[str]:
    """A byte that does not decode becomes a lone surrogate (PEP 383), which condemns only its own row."""
    try:
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as stream:
            lines = list(stream)
    except LookupError:
        raise ParamsError(
            f"sources.text.encoding: Python knows no encoding {encoding!r}; try utf-8"
        ) from None
    except UnicodeError as error:
        raise SourceError(f"{path.name} does not decode as {encoding}: {error}") from None
    if lines:
        lines[0] = lines[0].removeprefix("\ufeff")
    return lines


def _records(lines: Sequence[str], delimiter: str) -> Iterator[_Record]:
    """After a fault the next line is tried as a new record, so an open quote swallows nothing."""
    csv.field_size_limit(LONGEST_FIELD)
    start = 0
    while start < len(lines):
        window = (lines[line] for line in range(start, min(start + LONGEST_RECORD, len(lines))))
        reader = csv.reader(window, delimiter=delimiter, strict=True)
        try:
            fields, fault, taken = next(reader), "", reader.line_num
        except csv.Error as error:
            fields, fault, taken = [], str(error), 1
        if fields or fault:
            yield _Record(start + 1, fields, "".join(lines[start : start + taken]), fault)
        start += taken


def _columns(header: Sequence[str], text: str, label: str, name: str) -> tuple[int, int]:
    if text == label:
        raise SourceError(f"{name}: text and label are both read from column {text!r}")
    for wanted in (text, label):
        if wanted not in header:
            raise SourceError(f"{name} has no column {wanted!r}; {did_you_mean(wanted, header)}")
        if header.count(wanted) > 1:
            raise SourceError(
                f"{name} has {header.count(wanted)} columns called {wanted!r}: rename all but one"
            )
    return header.index(text), header.index(label)


def _sort_out(
    records: Iterator[_Record], header: list[str], columns: tuple[int, int], name: str, *, replace: bool
) -> Table:
    documents, quarantined, repaired = [], [], 0
    seen: Counter[str] = Counter()
    for record in records:
        where, torn = f"{name}:{record.line}", _torn(record.raw)
        fault = _fault(record, header, columns)
        if torn and not replace:
            fault = "undecodable", "a byte is no character in the file's encoding"
        if fault:
            id = _id(seen, "", record.raw)
            quarantined.append(
                Quarantined(id, "sources", fault[0], f"{where}: {fault[1]}", _shown(record.raw))
            )
        else:
            body, label = (_mended(record.fields[column]) for column in columns)
            documents.append(Document(_id(seen, label.strip(), body), body, label.strip(), where))
            repaired += torn
    return Table(tuple(documents), tuple(quarantined), repaired)


def _torn(raw: str) -> bool:
    return SURROGATE.search(raw) is not None


def _mended(text: str) -> str:
    return SURROGATE.sub("\ufffd", text)


def _fault(record: _Record, header: list[str], columns: tuple[int, int]) -> tuple[str, str] | None:
    """Reason and detail why `record` is no document, or None."""
    if record.fault:
        open_quote = "end of data" in record.fault or "expected after" in record.fault
        return "unclosed_quote" if open_quote else "malformed", record.fault
    if len(record.fields) != len(header):
        reason = "missing_columns" if len(record.fields) < len(header) else "extra_columns"
        return reason, f"{len(record.fields)} fields under {len(header)} column names"
    if record.fields == header:
        return "repeated_header", "the header again"
    if not record.fields[columns[1]].strip():
        return "no_label", f"column {header[columns[1]]!r} is empty"
    return None


def _id(seen: Counter[str], label: str, text: str) -> str:
    content = f"{label}\0{text}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    seen[digest] += 1
    return f"{digest}-{seen[digest]}"


def _shown(raw: str) -> str:
    return raw.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")[:LONGEST_RAW]


def _no_rows(quarantined: Sequence[Quarantined]) -> str:
    if not quarantined:
        return "a header and no rows"
    first = quarantined[0]
    return f"no usable row: all {len(quarantined)} are faulty, the first at {first.detail} ({first.reason})"


def _refuse_other_formats(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise SourceError(f"{path.name} is a git-LFS pointer, not the data: run `git lfs pull`")
    for magic, kind in NOT_TEXT.items():
        if start.startswith(magic):
            raise SourceError(f"{path.name} is {kind}: bring a plain CSV or TSV file")


def _refuse_measurements(labels: Collection[str], column: str) -> None:
    try:
        fractional = [label for label in labels if not float(label).is_integer()]
    except ValueError:  # a name among them
        return
    if len(fractional) > MEASUREMENT:
        raise DataError(
            f"column {column!r} holds {len(labels)} different numbers such as {min(fractional)}: "
            "classification needs the names of classes; name another column in sources.text.label"
        )
