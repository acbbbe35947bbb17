"""Bring a table to what can be decided about: shard by shard read, cleaned, filtered and signed.

Texts stay on disk; memory holds a few numbers a row.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as compute
from numpy.typing import NDArray

from tasks import progress
from tasks.artifacts import SPLITS
from tasks.errors import SourceError
from tasks.text import clean, contamination, filters, identities, kinds, shards, signatures
from tasks.text.dedup import Integers
from tasks.text.ledger import UNKNOWN, Splits
from tasks.text.reading import sources
from tasks.text.signatures import Hashes, Signed

FORGOTTEN = "forgotten"
EXAMPLES = 10  # texts before and after cleaning, to look at


@dataclass(frozen=True)
class Handling:
    """What is done to a shard, as plain values."""

    kind: str
    steps: tuple[str, ...]
    bounds: filters.Bounds
    shingle: int
    rows_per_band: int
    grams: Path | None = None  # hashes of the 13-grams of evaluations kept elsewhere
    forgotten: frozenset[str] = frozenset()


class Worked(NamedTuple):
    """A shard after its handling; `file` holds its cleaned rows with reason and detail, null where they
    passed.

    Arrays are of all rows up to `passed`, of those that passed after it.
    """

    file: Path
    content: Hashes
    ids: list[str] | None
    passed: NDArray[np.bool_]
    signed: Signed
    raw: Hashes  # keys before cleaning
    groups: Hashes  # keys of the first text of a pair; empty where a row has one text
    answers: Hashes
    classes: list[str]
    fixed: Splits
    grams: Hashes  # 13-grams of the rows that evaluations have too
    parts: Hashes  # keys of the texts of pairs that evaluations have too
    overlaps: NDArray[np.bool_]
    gone: Hashes  # of the keys of forgotten texts
    lost: Hashes  # content of forgotten rows
    changed: Counter[str]
    examples: tuple[clean.Example, ...]


@dataclass(frozen=True)
class Gathered:
    """All shards as one; a row's number is its place in the table's order."""

    files: tuple[Path, ...]
    starts: Integers  # (shards + 1,) number of each shard's first row
    quarantined: tuple[Path, ...]
    unread: int  # rows in `quarantined`
    ids: pl.Series  # (rows,)
    repeated: NDArray[np.bool_]  # (rows,) whether the table gave this id to an earlier row
    content: Hashes  # (rows,)
    numbers: Integers  # (texts,) the row of each text that passed
    signed: Signed
    raw: Hashes
    groups: Hashes
    answers: Hashes
    classes: NDArray[np.object_]
    fixed: Splits
    grams: Hashes
    parts: Hashes
    overlaps: NDArray[np.bool_]
    gone: Hashes  # of the keys of forgotten texts
    lost: Hashes  # content of forgotten rows
    changed: Counter[str]
    examples: tuple[clean.Example, ...]
    repaired: int

    @property
    def rows_in(self) -> int:
        return len(self.content) + self.unread


def gather(
    path: Path,
    layout: sources.Layout,
    handling: Handling,
    *,
    into: Path,
    rows: int,
    engine: shards.Engine = "thread",
    workers: int | None = None,
) -> Gathered:
    """Work through the table at `path`, with shards of `rows` rows below `into`.

    Raises SourceError for a table without a usable row, and what `sources.read` raises.
    """
    into.mkdir(parents=True, exist_ok=True)
    written = _Written(into, handling.forgotten)
    work = shards.run(
        partial(handle, handling=handling),
        written.all(sources.read(path, layout, rows=rows)),
        engine=engine,
        workers=workers,
    )
    worked = list(progress.track(work, total=None, description="cleaning and signing", size=_size))
    if not any(len(part.content) for part in worked):
        raise SourceError(f"{path.name} holds no usable row: {written.told()}")
    return _joined(worked, written, into)


def _size(part: Worked) -> int:
    return len(part.content)


class _Written:
    """Shards as they are read, put on disk for whoever works on them."""

    def __init__(self, into: Path, forgotten: frozenset[str]) -> None:
        self.into, self.forgotten = into, forgotten
        self.quarantined: list[Path] = []
        self.unread = 0
        self.repaired = 0
        self.first: str | None = None

    def all(self, found: Iterable[sources.Shard]) -> Iterator[Path]:
        for number, shard in enumerate(found):
            if len(shard.quarantined):
                self._set_aside(shard.quarantined, number)
            self.repaired += shard.repaired
            if len(shard.documents):
                yield shards.write(shard.documents, self.into / f"{number:06d}.parquet")

    def _set_aside(self, table: pa.Table, number: int) -> None:
        gone = _asked_for(table, self.forgotten)
        table = _emptied(table, gone, {"detail": "forgotten on request", "raw": b""})
        self.quarantined.append(shards.write(table, self.into / f"{number:06d}-quarantine.parquet"))
        self.unread += len(table)
        if self.first is None:
            self.first = f"the first at {table['detail'][0]} ({table['reason'][0]})"

    def told(self) -> str:
        return f"all {self.unread} are faulty, {self.first}" if self.unread else "a header and no rows"


def handle(file: Path, handling: Handling) -> Worked:
    """Clean, filter and sign one shard; the cleaned rows take the place of the raw ones."""
    kind = kinds.KINDS[handling.kind]
    raw, gone, keys = _forget(shards.read(file), handling, kind)
    cleaned = clean.clean(raw, handling.steps, kind.cleaned)
    reasons = _reasons(cleaned.table, gone, handling, kind)
    passed = np.array([reason is None for reason in reasons], dtype=bool)
    shards.write(_with_reasons(cleaned.table, raw, reasons), file.with_suffix(".clean"))
    file.unlink()
    kept = cleaned.table.filter(pa.array(passed))
    texts = kinds.compared(kept, kind)
    parts = [pl.Series(kept[name]) for name in kind.compared] if len(kind.compared) > 1 else []
    given = raw["id"].to_pylist()
    signed = signatures.sign(
        texts, file.with_suffix(".signed"), shingle=handling.shingle, rows=handling.rows_per_band
    )
    return Worked(
        file=file.with_suffix(".clean"),
        content=raw["content"].to_numpy(),
        ids=None if given[0] is None else given,
        passed=passed,
        signed=signed,
        raw=_raw_keys(signed, texts, kinds.compared(raw.filter(pa.array(passed)), kind)),
        groups=signatures.hashed(signatures.keys(parts[0])) if parts else np.empty(0, dtype=np.uint64),
        answers=kinds.answers(kept, kind).to_numpy(),
        classes=kinds.classes(kept, kind),
        fixed=_fixed(kept),
        **contamination.overlaps(texts, parts, handling.grams),
        gone=keys,
        lost=raw["content"].to_numpy()[gone],
        changed=cleaned.changed,
        examples=cleaned.examples,
    )


def _raw_keys(signed: Signed, texts: pl.Series, raw: pl.Series) -> Hashes:
    """Keys as they are without any cleaning, under which the ledger finds a text when the steps change."""
    found = signed.keys.copy()
    changed = (texts != raw).arg_true()
    found[changed.to_numpy()] = signatures.hashed(signatures.keys(raw.gather(changed)))
    return found


def _forget(
    raw: pa.Table, handling: Handling, kind: kinds.Kind
) -> tuple[pa.Table, NDArray[np.bool_], Hashes]:
    """`raw` without what forgotten rows say, which rows these are, and the hashes of their keys."""
    gone = _asked_for(raw, handling.forgotten)
    lost = clean.clean(raw.filter(pa.array(gone)), handling.steps, kind.cleaned).table
    keys = signatures.hashed(signatures.keys(kinds.compared(lost, kind)))
    return _emptied(raw, gone, dict.fromkeys(("text", *kind.cleaned), "")), gone, keys


def _asked_for(table: pa.Table, digests: frozenset[str]) -> NDArray[np.bool_]:
    if not digests:
        return np.zeros(len(table), dtype=bool)
    rows = table.select(["id", "content"]).to_pylist()
    return np.array([identities.forgotten(row) in digests for row in rows], dtype=bool)


def _emptied(table: pa.Table, gone: NDArray[np.bool_], values: Mapping[str, str | bytes]) -> pa.Table:
    """`table` with `values` in the rows `gone`, and the digest where they have an id of their own."""
    if not gone.any():
        return table
    mask = pa.array(gone)
    ids = [id and identities.digest(id) for id in table["id"].filter(mask).to_pylist()]
    new = {"id": pa.array(ids, pa.string())} | {
        name: pa.array([value] * len(ids), table.schema.field(name).type) for name, value in values.items()
    }
    for name, column in new.items():
        filled = compute.replace_with_mask(table[name].combine_chunks(), mask, column)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), filled)
    return table


def _reasons(
    table: pa.Table, gone: NDArray[np.bool_], handling: Handling, kind: kinds.Kind
) -> Sequence[tuple[str, str] | None]:
    strings = [name for name, type in kind.columns.items() if type == pa.string() and name != kind.classes]
    found = filters.reasons(table, handling.bounds, classes=kind.classes, answers=strings)
    return [(FORGOTTEN, "on request") if out else reason for out, reason in zip(gone, found, strict=True)]


def _with_reasons(table: pa.Table, raw: pa.Table, reasons: Sequence[tuple[str, str] | None]) -> pa.Table:
    """`table` with reason, detail and `original`, the text before cleaning."""
    table = table.append_column("original", raw["text"])
    for place, name in enumerate(("reason", "detail")):
        column = pa.array([reason and reason[place] for reason in reasons], type=pa.string())
        table = table.append_column(name, column)
    return table


def _fixed(table: pa.Table) -> Splits:
    numbers = {name: number for number, name in enumerate(SPLITS)}
    return np.array([numbers.get(name, UNKNOWN) for name in table["split"].to_pylist()], dtype=np.int8)


def _joined(worked: Sequence[Worked], written: _Written, into: Path) -> Gathered:
    content = np.concatenate([part.content for part in worked])
    passed = np.concatenate([part.passed for part in worked])
    ids, repeated = _ids(worked, content)
    return Gathered(
        files=tuple(part.file for part in worked),
        starts=np.cumsum([0, *map(_size, worked)]),
        quarantined=tuple(written.quarantined),
        unread=written.unread,
        ids=ids,
        repeated=repeated,
        content=content,
        numbers=np.flatnonzero(passed),
        signed=signatures.join([part.signed for part in worked], into / "signed"),
        answers=np.concatenate([part.answers for part in worked]),
        classes=np.array([name for part in worked for name in part.classes], dtype=object),
        raw=np.concatenate([part.raw for part in worked]),
        groups=np.concatenate([part.groups for part in worked]),
        fixed=np.concatenate([part.fixed for part in worked]),
        grams=np.unique(np.concatenate([part.grams for part in worked])),
        parts=np.unique(np.concatenate([part.parts for part in worked])),
        overlaps=np.concatenate([part.overlaps for part in worked]),
        gone=np.unique(np.concatenate([part.gone for part in worked])),
        lost=np.unique(np.concatenate([part.lost for part in worked])),
        changed=_summed(part.changed for part in worked),
        examples=clean.best([example for part in worked for example in part.examples], EXAMPLES),
        repaired=written.repaired,
    )


def _summed(counts: Iterable[Counter[str]]) -> Counter[str]:
    """Their sum, with zeros."""
    total = Counter[str]()
    for count in counts:
        total.update(count)
    return total


def _ids(worked: Sequence[Worked], content: Hashes) -> tuple[pl.Series, NDArray[np.bool_]]:
    """The table's own ids, or each row's content with a number for repetitions; and which ids come again."""
    if worked[0].ids is not None:
        given = pl.Series("id", [id for part in worked for id in part.ids or ()], dtype=pl.String)
        return given, (~given.is_first_distinct()).to_numpy()
    return identities.numbered(content), np.zeros(len(content), dtype=bool)
