"""Which column of a table is the text and which the label, told from its first rows."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tasks.errors import SourceError, did_you_mean

ROWS = 1000  # rows looked at


@dataclass(frozen=True)
class Guess:
    text: str
    label: str
    why_text: str
    why_label: str


def columns(path: Path, *, text: str | None = None, label: str | None = None) -> Guess:
    """The text column is the one with the longest values; the label column repeats its values most.

    Raises SourceError for a missing or empty file, fewer than two columns, or a named column that is absent.
    """
    header, rows = _read(path)
    for name in filter(None, (text, label)):
        if name not in header:
            raise SourceError(f"{path} has no column {name!r}; {did_you_mean(name, header)}")
    values = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    length = {name: sum(map(len, column)) / len(column) for name, column in values.items()}
    chosen = text or max((name for name in header if name != label), key=length.__getitem__)
    kinds = {name: len(set(column)) for name, column in values.items() if name != chosen}
    named = label or min(kinds, key=lambda name: (kinds[name] < 2, kinds[name]))
    return Guess(
        chosen,
        named,
        f"{length[chosen]:.0f} characters on average",
        f"{len(set(values[named]))} different values in {len(rows)} rows",
    )


def model_name(path: Path) -> str:
    """A registered model's name from a file's: `My Reviews.csv` -> `my-reviews`."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-") or "model"


def _read(path: Path) -> tuple[Sequence[str], list[list[str]]]:
    try:
        stream = path.open(encoding="utf-8-sig", errors="replace", newline="")
    except (FileNotFoundError, IsADirectoryError):
        raise SourceError(f"no such file: {path}") from None
    with stream:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        reader = csv.reader(stream, delimiter=delimiter)
        header = next(reader, [])
        rows = [row for row in islice(reader, ROWS) if len(row) == len(header)]
    if len(header) < 2 or not rows:
        raise SourceError(f"{path} needs a header with at least two columns and one row below it")
    return header, rows
