"""`regraft predict`: what the registered champion says of texts."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import files
from tasks.errors import InputError, did_you_mean
from tasks.evaluation.predictions import Text
from tasks.params import Params, TextSource
from tasks.text.kinds import KINDS

LONGEST = 100_000_000  # characters of one field
BETWEEN = ";"  # labels of one cell, unless sources.text.separator says otherwise
UNTAGGED = "?"  # a word behind encoding.max_length, or of no token
Names = Sequence[str]


@dataclass(frozen=True)
class Telling:
    """How the answer to a text is told, given the label names: in a `line`, and in `cells` of a table under
    `columns`; `separator` stands between the labels of a cell."""

    line: Callable[[Any, Names, str], str]
    columns: Callable[[Names], list[str]]
    cells: Callable[[Any, Names, str], list[str]]


def predict(
    params: Params, root: Path, text: str, output: Path | None, *, pair: str | None = None
) -> Iterator[str]:
    """One line for a text, or for it and its `pair`; for a CSV file a copy of it with what TELLINGS adds.

    Raises InputError for a file without the columns that hold the texts.
    """
    path = Path(text)
    if path.suffix.lower() not in (".csv", ".tsv") or pair is not None:
        kind, names, answers = _ask(params, root, [text if pair is None else (text, pair)])
        yield TELLINGS[kind].line(answers[0], names, text)
        return
    target = output or path.with_name(f"{path.stem}.predicted{path.suffix}")
    count = _table(params, root, path, target)
    yield f"wrote {count:,} rows to {target}"


def _table(params: Params, root: Path, path: Path, target: Path) -> int:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    source, columns = params.sources.text, _columns(params.sources.text)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    header, rows = _read(path, delimiter, source)
    for column in columns:
        if column not in header:
            raise InputError(f"{path} has no column {column!r}; {did_you_mean(column, header)}")
    texts = [tuple(row[column] or "" for column in columns) for row in rows]
    kind, names, answers = _ask(params, root, [(t[0], t[1]) if len(t) == 2 else t[0] for t in texts])
    telling, separator = TELLINGS[kind], source.separator or BETWEEN
    with files.replace_file(target) as draft, draft.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerow([*header, *telling.columns(names)])
        for row, answer in zip(rows, answers, strict=True):
            writer.writerow([*(row[name] for name in header), *telling.cells(answer, names, separator)])
    return len(rows)


def _columns(source: TextSource) -> list[str]:
    """The table's own names of what the champion is asked about."""
    kind = KINDS[source.kind]
    names = [(kind.text or "text") if name == "text" else name for name in kind.compared]
    return [source.columns.get(name, name) for name in names]


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


def _ask(params: Params, root: Path, texts: Sequence[Text]) -> tuple[str, Names, Any]:
    """The champion's kind of row, its label names, an answer a text."""
    from tasks.stages import champion

    return champion.predict(params, root, texts)


def _most_likely(shares: Any, names: Names) -> tuple[str, float]:
    best = int(shares.argmax())
    return names[best], float(shares[best])


def _one_line(shares: Any, names: Names, text: str) -> str:
    label, probability = _most_likely(shares, names)
    return f"{label} ({probability:.3f})"


def _one_cells(shares: Any, names: Names, separator: str) -> list[str]:
    label, probability = _most_likely(shares, names)
    return [label, f"{probability:.6f}"]


def _many_line(shares: Any, names: Names, text: str) -> str:
    """The labels that hold, the likeliest first; where none does, the likeliest in brackets."""
    ranked = sorted(zip(names, shares.tolist(), strict=True), key=lambda pair: -pair[1])
    held = [f"{name} ({share:.3f})" for name, share in ranked if share >= 0.5]
    return ", ".join(held) or f"no label (the likeliest is {ranked[0][0]}, {ranked[0][1]:.3f})"


def _many_cells(shares: Any, names: Names, separator: str) -> list[str]:
    held = [name for name, share in zip(names, shares, strict=True) if share >= 0.5]
    return [separator.join(held), *(f"{share:.6f}" for share in shares)]


def _tag(number: int, names: Names) -> str:
    return names[number] if number >= 0 else UNTAGGED


ONE = Telling(_one_line, lambda names: ["prediction", "probability"], _one_cells)
CONTINUED = Telling(
    lambda said, names, text: str(said),
    lambda names: ["prediction"],
    lambda said, names, separator: [str(said)],
)
TELLINGS: Mapping[str, Telling] = {
    "text": CONTINUED,
    "completion": CONTINUED,
    "chat": CONTINUED,
    "label": ONE,
    "pair": ONE,
    "labels": Telling(
        _many_line, lambda names: ["prediction", *(f"probability of {name}" for name in names)], _many_cells
    ),
    "score": Telling(
        lambda score, names, text: f"{score:.6g}",
        lambda names: ["prediction"],
        lambda score, names, separator: [f"{score:.6g}"],
    ),
    "tags": Telling(
        lambda tags, names, text: " ".join(
            f"{word}/{_tag(tag, names)}" for word, tag in zip(text.split(), tags, strict=True)
        ),
        lambda names: ["prediction"],
        lambda tags, names, separator: [" ".join(_tag(tag, names) for tag in tags)],
    ),
}
