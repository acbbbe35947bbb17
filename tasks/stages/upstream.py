"""What the stages before evaluation left, checked against one another, and the rows of a split in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as parquet
from numpy.typing import NDArray
from transformers import AutoConfig, AutoTokenizer

from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, PreparedText, TrainedModel
from tasks.errors import ArtifactError, DataError
from tasks.evaluation.asking import continuing, predict, rows, sequences, written
from tasks.evaluation.asking.continuing import Writer
from tasks.text.kinds import KINDS, compared


@dataclass(frozen=True)
class Split:
    """One split in memory, row by row; of a pair both texts in one."""

    rows: rows.Rows
    texts: Sequence[str]


@dataclass(frozen=True)
class Entered:
    """What the stages before evaluation left. Raises ArtifactError where one has not run."""

    prepared: PreparedText
    encoded: EncodedDataset
    converted: ConvertedCheckpoint
    trained: TrainedModel

    @classmethod
    def load(cls, root: Path) -> "Entered":
        return cls(
            prepared=PreparedText.load(root),
            encoded=EncodedDataset.load(root),
            trained=TrainedModel.load(root),
            converted=ConvertedCheckpoint.load(root),
        )

    def read(self, split: str) -> Split:
        return read(self.prepared, self.encoded, split, self.trained)

    def demand_one_kind(self, kind: str) -> None:
        """Raises DataError where two stages do not mean the same by class 0, 1, 2, …, and ArtifactError for a
        model that was trained on other rows: they may be among these test rows."""
        _agree(
            {
                "preparation": self.prepared,
                "encoding": self.encoded,
                "conversion": self.converted,
                "finetuning": self.trained,
            }
        )
        _belongs(self.trained, self.converted, self.encoded, kind)


def read(
    prepared: PreparedText, encoded: EncodedDataset, split: str, trained: TrainedModel | None = None
) -> Split:
    """trained: whose tokenizer reads the rows of a language model; needed for no other kind.

    Raises DataError where encoding and preparation differ in a row or what is true of it.
    """
    path = encoded.path / f"{split}.parquet"
    if encoded.kind in sequences.STARTS:
        assert trained is not None
        return Split(*sequences.read(path, encoded.kind, _wording(trained)))
    if encoded.kind in written.READINGS:
        return _written(prepared, encoded.kind, path)
    same = rows.READINGS[encoded.kind].same
    found, known = rows.read(path, encoded.kind), _known(prepared)
    stray = [
        id
        for id, actual in zip(found.ids, found.actual, strict=True)
        if id not in known or not same(actual, known[id]["answer"], encoded.labels)
    ]
    if stray:
        raise DataError(
            f"{path}: {len(stray):,} of {len(found.ids):,} rows are not preparation's, or have another label "
            f"(first: {stray[0]}): run `dvc repro encoding`"
        )
    return Split(found, [known[id]["text"] for id in found.ids])


def _written(prepared: PreparedText, kind: str, path: Path) -> Split:
    encoded = rows.demand_rows(parquet.read_table(path), path)
    whole = parquet.read_table(prepared.path / "rows.parquet", columns=list(written.COLUMNS[kind]))
    known = {row["id"]: row for row in whole.to_pylist()}
    if stray := [id for id in encoded["id"].to_pylist() if id not in known]:
        raise DataError(
            f"{path}: {len(stray):,} of {len(encoded):,} rows are not preparation's (first: {stray[0]}): run "
            "`dvc repro encoding`"
        )
    return Split(*written.READINGS[kind](encoded, known))


def table(prepared: PreparedText, split: Split) -> pl.DataFrame:
    """The rows as preparation wrote them, in the order of `split`, with their `characters`.

    A packed row of a language model is none of preparation's: it has a text and nothing else.
    """
    asked = {"id": split.rows.ids, "characters": [len(text) for text in split.texts]}
    rows = pl.scan_parquet(prepared.path / "rows.parquet").drop("split")
    known = rows.filter(pl.col("id").is_in(list(split.rows.ids))).collect()
    found = pl.DataFrame(asked).join(known, on="id", how="left", maintain_order="left")
    told = pl.Series(split.texts, dtype=pl.String)
    return found.with_columns(pl.coalesce("text", told).alias("text"))


def groups(rows: pl.DataFrame) -> NDArray[np.int64] | None:
    """Numbers (rows,), equal where preparation found rows to be chained by near-duplicates or a first text;
    None where each row is by itself."""
    known = pl.coalesce(rows["cluster"], rows["id"]) if "cluster" in rows.columns else rows["id"]
    found = rows.select(known.alias("group"))["group"]
    together = found.n_unique() < len(found)
    return found.rank("dense").to_numpy().astype(np.int64) if together else None


def groups_of(prepared: PreparedText, ids: Sequence[str]) -> NDArray[np.int64] | None:
    """`groups` of the rows with these ids; a language model's packed rows are none of preparation's:
    each is by itself. Raises ArtifactError where other rows are missing."""
    rows = pl.scan_parquet(prepared.path / "rows.parquet")
    columns = [name for name in ("id", "cluster") if name in rows.collect_schema().names()]
    known = rows.select(columns).filter(pl.col("id").is_in(list(ids))).collect()
    if prepared.kind not in sequences.STARTS and len(known) < len(ids):
        raise ArtifactError(
            f"{prepared.path / 'rows.parquet'} has {len(known):,} of the {len(ids):,} test rows: "
            "run `dvc repro`"
        )
    return groups(pl.DataFrame({"id": list(ids)}).join(known, on="id", how="left", maintain_order="left"))


def _agree(records: Mapping[str, PreparedText | EncodedDataset | ConvertedCheckpoint | TrainedModel]) -> None:
    wanted = records["preparation"].labels
    faults = [
        f"{stage} has {len(record.labels)} labels ({', '.join(record.labels)}), "
        f"preparation {len(wanted)} ({', '.join(wanted)})"
        for stage, record in records.items()
        if record.labels != wanted
    ]
    if faults:
        raise DataError("; ".join(faults) + ": run `dvc repro` to bring all stages to the same labels")


def _belongs(
    trained: TrainedModel, converted: ConvertedCheckpoint, encoded: EncodedDataset, kind: str
) -> None:
    if encoded.kind != kind:
        raise ArtifactError(f"{encoded.path} has rows of kind {encoded.kind}, not {kind}: run `dvc repro`")
    if (trained.data, trained.base) != (encoded.digest, converted.digest):
        other = "rows" if trained.data != encoded.digest else "weights"
        raise ArtifactError(f"{trained.path} was trained on other {other}: run `dvc repro finetuning`")


def writer(entered: Entered) -> Writer | None:
    """How answers that are written become texts; they may be as long as encoding lets a row be."""
    if entered.encoded.kind not in continuing.WRITTEN:
        return None
    directory = entered.trained.path / "model"
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return Writer(predict.wording(tokenizer, masked=False).decode, entered.encoded.max_length)


def _wording(trained: TrainedModel) -> sequences.Wording:
    """How the model's tokens are read; masked where its class is one that guesses."""
    directory = trained.path / "model"
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    (architecture,) = AutoConfig.from_pretrained(directory, local_files_only=True).architectures
    return predict.wording(tokenizer, masked=architecture.endswith("ForMaskedLM"))


def _known(prepared: PreparedText) -> dict[str, dict[str, Any]]:
    """Row id -> its text, both of a pair as one, and what preparation says is true of it."""
    kind = KINDS[prepared.kind]
    (answer,) = kind.answer
    table = parquet.read_table(prepared.path / "rows.parquet", columns=["id", *kind.compared, answer])
    columns = (table["id"].to_pylist(), compared(table, kind).to_list(), table[answer].to_pylist())
    return {id: {"text": text, "answer": told} for id, text, told in zip(*columns, strict=True)}
