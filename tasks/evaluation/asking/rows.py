"""The encoded rows of a split in memory: ids, tokens, and what is true of each row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from tasks.errors import DataError
from tasks.evaluation.predictions import Array, ragged

TOKENS = ("input_ids", "token_type_ids", "places")


@dataclass(frozen=True)
class Rows:
    """ids; the columns of tokens, ragged, and for tags the place of each word's first; what is true of the
    rows, as `predictions.FORMS` says; the texts that answers are a part of, or written from."""

    ids: tuple[str, ...]
    tokens: Mapping[str, Sequence[Sequence[int]]]
    actual: Array
    sources: Sequence[str] = ()

    @property
    def answered(self) -> list[Sequence[int]]:
        """The tokens that have an answer of their own, ragged: `targets`, else those at `places`."""
        if "targets" in self.tokens:
            return list(self.tokens["targets"])
        pairs = zip(self.tokens["input_ids"], self.tokens.get("places", ()), strict=False)
        return [[ids[place] for place in places] for ids, places in pairs]


@dataclass(frozen=True)
class Reading:
    """actual: an encoded table -> what is true of its rows. same: what is true of a row, what preparation
    wrote of it, class names -> whether these are the same."""

    actual: Callable[[pa.Table], Array]
    same: Callable[[Any, Any, Sequence[str]], bool]


def read(path: Path, kind: str) -> Rows:
    """Raises DataError for a split without rows."""
    table = demand_rows(parquet.read_table(path), path)
    tokens = {name: table[name].to_pylist() for name in TOKENS if name in table.column_names}
    return Rows(tuple(table["id"].to_pylist()), tokens, READINGS[kind].actual(table))


def demand_rows(table: pa.Table, path: Path) -> pa.Table:
    if not len(table):
        raise DataError(f"{path} has no rows: enlarge preparation.fractions or preparation.subset")
    return table


def _class_numbers(table: pa.Table) -> Array:
    return np.asarray(table["label"].to_numpy(), dtype=np.int64)


def _class_flags(table: pa.Table) -> Array:
    return np.array(table["labels"].to_pylist(), dtype=np.int8)


def _scores(table: pa.Table) -> Array:
    return np.asarray(table["label"].to_numpy(), dtype=np.float32)


def _tags(table: pa.Table) -> Array:
    return ragged(table["tags"].to_pylist())


def _in_order(numbers: Array, tags: Sequence[str], names: Sequence[str]) -> bool:
    """Whether these are tags of `tags`, in its order; encoding may have left out some."""
    left = iter(tags)
    return all(names[number] in left for number in numbers)


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
    "tags": Reading(_tags, _in_order),
    "score": Reading(_scores, lambda score, wanted, names: bool(score == np.float32(wanted))),
}
