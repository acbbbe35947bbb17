"""`regraft predict`: label texts with the registered champion."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks import files
from tasks.errors import InputError, did_you_mean
from tasks.evaluation.predictions import Text
from tasks.params import Params, TextSource
from tasks.text.kinds import KINDS

LONGEST = 100_000_000  # characters of one field


def predict(
    params: Params, root: Path, text: str, output: Path | None, *, pair: str | None = None
) -> Iterator[str]:
    """One line for a text, or for it and its `pair`; for a CSV file a copy of it with `prediction` and
    `probability` columns.

    Raises InputError for a file without the columns that hold the texts.
    """
    path = Path(text)
    if path.suffix.lower() not in (".csv", ".tsv") or pair is not None:
        label, probability = _label(params, root, [text if pair is None else (text, pair)])[0]
        yield f"{label} ({probability:.3f})"
        return
    target = output or path.with_name(f"{path.stem}.predicted{path.suffix}")
    count = _table(params, root, path, target)
    yield f"wrote {count:,} rows to {target}"


def _table(params: Params, root: Path, path: Path, target: Path) -> int:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    kind = KINDS[params.sources.text.kind]
    columns = [params.sources.text.columns.get(name, name) for name in kind.compared]
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    header, rows = _read(path, delimiter, params.sources.text)
    for column in columns:
        if column not in header:
            raise InputError(f"{path} has no column {column!r}; {did_you_mean(column, header)}")
    texts = [tuple(row[column] or "" for column in columns) for row in rows]
    found = _label(params, root, [(one[0], one[1]) if len(one) == 2 else one[0] for one in texts])
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


def _label(params: Params, root: Path, texts: Sequence[Text]) -> list[tuple[str, float]]:
    if not texts:
        return []
    from tasks.stages import promotion

    labels, probabilities = promotion.predict(params, root, texts)
    best = probabilities.argmax(axis=1)
    return [(labels[place], float(row[place])) for place, row in zip(best, probabilities, strict=True)]
