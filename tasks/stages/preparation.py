"""preparation: a table of text becomes clean rows in splits that share no duplicate, and nothing is lost."""

import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as parquet

from tasks import files, references
from tasks.artifacts import SPLITS, PreparedText, Sources
from tasks.errors import ArtifactError, DataError
from tasks.params import Params, PreparationParams, Reference, TextSource
from tasks.stages import Track
from tasks.text import (
    clean,
    contamination,
    decide,
    deliver,
    findings,
    gather,
    kinds,
    ledger,
    report,
    signatures,
    split,
)
from tasks.text.contamination import Elsewhere, Evaluation
from tasks.text.decide import Decided
from tasks.text.deliver import Delivered
from tasks.text.filters import Bounds
from tasks.text.gather import Gathered, Handling
from tasks.text.reading import sources

REPORT = "preparation.html"
LEDGER = Path("data") / ledger.NAME
FORGOTTEN = "forgotten.txt"
log = logging.getLogger(__name__)
UNREAD = 10  # quarantined rows that the page shows


def run(params: Params, root: Path, track: Track) -> PreparedText:
    listing, source = Sources.load(root).path / "text.json", params.sources.text
    path = references.locate_text(source.path, root=root, revision=source.revision)
    references.check(path, listing)
    _refuse_lost_ledger(root, params.preparation.salt)
    with files.replace_directory(PreparedText.folder(root)) as draft:
        page = prepare(
            path,
            source,
            params.preparation,
            into=draft,
            remembered=root / LEDGER,
            evaluations=_evaluations(params, root),
            forgotten=read_forgotten(root / FORGOTTEN),
        )
    files.write_text(root / "reports" / REPORT, page)
    record = PreparedText.load(root)
    track.metrics(record.figures())
    track.file(root / "reports" / REPORT)
    return record


def prepare(
    path: Path,
    source: TextSource,
    settings: PreparationParams,
    *,
    into: Path,
    remembered: Path,
    evaluations: Sequence[Evaluation] = (),
    forgotten: frozenset[str] = frozenset(),
) -> str:
    """Write the artifact PreparedText into the empty directory `into`, and the ledger to `remembered`.

    Returns the page that tells of it. Raises DataError where too many rows are set aside or a class becomes
    too small, and what `sources.read` raises.
    """
    kind, work, rules = kinds.KINDS[source.kind], into / "shards", _rules(settings, source.kind)
    handling = shard_handling(source, settings, forgotten)
    theirs = _collect(evaluations, handling, work)
    gathered = _gather(path, source, settings, replace(handling, grams=theirs.file if theirs else None), work)
    signed = signatures.join([gathered.signed, theirs.signed], work / "all") if theirs else gathered.signed
    _refuse_nothing(gathered)
    entries = ledger.read(remembered)
    decided = decide.decide(gathered, signed, rules, entries)
    delivered = deliver.deliver(gathered, decided.fates, kind, source.keep, into=into, limits=rules.limits)
    _account_for(gathered, delivered)
    _refuse_too_many(into, gathered, delivered, settings.max_quarantine_fraction)
    labels = _labels(gathered, settings)
    if kind.classes == "label":
        split.check_classes(delivered.balance, labels)
    split.check_rows(delivered.rows)
    found = contamination.found(theirs, decided.foreign, gathered.grams) if theirs else ()
    facts = findings.facts(
        gathered,
        decided,
        delivered,
        rules,
        unread=_unread(into),
        contamination=found,
        labels=labels,
        shingle=settings.shingle,
        kind=source.kind,
        reference=source.path,
        licence=source.licence,
    )
    page = report.render(facts)
    shutil.rmtree(work)
    _save(into, source.kind, labels, gathered, delivered, found)
    _remember(remembered, entries, gathered, decided, rules.salt)
    return page


def _remember(path: Path, entries: pl.DataFrame, gathered: Gathered, decided: Decided, salt: str) -> None:
    """Last of all, so that what fails gives no split."""
    entries = ledger.without(entries, np.setdiff1d(gathered.gone, decided.keys), gathered.lost)
    ledger.write(path, entries, decided.keys, decided.raw, decided.splits, decided.content, salt=salt)


def _gather(
    path: Path, source: TextSource, settings: PreparationParams, handling: Handling, work: Path
) -> Gathered:
    return gather.gather(
        path,
        layout(source),
        handling,
        into=work,
        rows=settings.shard_rows,
        engine=settings.engine,
        workers=settings.workers,
    )


def layout(source: TextSource) -> sources.Layout:
    """How to read what params.yaml names."""
    return sources.Layout(**source.model_dump(exclude={"path", "revision", "licence"}))


def read_forgotten(path: Path) -> frozenset[str]:
    """Digests of rows that must not come back; `regraft forget` writes them."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def shard_handling(source: TextSource, settings: PreparationParams, forgotten: frozenset[str]) -> Handling:
    """What is done to each shard of what params.yaml names."""
    return Handling(
        kind=source.kind,
        steps=settings.clean,
        bounds=Bounds(
            minimum=settings.minimum_characters,
            maximum=settings.maximum_characters,
            symbols=settings.maximum_symbols,
            languages=settings.languages,
            labels=settings.labels,
        ),
        shingle=settings.shingle,
        rows_per_band=signatures.rows_per_band(settings.threshold),
        forgotten=forgotten,
    )


def _rules(settings: PreparationParams, kind: str) -> decide.Rules:
    return decide.Rules(
        threshold=settings.threshold,
        conflicts=settings.conflicts,
        one_answer=kinds.KINDS[kind].one_answer,
        near_answers=kinds.KINDS[kind].near_answers,
        shares=settings.fractions.model_dump(),
        salt=settings.salt,
        limits=settings.subset.model_dump(),
    )


def _evaluations(params: Params, root: Path) -> list[Evaluation]:
    """Their texts, read as plain text of one column."""
    steps = params.preparation.clean
    return [_evaluation(reference, root, steps) for reference in params.sources.evaluations]


def _evaluation(reference: Reference, root: Path, steps: Sequence[str]) -> Evaluation:
    """Cleaned as our own rows are, since they are compared with them."""
    path = references.locate_text(reference.path, root=root, revision=reference.revision)
    references.check(path, Sources.load(root).path / "text.json", evaluation=reference.path)
    how = sources.Layout(
        kind="text", columns={"text": reference.text}, encoding="auto", undecodable="replace"
    )
    shards = list(sources.read(path, how))
    if unread := sum(len(shard.quarantined) for shard in shards):
        log.warning("%s: %d rows cannot be read and are not looked for in the data", reference.path, unread)
    tables = [clean.clean(shard.documents, steps, ["text"]).table for shard in shards]
    return Evaluation(reference.path, pl.concat([pl.Series(table["text"]) for table in tables]))


def _collect(evaluations: Sequence[Evaluation], handling: Handling, work: Path) -> Elsewhere | None:
    work.mkdir()
    if not evaluations:
        return None
    return contamination.collect(
        evaluations, work / "elsewhere", shingle=handling.shingle, rows=handling.rows_per_band
    )


def _labels(gathered: Gathered, settings: PreparationParams) -> tuple[str, ...]:
    """Declared, or all that occur in rows that passed the filters."""
    joined = {str(name) for name in pl.Series(gathered.classes, dtype=pl.String).unique()}
    single = {name for names in joined for name in names.split(kinds.JOINT) if name}
    return split.order_labels(settings.labels or single)


def _refuse_lost_ledger(root: Path, salt: str) -> None:
    """A split that was given once, under this salt, is never given anew because a file is missing."""
    lock = root / "dvc.lock"
    if (root / LEDGER).exists() or not lock.exists():
        return
    text = lock.read_text(encoding="utf-8")
    named = re.search(rf"^\s*- path: {re.escape(LEDGER.as_posix())}$", text, re.MULTILINE)
    former = re.search(r"^\s*salt: (.*)$", text, re.MULTILINE)
    if named and (former is None or former[1].strip("'\"") == salt):
        raise ArtifactError(
            f"{LEDGER} is missing, and dvc.lock says that splits were given: bring it back with "
            f"`dvc checkout {LEDGER}` or `dvc pull {LEDGER}`; to divide the rows anew on purpose, change "
            "preparation.salt"
        )


def _account_for(gathered: Gathered, delivered: Delivered) -> None:
    if delivered.total != gathered.rows_in:
        raise ArtifactError(
            f"{gathered.rows_in} rows came in, {delivered.total} are accounted for: a fault of preparation "
            "itself, please report it"
        )


def _refuse_nothing(gathered: Gathered) -> None:
    if not len(gathered.numbers):
        raise DataError(
            f"none of the {gathered.rows_in} rows passes the filters: see preparation.minimum_characters, "
            "maximum_characters, maximum_symbols, languages and labels"
        )


def _refuse_too_many(into: Path, gathered: Gathered, delivered: Delivered, most: float) -> None:
    aside = delivered.quarantined.total()
    if aside > most * gathered.rows_in:
        reasons = delivered.quarantined.most_common()
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons)
        first = next(row for row in _quarantined(into) if row["reason"] == reasons[0][0])
        example = f"{first['file']}:{first['line']}: {first['detail']}"
        raise DataError(
            f"{aside} of {gathered.rows_in} rows ({aside / gathered.rows_in:.1%}) are set aside ({counts}; "
            f"{example}), more than preparation.max_quarantine_fraction = {most:g} allows: mend the file or "
            "raise the limit"
        )


def _quarantined(into: Path) -> Iterator[dict[str, Any]]:
    for batch in parquet.ParquetFile(into / "quarantine.parquet").iter_batches(1000):
        yield from batch.to_pylist()


def _unread(into: Path) -> list[dict[str, Any]]:
    rows = islice((row for row in _quarantined(into) if row["stage"] == "sources"), UNREAD)
    return [
        {
            "place": f"{row['file']}:{row['line']}",
            "reason": row["reason"],
            "detail": row["detail"],
            "raw": row["raw"].decode("utf-8", "backslashreplace"),
        }
        for row in rows
    ]


def _save(
    into: Path,
    kind: str,
    labels: Sequence[str],
    gathered: Gathered,
    delivered: Delivered,
    found: Sequence[contamination.Finding],
) -> None:
    shutil.rmtree(into / "parts")
    files.write_text(into / "labels.json", files.canonical_json(labels))
    PreparedText.save(
        into,
        kind=kind,
        labels=labels,
        rows_in=gathered.rows_in,
        rows={name: delivered.rows[name] for name in SPLITS},
        dropped=delivered.dropped,
        quarantined=delivered.quarantined,
        changed=Counter(gathered.changed),
        repaired=gathered.repaired,
        contaminated={finding.reference: finding.found for finding in found},
        algorithm=signatures.ALGORITHM,
    )
