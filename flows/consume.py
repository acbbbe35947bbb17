"""`regraft predict`: label texts with the registered champion."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks import files
from tasks.errors import InputError, did_you_mean
from tasks.params import Params, TextSource

LONGEST = 100_000_000  # characters of one field


def predict(params: Params, root: Path, text: str, output: Path | None) -> Iterator[str]:
    """One line per text, or, for a CSV file, a copy of it with `prediction` and `probability` columns.

    Raises InputError for a file without the text column.
    """
    path = Path(text)
    if path.suffix.lower() not in (".csv", ".tsv"):
        label, probability = _label(params, root, [text])[0]
        yield f"{label} ({probability:.3f})"
        return
    target = output or path.with_name(f"{path.stem}.predicted{path.suffix}")
    count = _table(params, root, path, target)
    yield f"wrote {count:,} rows to {target}"


def _table(params: Params, root: Path, path: Path, target: Path) -> int:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    column = params.sources.text.columns.get("text", "text")
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    header, rows = _read(path, delimiter, params.sources.text)
    if column not in header:
        raise InputError(f"{path} has no column {column!r}; {did_you_mean(column, header)}")
    found = _label(params, root, [row[column] or "" for row in rows])
    with files.replace_file(target) as draft, draft.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, [*header, "prediction", "probability"], delimiter=delimiter)
        writer.writeheader()
        for row, (label, probability) in zip(rows, found, strict=True):
            writer.writerow({**row, "prediction": label, "probability": f"{probability:.6f}"})
    return len(rows)


def _read(path: Path, delimiter: str, source: TextSource) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows. Raises InputError naming the line that is no row of this table."""
    encoding = "utf-8-sig" if source.encoding.lower() in ("utf-8", "utf8") else source.encoding
    errors = "replace" if source.undecodable == "replace" else "strict"
    csv.field_size_limit(LONGEST)
    with path.open(encoding=encoding, errors=errors, newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header, rows = next(reader, []), []
            for row in reader:
                if row and len(row) != len(header):
                    raise InputError(
                        f"{path}:{reader.line_num}: {len(row)} fields, the header has {len(header)}"
                    )
                rows += [dict(zip(header, row, strict=True))] if row else []
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: after line {reader.line_num}: {error}") from None
    return header, rows


def _label(params: Params, root: Path, texts: Sequence[str]) -> list[tuple[str, float]]:
    if not texts:
        return []
    from tasks.stages import promotion

    labels, probabilities = promotion.predict(params, root, texts)
    best = probabilities.argmax(axis=1)
    return [(labels[place], float(row[place])) for place, row in zip(best, probabilities, strict=True)]
