"""encoding: prepared text as token ids, one file a split.

A plain loop: fast tokenizers work on all cores by themselves.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
from transformers import PreTrainedTokenizerBase

from tasks import files, progress
from tasks.artifacts import SPLITS, EncodedDataset, PreparedText, Vocabulary
from tasks.params import EncodingParams, Params
from tasks.stages import Track
from tasks.text.tokens import encode, packing, report, rows, vocabulary, windows
from tasks.text.tokens.tally import Tally, tallied

MANY = 0.1  # share of truncated rows from which a person should hear of it
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    prepared: PreparedText
    tokenizer: PreTrainedTokenizerBase
    settings: EncodingParams

    @property
    def schema(self) -> pa.Schema:
        if self.settings.packing == "none":
            return encode.schema(self.prepared.kind, self.tokenizer)
        return packing.schema(self.settings.packing)


def run(params: Params, root: Path, track: Track) -> EncodedDataset:
    words = Vocabulary.load(root)
    job = Job(PreparedText.load(root), vocabulary.load(words.path / "tokenizer"), params.encoding)
    encode.check_length(job.tokenizer, job.settings.max_length)
    packing.check(job.settings.packing, job.prepared.kind)
    windows.check(job.settings.stride, job.prepared.kind)
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        found = {split: _write(job, split, draft / f"{split}.parquet") for split in SPLITS}
        tallies = {split: tally for split, (tally, _) in found.items()}
        EncodedDataset.save(
            draft,
            kind=job.prepared.kind,
            labels=job.prepared.labels,
            max_length=job.settings.max_length,
            rows={split: written for split, (_, written) in found.items()},
            tokens={split: tally.tokens for split, tally in tallies.items()},
            truncated={split: tally.truncated for split, tally in tallies.items()},
            lost={split: tally.lost for split, tally in tallies.items()},
            unknown={split: tally.unknown for split, tally in tallies.items()},
        )
    record = EncodedDataset.load(root)
    _warn(tallies, job.settings.max_length, record.kind)
    _publish(record, words, job.settings, tallies, root / "reports" / "encoding.html", track)
    return record


def _write(job: Job, split: str, target: Path) -> tuple[Tally, int]:
    """One file: what its rows came to, and how many were written."""
    total, written = Tally(), 0
    with parquet.ParquetWriter(target, job.schema) as writer:
        for encoded in _encoded(job, split):
            total += tallied(encoded)
            table = _packed(job, encoded).select(job.schema.names)
            writer.write_table(table, row_group_size=rows.BATCH)
            written += len(table)
    return total, written


def _encoded(job: Job, split: str) -> Iterator[pa.Table]:
    path, kind = job.prepared.path / "rows.parquet", job.prepared.kind
    size = windows.ROWS if kind == "answer" else rows.BATCH
    batches = rows.batches(path, split, encode.wanted(kind), rows=size)
    total = -(-job.prepared.rows.get(split, 0) // size)
    for table in progress.track(batches, total=total, description=f"encoding {split}"):
        yield encode.shard(
            table,
            tokenizer=job.tokenizer,
            kind=kind,
            max_length=job.settings.max_length if job.settings.packing == "none" else None,
            names=job.prepared.labels,
            stride=job.settings.stride,
        )


def _packed(job: Job, encoded: pa.Table) -> pa.Table:
    if job.settings.packing == "none":
        return encoded
    return packing.pack(encoded, strategy=job.settings.packing, length=job.settings.max_length)


def _warn(tallies: Mapping[str, Tally], max_length: int, kind: str) -> None:
    total = sum(tallies.values(), Tally())
    if total.missed:
        LOG.warning("%d %s", total.missed, report.MISSED[kind])
    if total.truncated > MANY * total.rows:
        LOG.warning(
            "%.0f %% of the rows are longer than encoding.max_length = %d and lost %d tokens; "
            "%d would fit 99 %%",
            100 * total.truncated / total.rows,
            max_length,
            total.lost,
            total.fitting(0.99),
        )


def _publish(
    record: EncodedDataset,
    words: Vocabulary,
    settings: EncodingParams,
    tallies: Mapping[str, Tally],
    page: Path,
    track: Track,
) -> None:
    facts = report.Facts(
        kind=record.kind,
        max_length=record.max_length,
        packing=settings.packing,
        tokens=words.size,
        fresh=words.fresh,
        written=record.rows,
        tallies=tallies,
    )
    files.write_text(page, report.render(facts))
    shares = {
        f"unknown_share.{split}": tally.unknown / (tally.tokens or 1) for split, tally in tallies.items()
    }
    track.metrics({**record.figures(), **shares})
    track.file(page)
