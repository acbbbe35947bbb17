"""Named parts of the test rows, of which figures are told apart: by label, by length, and as params ask.

An expression is SQL over the columns of the rows, as polars understands it, so that it can ask and never run
anything: `characters > 200 AND label = 'negative'`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from tasks.errors import ArtifactError, ParamsError
from tasks.evaluation.figures import metrics
from tasks.evaluation.figures.metrics import Interval, Metric, Sampling
from tasks.evaluation.predictions import Array

LENGTHS = 4  # parts of about as many rows each, from the shortest texts to the longest
MOST = 20  # slices that one expression may make
VALUES = 50  # of a column that came along, which are told apart; the rest is one slice
GROUPS = 10  # of near-duplicates, below which an interval is too narrow to be believed
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Slice:
    """mask: (rows,), which of the test rows belong to it; `told` says in words which."""

    name: str
    told: str
    mask: Mask


@dataclass(frozen=True)
class Measured:
    """What is found of a slice; no figures where its rows are too few to be evidence."""

    name: str
    told: str
    rows: int
    figures: Mapping[str, Interval]


def cut(
    rows: pl.DataFrame, labels: Sequence[str], asked: Mapping[str, str], kept: Sequence[str] = ()
) -> tuple[Slice, ...]:
    """The slices of `rows`: by label where rows have one or several, by length, and those asked for.

    rows: `characters`, and the columns that an expression may name. asked: name -> expression; one that is
    true or false makes one slice, another one for each of its values. kept: columns of text that came along
    with the rows; one that stands alone, spelled as it is, makes a slice of each of its VALUES most frequent
    values, and one of the rows that have others.

    Raises ParamsError that lists every expression that says nothing of these rows.
    """
    found = [*_by_label(rows, labels), *_by_length(rows["characters"].to_numpy())]
    faults = ["evaluation.slices.id: id names the rows: give the slice another name"] if "id" in asked else []
    for name, expression in asked.items():
        try:
            whole = expression in kept and expression in rows.columns
            found += _by_value(rows, name, expression) if whole else _by_expression(rows, name, expression)
        except ParamsError as error:
            faults.append(str(error))
    names = [one.name for one in found]
    faults += [f"evaluation.slices: {name!r} is made twice" for name in dict.fromkeys(names)
               if names.count(name) > 1]  # fmt: skip
    if faults:
        raise ParamsError("\n".join(faults))
    return tuple(found)


def measure(
    parts: Sequence[Slice],
    actual: Array,
    answer: Array,
    measured: Mapping[str, Metric],
    sampling: Sampling,
    *,
    smallest: int,
) -> list[Measured]:
    """Each slice by `measured`, with its intervals, unless it has fewer than `smallest` rows, or they form
    fewer than GROUPS groups (than `smallest`, if that is less)."""
    found = []
    for one in parts:
        count, mask = int(one.mask.sum()), one.mask
        within = sampling.of(mask)
        groups = count if within.groups is None else len(np.unique(within.groups))
        enough = count >= smallest and groups >= min(smallest, GROUPS)
        figures = metrics.measure(actual[mask], answer[mask], measured, within) if enough else {}
        found.append(Measured(one.name, one.told, count, figures))
    return found


def write(path: Path, ids: Sequence[str], masks: Mapping[str, Mask]) -> None:
    """One row a test row: its id, and for each slice whether it belongs to it."""
    columns = {name: pa.array(mask, pa.bool_()) for name, mask in masks.items()}
    parquet.write_table(pa.table({"id": pa.array(ids, pa.string()), **columns}), path)


def read(path: Path, ids: Sequence[str]) -> dict[str, Mask]:
    """`write`'s inverse: slice -> (rows,), in the order of `ids`.

    Raises ArtifactError where the file is missing or lacks one of `ids`.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: run `dvc repro evaluation` first")
    table = parquet.read_table(path)
    places = {id: place for place, id in enumerate(table["id"].to_pylist())}
    if missing := [id for id in ids if id not in places]:
        raise ArtifactError(
            f"{path} lacks {len(missing):,} of {len(ids):,} rows (first: {missing[0]}): "
            "run `dvc repro -f evaluation`"
        )
    order = np.array([places[id] for id in ids], dtype=np.int64)
    return {name: table[name].to_numpy()[order] for name in table.column_names[1:]}


def _by_label(rows: pl.DataFrame, labels: Sequence[str]) -> list[Slice]:
    if "labels" in rows.columns:
        held = {label: rows["labels"].list.contains(label) for label in labels}
    elif "label" in rows.columns:
        held = {label: rows["label"] == label for label in labels}
    else:
        return []
    return [
        Slice(f"label = {label}", f"rows whose label is {label}", mask.to_numpy())
        for label, mask in held.items()
    ]


def _by_length(characters: NDArray[np.int64]) -> list[Slice]:
    """Parts with as many rows each as equal lengths allow, which stay together; an empty part is left out."""
    inner = np.quantile(characters, np.arange(1, LENGTHS) / LENGTHS, method="inverted_cdf")
    part = np.searchsorted(inner, characters, side="left")
    masks = {number: part == number for number in range(LENGTHS) if (part == number).any()}
    return [
        Slice(f"length {number + 1} of {LENGTHS}", _span(characters[mask]), mask)
        for number, mask in masks.items()
    ]


def _span(characters: NDArray[np.int64]) -> str:
    return f"{characters.min():,} to {characters.max():,} characters"


def _by_value(rows: pl.DataFrame, name: str, column: str) -> list[Slice]:
    """Ordered by value; of values equally frequent those first in the alphabet count as more frequent."""
    values = rows[column]
    counts = values.drop_nulls().rename("value").value_counts(name="rows")
    if not len(counts):
        raise ParamsError(
            f"evaluation.slices.{name}: no test row has a value in column {column!r}: see whether the table "
            "has one (packed rows of kind text lose what came along)"
        )
    common = counts.sort("rows", "value", descending=[True, False])["value"].head(VALUES).sort()
    found = [
        Slice(f"{name} = {value}", f"rows whose {column} is {value}", _true(values == value))
        for value in common.to_list()
    ]
    if len(counts) > VALUES:
        told = f"rows with one of the other {len(counts) - VALUES:,} values of {column}, none more frequent"
        found.append(Slice(f"{name} is another", told, _true(~values.is_in(common.implode()))))
    return found


def _true(holds: pl.Series) -> Mask:
    """What is not known is not true."""
    return holds.fill_null(value=False).to_numpy()


def _by_expression(rows: pl.DataFrame, name: str, expression: str) -> list[Slice]:
    values = _evaluated(rows, name, expression)
    if values.dtype == pl.Boolean:
        return [Slice(name, expression, _true(values))]
    distinct = values.drop_nulls().unique().sort()
    if len(distinct) > MOST:
        raise ParamsError(
            f"evaluation.slices.{name}: {expression!r} has {len(distinct):,} values, more than {MOST}: "
            "compare it with something, so that it is true or false"
        )
    return [Slice(f"{name} = {value}", expression, _true(values == value)) for value in distinct.to_list()]


def _evaluated(rows: pl.DataFrame, name: str, expression: str) -> pl.Series:
    known = f"columns: {', '.join(rows.columns)} (sources.text.keep brings others along)"
    try:
        values = rows.select(pl.sql_expr(expression).alias(name))[name]
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ParamsError(f"evaluation.slices.{name}: {expression!r}: {reason}; {known}") from None
    if len(values) != len(rows) or values.dtype.is_nested():
        raise ParamsError(
            f"evaluation.slices.{name}: {expression!r} says no single thing of each row; {known}"
        )
    return values
