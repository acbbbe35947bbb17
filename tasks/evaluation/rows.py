"""The encoded rows of a split in memory: ids, tokens, and what is true of each row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from tasks.errors import DataError
from tasks.evaluation.predictions import Array

TOKENS = ("input_ids", "token_type_ids")


@dataclass(frozen=True)
class Rows:
    """ids; the columns of tokens, ragged; what is true of the rows, as `predictions.FORMS` says."""

    ids: tuple[str, ...]
    tokens: Mapping[str, Sequence[Sequence[int]]]
    actual: Array


@dataclass(frozen=True)
class Reading:
    """actual: an encoded table -> what is true of its rows. same: what is true of a row, what preparation
    wrote of it, class names -> whether these are the same."""

    actual: Callable[[pa.Table], Array]
    same: Callable[[Any, Any, Sequence[str]], bool]


def read(path: Path, kind: str) -> Rows:
    """Raises DataError for a split without rows."""
    table = parquet.read_table(path)
    if not len(table):
        raise DataError(f"{path} has no rows: enlarge preparation.fractions or preparation.subset")
    tokens = {name: table[name].to_pylist() for name in TOKENS if name in table.column_names}
    return Rows(tuple(table["id"].to_pylist()), tokens, READINGS[kind].actual(table))


def _class_numbers(table: pa.Table) -> Array:
    return np.asarray(table["label"].to_numpy(), dtype=np.int64)


def _class_flags(table: pa.Table) -> Array:
    return np.array(table["labels"].to_pylist(), dtype=np.int8)


def _scores(table: pa.Table) -> Array:
    return np.asarray(table["label"].to_numpy(), dtype=np.float32)


ONE = Reading(_class_numbers, lambda number, label, names: bool(names[number] == label))
READINGS: Mapping[str, Reading] = {
    "label": ONE,
    "pair": ONE,
    "labels": Reading(
        _class_flags,
        lambda flags, labels, names: (
            {name for name, flag in zip(names, flags, strict=True) if flag} == set(labels)
        ),
    ),
    "score": Reading(_scores, lambda score, wanted, names: bool(score == np.float32(wanted))),
}
