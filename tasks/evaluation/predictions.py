"""What a contestant answered on the test rows: the noun that metrics, verdict, pictures and report share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks import files
from tasks.errors import ArtifactError

Labels = NDArray[np.int64]
Text = str | tuple[str, str]  # a text, or a pair of them
Probabilities = NDArray[np.float32]

SCHEMA = pa.schema(
    [
        ("contestant", pa.string()),
        ("id", pa.string()),
        ("label", pa.int64()),
        ("probabilities", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, eq=False)
class Predictions:
    """One contestant's answers: labels (rows,) int64, probabilities (rows, classes) float32."""

    contestant: str
    ids: tuple[str, ...]
    labels: Labels
    probabilities: Probabilities

    @property
    def chosen(self) -> Labels:
        """The most probable class of each row, (rows,) int64; the first of equals."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.asarray(self.chosen == self.labels)


def write(path: Path, contestants: Iterable[Predictions]) -> None:
    """One parquet row per contestant and test row."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for answers in contestants:
            names = [answers.contestant] * len(answers.ids)
            values = [names, list(answers.ids), answers.labels, list(answers.probabilities)]
            writer.write_table(
                pa.table([pa.array(v, f.type) for v, f in zip(values, SCHEMA, strict=True)], SCHEMA)
            )


def read(path: Path) -> dict[str, Predictions]:
    """`write`'s inverse, by contestant in the order written.

    Raises ArtifactError for a missing file or probabilities of unequal length.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: run `dvc repro evaluation` first")
    table = pq.read_table(path, schema=SCHEMA)
    names = table["contestant"].to_numpy()
    return {
        name: _answers(name, table.filter(names == name), path)
        for name in table["contestant"].unique().to_pylist()
    }


def digest_rows(ids: Sequence[str], labels: Labels) -> str:
    """Digest of the test rows: two evaluations compare only where it is equal."""
    return files.digest_json({"ids": list(ids), "labels": labels.tolist()})


def _answers(name: str, table: pa.Table, path: Path) -> Predictions:
    rows = table["probabilities"].to_pylist()
    if len(widths := {len(row) for row in rows}) > 1:
        raise ArtifactError(
            f"{path}: {name} has rows of {sorted(widths)} probabilities: they must be equally many"
        )
    labels = table["label"].to_numpy().astype(np.int64)
    return Predictions(name, tuple(table["id"].to_pylist()), labels, np.array(rows, dtype=np.float32))
