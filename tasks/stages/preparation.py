"""preparation: a table of labelled text becomes clean rows in splits that share no duplicate."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from tasks import files, progress, references
from tasks.artifacts import SPLITS, PreparedText, Sources
from tasks.errors import ArtifactError, DataError
from tasks.params import Params, PreparationParams
from tasks.stages import Track
from tasks.text import clean, dedup, filters, report, sources, split
from tasks.text.filters import Drop
from tasks.text.sources import Document, Quarantined, Table
from tasks.text.split import Row

REPORT = "preparation.html"


@dataclass(frozen=True)
class Prepared:
    """Every row that came in, in exactly one of `rows`, `drops` and `quarantined`."""

    cleaned: tuple[Document, ...]
    rows: tuple[Row, ...]
    drops: tuple[Drop, ...]
    quarantined: tuple[Quarantined, ...]
    clusters: dict[str, str]
    changed: Counter[str]
    labels: tuple[str, ...]

    @property
    def left(self) -> tuple[Drop | Quarantined, ...]:
        return (*self.drops, *self.quarantined)


def run(params: Params, root: Path, track: Track) -> PreparedText:
    settings, listing = params.preparation, Sources.load(root).path / "text.json"
    table = _read(params, root, listing)
    prepared = prepare(table, settings)
    with files.replace_directory(PreparedText.folder(root)) as draft:
        _write_table(draft / "rows.parquet", Row, prepared.rows)
        _write_table(draft / "drops.parquet", Drop, prepared.drops)
        _write_table(draft / "quarantine.parquet", Quarantined, prepared.quarantined)
        files.write_text(draft / "labels.json", files.canonical_json(prepared.labels))
        PreparedText.save(
            draft,
            labels=prepared.labels,
            rows_in=_rows_in(table),
            rows={name: sum(row.split == name for row in prepared.rows) for name in SPLITS},
            dropped=Counter(drop.reason for drop in prepared.drops),
            quarantined=Counter(row.reason for row in prepared.quarantined),
            changed=prepared.changed,
        )
    page = report.render(_facts(table, prepared, settings, references.read_listing(listing)))
    files.write_text(root / "reports" / REPORT, page)
    record = PreparedText.load(root)
    track.metrics(record.figures())
    track.file(root / "reports" / REPORT)
    return record


def prepare(table: Table, settings: PreparationParams) -> Prepared:
    """Raises DataError where too many rows are set aside or a class becomes too small."""
    watched = progress.track(table.documents, total=len(table.documents), description="cleaning texts")
    cleaned, changed = clean.clean(watched, settings.clean)
    passed, drops = _sieve(cleaned, settings)
    unique = dedup.deduplicate(
        passed, threshold=settings.threshold, shingle=settings.shingle, conflicts=settings.conflicts
    )
    quarantined = table.quarantined + unique.quarantined
    _refuse_too_many(quarantined, _rows_in(table), settings.maximum_quarantine)
    rows, beyond = _divide(unique, settings)
    labels = split.order_labels(document.label for document in table.documents)
    split.check_classes(rows, labels)
    prepared = Prepared(
        cleaned=cleaned,
        rows=rows,
        drops=(*drops, *unique.drops, *beyond),
        quarantined=quarantined,
        clusters=dict(unique.clusters),
        changed=Counter({"undecodable": table.repaired}) + changed if table.repaired else changed,
        labels=labels,
    )
    _account_for(_rows_in(table), prepared)
    return prepared


def _read(params: Params, root: Path, listing: Path) -> Table:
    source = params.sources.text
    path = references.locate_text(source.path, root=root)
    references.check(path, listing)
    return sources.read(
        path,
        text=source.text,
        label=source.label,
        encoding=source.encoding,
        undecodable=source.undecodable,
    )


def _rows_in(table: Table) -> int:
    return len(table.documents) + len(table.quarantined)


def _sieve(
    documents: Sequence[Document], settings: PreparationParams
) -> tuple[tuple[Document, ...], tuple[Drop, ...]]:
    outcome = list(
        filters.by_length(documents, minimum=settings.minimum_characters, maximum=settings.maximum_characters)
    )
    passed = tuple(item for item in outcome if isinstance(item, Document))
    return passed, tuple(item for item in outcome if isinstance(item, Drop))


def _divide(
    unique: dedup.Deduplicated, settings: PreparationParams
) -> tuple[tuple[Row, ...], tuple[Drop, ...]]:
    """Rows sorted by id, so that the order of the file leaves no trace, and drops beyond the subset."""
    shares = settings.fractions
    kept = {document.id: unique.clusters[document.id] for document in unique.kept}
    splits = split.assign(kept, validation=shares.validation, test=shares.test, salt=settings.salt)
    beyond = split.outside_subset(splits, settings.subset.model_dump(), salt=settings.salt)
    documents = sorted(unique.kept, key=lambda document: document.id)
    rows = tuple(
        Row(document.id, document.text, document.label, kept[document.id], splits[document.id])
        for document in documents
        if document.id not in beyond
    )
    drops = tuple(
        Drop(document.id, "subset", "outside_subset", beyond[document.id], document.text)
        for document in documents
        if document.id in beyond
    )
    return rows, drops


def _refuse_too_many(quarantined: Sequence[Quarantined], rows_in: int, most: float) -> None:
    share = len(quarantined) / rows_in
    if share > most:
        reasons = Counter(row.reason for row in quarantined).most_common()
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons)
        example = next(row for row in quarantined if row.reason == reasons[0][0])
        raise DataError(
            f"{len(quarantined)} of {rows_in} rows ({share:.1%}) are set aside ({counts}; {example.detail}), "
            f"more than preparation.maximum_quarantine = {most:g} allows: mend the file or raise the limit"
        )


def _account_for(rows_in: int, prepared: Prepared) -> None:
    ids = [row.id for row in prepared.rows] + [item.id for item in prepared.left]
    if len(ids) != rows_in or len(set(ids)) != rows_in:
        raise ArtifactError(
            f"{rows_in} rows came in, {len(ids)} are accounted for under {len(set(ids))} ids: a fault of "
            "preparation itself, please report it"
        )


def _write_table(path: Path, kind: type, items: Sequence[Any]) -> None:
    """A column of strings for each field of the dataclass `kind`."""
    names = [field.name for field in fields(kind)]
    columns = {name: pa.array([getattr(item, name) for item in items], type=pa.string()) for name in names}
    parquet.write_table(pa.table(columns), path)


def _facts(
    table: Table, prepared: Prepared, settings: PreparationParams, listing: dict[str, Any]
) -> report.Facts:
    fates = {item.id: item.reason.replace("_", " ") for item in prepared.left}
    fates |= {row.id: f"in {row.split}" for row in prepared.rows}
    stories = report.cluster_stories(prepared.cleaned, prepared.clusters, fates)
    torn = [story for story in stories if len(story.labels) > 1]
    return report.Facts(
        reference=listing["reference"],
        licence=listing["licence"],
        rows_in=_rows_in(table),
        repaired=table.repaired,
        reasons=Counter(item.reason for item in prepared.left),
        changed={step: prepared.changed[step] for step in settings.clean},
        rows=prepared.rows,
        labels=prepared.labels,
        largest=stories[: report.SHOWN],
        conflicts=torn[: report.SHOWN],
        clashes=len(torn),
        rewritten=report.rewritten(table.documents, prepared.cleaned),
        unread=table.quarantined[: report.SHOWN],
        limits=settings.subset.model_dump(),
        threshold=settings.threshold,
        shingle=settings.shingle,
    )
