"""Read CSV and TSV (RFC 4180): a faulty record costs itself, an open quote swallows nothing."""

import csv
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from itertools import count
from pathlib import Path

from tasks.errors import SourceError
from tasks.text.reading import streams
from tasks.text.reading.layout import UNDECODABLE, Layout, Row, check_columns, is_too_large, lines, too_large

LONGEST_RECORD = 1000  # lines; a quote that is still open then was never meant to close
NO_LIMIT = 2**31 - 1  # csv's own limit of 2**17 characters would refuse a long document; ours is in bytes
BLOCK = 2**16  # characters of CSV that are tried at once

_Record = tuple[int, list[str], str, tuple[str, str] | None]  # line, fields, raw, fault


def rows(path: Path, encoding: str, columns: Sequence[str], layout: Layout, separator: str) -> Iterator[Row]:
    """RFC 4180 through Python's csv module in strict mode: readers that infer types lose `N/A` and `null`.

    Raises SourceError for an empty file, a header that cannot be read, and a column that is not in it.
    """
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


def columns(path: Path, encoding: str, layout: Layout, separator: str) -> list[str]:
    """The header. Raises SourceError where there is none."""
    return _header(_records(path, encoding, layout, separator), path.name)


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
    window = _Window(lines(path, encoding, layout, ends=""), layout.maximum_row)
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
        if is_too_large(raw, maximum):
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
