"""From files and folders to rows of cells, whatever the format.

A row that cannot be read comes with its fault and costs itself alone; a file that is no table raises.
"""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tasks.text.reading import formats
from tasks.text.reading.folders import (
    RENAME,
    fixed,
    folder_of_tables,
    folder_of_texts,
    name_in,
    saved_by_datasets,
)
from tasks.text.reading.layout import Layout, Row, Table, Wanted


def tables(path: Path, wanted: Wanted, layout: Layout) -> Iterator[Table]:
    """Every table at `path`, in the order of names: a file, what `datasets` saved, a folder of tables, or a
    folder of text files for each label.

    Splits that files or folders are named for hold where they are at least two, unless a column of splits is
    named, which overrules them. Raises SourceError for what is no table, and for a file that is named for no
    split beside those of several.
    """
    if path.is_file():
        yield formats.table(path, path.name, None, wanted, layout)
    elif found := saved_by_datasets(path) or folder_of_tables(path):
        splits = dict.fromkeys(found) if layout.split else fixed(found, path, RENAME)
        for file, split in splits.items():
            yield formats.table(file, name_in(file, path), split, wanted, layout)
    else:
        yield from folder_of_texts(path, wanted, layout)


def peek(path: Path, layout: Layout, rows: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns of the first table at `path`, and its first rows that can be read, by column.

    A folder of text files has the columns text and label.
    """
    if path.is_dir():
        path = next(iter(saved_by_datasets(path) or folder_of_tables(path)), path)
    read: Iterator[Row]
    if path.is_dir():
        found = islice(folder_of_texts(path, {"text": "text", "label": "label"}, layout), rows)
        names, read = ["text", "label"], chain.from_iterable(table.rows for table in found)
    else:
        names = formats.columns(path, layout)
        read = formats.table(path, path.name, None, {name: name for name in names}, layout).rows
    good = islice((row for row in read if not row.fault), rows)
    return names, [dict(zip(names, row.cells, strict=True)) for row in good]


def encoding(path: Path, layout: Layout) -> str:
    """The encoding of the first table at `path`, UTF-8 where there is none to tell."""
    if path.is_dir():
        path = next(iter(folder_of_tables(path)), path)
    return "utf-8" if path.is_dir() else formats.encoding(path, layout) or "utf-8"
