"""Which column of a table is the text and which the label, told from its first rows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import SourceError, did_you_mean
from tasks.text.reading import readers, streams
from tasks.text.reading.layout import Layout

ROWS = 1000  # rows looked at
LAYOUT = Layout(encoding=streams.AUTO, undecodable="replace")


@dataclass(frozen=True)
class Guess:
    """columns: what a row has -> the table's name for it. reasons: of these columns, for people."""

    columns: Mapping[str, str]
    reasons: Mapping[str, str]
    encoding: str = "utf-8"


def columns(path: Path, *, text: str | None = None, label: str | None = None) -> Guess:
    """The text column is the one with the longest values; the label column repeats its values most.

    `path` is anything that sources.py reads. Raises SourceError for a missing or empty file, fewer than two
    columns, or a named column that is absent.
    """
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    header, rows = readers.peek(path, LAYOUT, ROWS)
    for name in filter(None, (text, label)):
        if name not in header:
            raise SourceError(f"{path} has no column {name!r}; {did_you_mean(name, header)}")
    values = _columns(header, rows)
    if len(values) < 2 or not rows:
        raise SourceError(f"{path} needs at least two columns of texts or numbers and one row")
    length = {name: sum(map(len, column)) / len(column) for name, column in values.items()}
    chosen = text or max((name for name in values if name != label), key=length.__getitem__)
    kinds = {name: len(set(column)) for name, column in values.items() if name != chosen}
    named = label or min(kinds, key=lambda name: (kinds[name] < 2, kinds[name]))
    for name in (chosen, named):
        if name not in values:
            raise SourceError(f"{path}: column {name!r} holds lists or objects, no texts or labels")
    return Guess(
        {"text": chosen, "label": named},
        {
            "text": f"{length[chosen]:.0f} characters on average",
            "label": f"{len(set(values[named]))} different values in {len(rows)} rows",
        },
        readers.encoding(path, LAYOUT),
    )


def by_name(path: Path, wanted: Sequence[str], given: Mapping[str, str]) -> Guess:
    """The columns that have the names in `wanted`, or those that `given` says they have.

    Raises SourceError for a missing file and, all at once, for names that are not wanted and columns that the
    table does not have.
    """
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    header, _ = readers.peek(path, LAYOUT, ROWS)
    faults = [
        f"no {name!r} in such rows; {did_you_mean(name, wanted)}" for name in given if name not in wanted
    ]
    chosen = {name: given.get(name, name) for name in wanted}
    faults += [
        f"no column {column!r} for {name!r}; {did_you_mean(column, header)}"
        for name, column in chosen.items()
        if column not in header
    ]
    if faults:
        raise SourceError(f"{path}: {'; '.join(faults)} (--column {wanted[0]}=NAME says what it is called)")
    return Guess(chosen, dict.fromkeys(chosen, "by its name"), readers.encoding(path, LAYOUT))


def model_name(path: Path) -> str:
    """A registered model's name from a file's: `My Reviews.csv.gz` -> `my-reviews`."""
    stem = path.name.removesuffix("".join(path.suffixes[-2:])) if path.suffix in streams.PACKED else path.stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-") or "model"


def _columns(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The columns of plain values, as text; what is missing is empty."""
    plain: dict[str, list[str]] = {}
    for name in header:
        found = [row[name] for row in rows]
        if all(value is None or isinstance(value, str | int | float) for value in found):
            plain[name] = ["" if value is None else str(value) for value in found]
    return plain
