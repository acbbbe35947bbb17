"""Write what was decided: rows, drops and quarantine, each row in exactly one of them.

Rows are sorted by a hash of their content, so that the order of the table leaves no trace; the sorting is
done in parts, so that no table is ever held whole.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from tasks import progress
from tasks.artifacts import SPLITS
from tasks.text import identities, kinds, shards
from tasks.text.decide import Fates
from tasks.text.dedup import Integers
from tasks.text.gather import Gathered

PART = 100_000  # rows sorted at once
GROUP = 10_000  # rows of a Parquet row group
CAP = 2000  # bytes of a quarantined row that are kept to look at
SET_ASIDE = shards.QUARANTINED.remove(shards.QUARANTINED.get_field_index("content"))
QUARANTINED = {"conflicting_labels", "minority_label", "bridges_splits", "duplicate_id"}  # else dropped
DUPLICATES = {"exact_duplicate", "near_duplicate", "straddles_splits"}
STEPS: Mapping[str, str] = {  # what is not here left at the filters
    "duplicate_id": "sources",
    "forgotten": "forget",
    "conflicting_labels": "dedup",
    "minority_label": "dedup",
    "exact_duplicate": "dedup",
    "near_duplicate": "dedup",
    "bridges_splits": "split",
    "straddles_splits": "split",
    "contaminates_evaluation": "contamination",
    "outside_subset": "subset",
}
SENTENCES: Mapping[str, str] = {
    "duplicate_id": "an earlier row has this id",
    "conflicting_labels": "labelled {own}, but {other} ({similarity:.3f} similar) is labelled {its}",
    "minority_label": "labelled {own}, but most of its duplicates are not ({other} is labelled {its})",
    "exact_duplicate": "of {other}",
    "near_duplicate": "{similarity:.3f} similar to {other}",
    "bridges_splits": "it has near-duplicates in more than one split",
    "straddles_splits": "{similarity:.3f} similar to {other}, which is in {split}",
    "contaminates_evaluation": "an evaluation kept elsewhere holds it, or nearly",
    "outside_subset": "{here} takes {most} rows",
}


@dataclass
class Delivered:
    """What went where, counted."""

    rows: Counter[str] = field(default_factory=Counter)  # split -> rows
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    quarantined: Counter[str] = field(default_factory=Counter)  # reason -> rows
    balance: Counter[tuple[str, str]] = field(default_factory=Counter)  # (class, split) -> rows
    lengths: Counter[tuple[str, int]] = field(default_factory=Counter)  # (split, characters) -> rows
    detached: int = 0  # rows kept in which a tag I-X follows neither B-X nor I-X

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in (self.rows, self.dropped, self.quarantined))

    def count(self, kept: pa.Table, piece: "_Piece", kind: kinds.Kind) -> None:
        splits = kept["split"].to_pylist()
        self.rows.update(splits)
        self.balance.update(zip(kinds.classes(kept, kind), splits, strict=True))
        self.lengths.update(zip(splits, compute.utf8_length(kept["text"]).to_pylist(), strict=True))
        if "tags" in kind.columns:
            self.detached += sum(map(kinds.is_detached, kept["tags"].to_pylist()))
        self.dropped.update(piece.reason[piece.out].tolist())
        self.quarantined.update(piece.reason[piece.aside].tolist())


def deliver(
    gathered: Gathered,
    fates: Fates,
    kind: kinds.Kind,
    keep: Sequence[str],
    *,
    into: Path,
    limits: Mapping[str, int | None],
) -> Delivered:
    """Write `rows.parquet`, `drops.parquet` and `quarantine.parquet` into the directory `into`; the columns
    `keep`, which come along, are told of rows that stay alone."""
    told = Delivered()
    schema = row_schema(kind, keep)
    parts = _Parts(into / "parts", int(fates.stays.sum()), schema)
    with ExitStack() as stack:
        drops = stack.enter_context(_Steady(into / "drops.parquet", shards.DROPPED))
        aside = stack.enter_context(_Steady(into / "quarantine.parquet", SET_ASIDE))
        stack.enter_context(parts)
        for table in _unread(gathered):
            told.quarantined.update(table["reason"].to_pylist())
            aside.add(table)
        names = _Names(gathered, fates, limits)
        files = progress.track(gathered.files, total=len(gathered.files), description="writing shards")
        for number, file in enumerate(files):
            piece = _Piece(shards.read(file), names, slice(*gathered.starts[number : number + 2]))
            kept = piece.kept(schema)
            told.count(kept, piece, kind)
            parts.add(kept)
            drops.add(piece.dropped())
            aside.add(piece.set_aside())
    parts.sort_into(into / "rows.parquet")
    return told


def row_schema(kind: kinds.Kind, keep: Sequence[str]) -> pa.Schema:
    """A kept row, behind the hash that rows are sorted by."""
    strings = {name: pa.string() for name in ("id", "text")}
    ends = {name: pa.string() for name in (*keep, "cluster", "split")}
    return pa.schema({"content": pa.uint64(), **strings, **kind.columns, **ends})


def _unread(gathered: Gathered) -> Iterator[pa.Table]:
    """What the reader set aside, under ids made as those of the documents are."""
    tables = [shards.read(path) for path in gathered.quarantined]
    if not tables:
        return
    made = identities.numbered(np.concatenate([table["content"].to_numpy() for table in tables]))
    start = 0
    for table in tables:
        ids = made.slice(start, len(table)).to_arrow().cast(pa.string())
        column = compute.coalesce(table["id"], ids)
        yield table.drop_columns("content").set_column(0, "id", column)
        start += len(table)


class _Names:
    """What is needed to say why a row left."""

    def __init__(self, gathered: Gathered, fates: Fates, limits: Mapping[str, int | None]) -> None:
        self.ids, self.fates, self.limits = gathered.ids, fates, limits
        self.numbers, self.classes = gathered.numbers, gathered.classes

    def others(self, rows: Integers) -> list[str | None]:
        """The id of the row that each of `rows` left for."""
        other = self.fates.other[rows]
        found = self.ids.gather(np.maximum(other, 0)).to_list()
        return [id if place >= 0 else None for id, place in zip(found, other.tolist(), strict=True)]

    def details(self, rows: Integers, reasons: Sequence[str]) -> list[str]:
        fates, each = self.fates, zip(rows.tolist(), reasons, self.others(rows), strict=True)
        said = {row: self._answers(row, int(fates.other[row])) for row in rows.tolist()}
        return [
            SENTENCES.get(reason, "").format(
                other=other,
                similarity=float(fates.similarity[row]),
                split=SPLITS[fates.split[fates.other[row]]],
                here=SPLITS[fates.split[row]],
                most=self.limits.get(SPLITS[fates.split[row]]),
                own=said[row][0],
                its=said[row][1],
            )
            for row, reason, other in each
        ]

    def _answers(self, row: int, other: int) -> tuple[str, str]:
        """The classes of both; where these are equal, as of tags in another order, no more is known."""
        own, its = self._answer(row), self._answer(other)
        return (own, its) if own != its else ("otherwise", "otherwise")

    def _answer(self, row: int) -> str:
        place = min(int(np.searchsorted(self.numbers, row)), len(self.numbers) - 1)
        return str(self.classes[place]).replace(kinds.JOINT, " + ") or "otherwise"


class _Piece:
    """One shard's rows with their fates."""

    def __init__(self, table: pa.Table, names: _Names, rows: slice) -> None:
        self.table, self.names, self.rows = table, names, rows
        filtered = np.array(table["reason"].fill_null("").to_pylist(), dtype=object)
        self.reason = np.where(filtered == "", names.fates.reason[rows], filtered)
        self.aside = np.isin(self.reason, list(QUARANTINED))
        self.out = (self.reason != "") & ~self.aside

    def kept(self, schema: pa.Schema) -> pa.Table:
        fates, mask = self.names.fates, self.reason == ""
        table, ids = self.table.filter(pa.array(mask)), self.names.ids[self.rows].filter(pl.Series(mask))
        splits = np.asarray(SPLITS, dtype=object)[fates.split[self.rows][mask]]
        clusters = [f"{cluster:016x}" for cluster in fates.cluster[self.rows][mask].tolist()]
        columns = {name: table[name] for name in table.column_names if name in schema.names}
        along = [name for name in table.column_names if name.startswith(shards.KEPT)]
        columns |= {name.removeprefix(shards.KEPT): table[name] for name in along}
        columns |= {"id": ids.to_arrow().cast(pa.string())}
        columns |= {"cluster": pa.array(clusters, pa.string()), "split": pa.array(splits, pa.string())}
        return pa.table(columns).select(schema.names).cast(schema)

    def dropped(self) -> pa.Table:
        rows, columns = self._told(self.out)
        duplicate = np.isin(columns["reason"], list(DUPLICATES))
        similarity = self.names.fates.similarity[rows].tolist()
        return (
            pa.table(
                {
                    **columns,
                    "step": [STEPS.get(reason, "filters") for reason in columns["reason"]],
                    "text": self.table["text"].filter(pa.array(self.out)),
                    "duplicate_of": self.names.others(rows),
                    "similarity": pa.array(similarity, mask=~duplicate),
                },
            )
            .select(shards.DROPPED.names)
            .cast(shards.DROPPED)
        )

    def set_aside(self) -> pa.Table:
        _, columns = self._told(self.aside)
        table = self.table.filter(pa.array(self.aside))
        places = table["place"].to_pylist()
        return (
            pa.table(
                {
                    **columns,
                    "stage": [STEPS[reason] for reason in columns["reason"]],
                    "file": [place.rpartition(":")[0] for place in places],
                    "line": [int(place.rpartition(":")[2]) for place in places],
                    "raw": [text.encode()[:CAP] for text in table["original"].to_pylist()],
                },
            )
            .select(SET_ASIDE.names)
            .cast(SET_ASIDE)
        )

    def _told(self, mask: NDArray[np.bool_]) -> tuple[Integers, dict[str, list[str]]]:
        """Numbers of the rows in `mask`, and their ids, reasons and details."""
        rows = self.rows.start + np.flatnonzero(mask)
        reasons = self.reason[mask].tolist()
        said = self.table["detail"].filter(pa.array(mask)).to_pylist()
        made = self.names.details(rows, reasons)
        details = [own or other for own, other in zip(said, made, strict=True)]
        return rows, {"id": self.names.ids.gather(rows).to_list(), "reason": reasons, "detail": details}


class _Steady:
    """A Parquet file in row groups of GROUP rows, whatever the pieces in which it comes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.writer = parquet.ParquetWriter(path, schema)
        self.waiting = schema.empty_table()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.write_table(self.waiting.combine_chunks())
        self.writer.close()

    def add(self, table: pa.Table) -> None:
        self.waiting = pa.concat_tables([self.waiting, table])
        whole = len(self.waiting) // GROUP * GROUP
        if whole:
            self.writer.write_table(self.waiting.slice(0, whole).combine_chunks(), row_group_size=GROUP)
            self.waiting = self.waiting.slice(whole).combine_chunks()


class _Parts:
    """Rows on disk by the beginning of their hash, to be sorted part by part."""

    def __init__(self, folder: Path, rows: int, schema: pa.Schema) -> None:
        folder.mkdir()
        self.schema = schema
        self.files = [folder / f"{number:06d}.arrow" for number in range(rows // PART + 1)]
        self.writers: dict[int, Any] = {}
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def add(self, table: pa.Table) -> None:
        high = table["content"].to_numpy() >> np.uint64(32)
        part = (high * np.uint64(len(self.files))) >> np.uint64(32)
        for number in np.unique(part).tolist():
            if number not in self.writers:
                writer = pa.ipc.new_file(self.files[number], self.schema)
                self.writers[number] = self.stack.enter_context(writer)
            self.writers[number].write_table(table.filter(pa.array(part == number)))

    def sort_into(self, target: Path) -> None:
        with _Steady(target, self.schema.remove(0)) as steady:
            for number in sorted(self.writers):
                table = pa.ipc.open_file(pa.memory_map(str(self.files[number]))).read_all()
                order = [("content", "ascending"), ("id", "ascending")]
                steady.add(table.sort_by(order).drop_columns("content"))
