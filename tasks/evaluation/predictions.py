"""What a contestant answered on the test rows: the noun that metrics, verdict, pictures and report share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks import files
from tasks.errors import ArtifactError

Array = NDArray[Any]
Labels = NDArray[np.int64]
Text = str | tuple[str, str] | Sequence[str]  # a text, a pair of them, or words
Probabilities = NDArray[np.float32]

MODEL, HEAD = "model", "head"  # the contestants that are no baselines
KIND = b"regraft.kind"  # of the rows: stands in the file's schema
CONTESTANT = {"contestant": pa.string(), "id": pa.string()}


@dataclass(frozen=True)
class Form:
    """The columns of a row that hold what is true of it, and those that hold what a contestant says.

    In memory each is one array: (rows,) for a column of numbers, (rows, length) for a column of lists, or,
    where these are ragged, (rows,) objects, each an array. A column of texts, or of lists of them, is (rows,)
    objects too.
    """

    actual: Mapping[str, pa.DataType]
    answer: Mapping[str, pa.DataType]
    ragged: bool = False
    logits: bool = False  # a column of them; null where a contestant has none


@dataclass(frozen=True, eq=False)
class Predictions:
    """One contestant's answers to rows of `kind`; `actual` and `answer` as FORMS says.

    logits: (rows, classes) float32, what probabilities were made of, where a model made them.
    """

    contestant: str
    ids: tuple[str, ...]
    actual: Array
    answer: Array
    kind: str = "label"
    logits: Array | None = None

    @property
    def chosen(self) -> Labels:
        """Of rows with one label: the most probable class, (rows,) int64; the first of equals."""
        return np.asarray(self.answer.argmax(axis=1), dtype=np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Of rows with one label: whether it is the chosen one, (rows,)."""
        return np.asarray(self.chosen == self.actual)


def write(path: Path, contestants: Sequence[Predictions]) -> None:
    """One parquet row per contestant and test row."""
    schema = _schema(contestants[0].kind)
    with pq.ParquetWriter(path, schema) as writer:
        for answers in contestants:
            form = FORMS[answers.kind]
            names = [answers.contestant] * len(answers.ids)
            values = [names, list(answers.ids), *_columns(answers.actual, form.actual)]
            values += _columns(answers.answer, form.answer)
            if form.logits:
                values.append(_rows_of(answers.logits, len(answers.ids)))
            arrays = [pa.array(v, f.type) for v, f in zip(values, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema))


def read(path: Path) -> dict[str, Predictions]:
    """`write`'s inverse, by contestant in the order written.

    Raises ArtifactError for a missing file or lists of unequal length.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: run `dvc repro evaluation` first")
    kind = (pq.read_schema(path).metadata or {}).get(KIND, b"label").decode()
    table = pq.read_table(path, schema=_schema(kind))
    names = table["contestant"].to_numpy()
    return {
        name: _answers(name, table.filter(names == name), kind, path)
        for name in table["contestant"].unique().to_pylist()
    }


def digest_rows(ids: Sequence[str], actual: Array) -> str:
    """Digest of the test rows: two evaluations compare only where it is equal."""
    return files.digest_json({"ids": list(ids), "labels": [np.asarray(row).tolist() for row in actual]})


def ragged(rows: Iterable[Sequence[int] | Array]) -> Array:
    """(rows,) objects, each an int64 array of its own length."""
    each = [np.asarray(row, dtype=np.int64) for row in rows]
    found = np.empty(len(each), dtype=object)
    for place, row in enumerate(each):  # numpy would make a table of rows that are equally long
        found[place] = row
    return found


def texts_of(rows: Iterable[Any]) -> Array:
    """(rows,) objects, each a text or a list of them; numpy's own texts are as wide as the longest."""
    return np.array([*rows, None], dtype=object)[:-1]


def _schema(kind: str) -> pa.Schema:
    form = FORMS[kind]
    columns = {**CONTESTANT, **form.actual, **form.answer, **(LOGITS if form.logits else {})}
    return pa.schema(columns, metadata={KIND: kind.encode()})


def _rows_of(logits: Array | None, rows: int) -> list[Any]:
    return [None] * rows if logits is None else list(logits)


def _columns(values: Array, types: Mapping[str, pa.DataType]) -> list[Any]:
    return list(values.T) if len(types) > 1 else [list(values)]


def _answers(name: str, table: pa.Table, kind: str, path: Path) -> Predictions:
    form = FORMS[kind]
    actual, answer = (_array(name, table, form, types, path) for types in (form.actual, form.answer))
    return Predictions(name, tuple(table["id"].to_pylist()), actual, answer, kind, _logits(table))


def _logits(table: pa.Table) -> Array | None:
    """None where a row has none, as in files of before they were kept."""
    if LOGIT not in table.column_names or table[LOGIT].null_count:
        return None
    return np.array(table[LOGIT].to_pylist(), dtype=np.float32)


def _array(name: str, table: pa.Table, form: Form, types: Mapping[str, pa.DataType], path: Path) -> Array:
    columns = [table[column].to_pylist() for column in types]
    if form.ragged:
        return ragged(columns[0])
    if next(iter(types.values())) in (TEXT, TEXTS):
        return texts_of(columns[0])
    kinds = [kind.value_type if pa.types.is_list(kind) else kind for kind in types.values()]
    if pa.types.is_list(next(iter(types.values()))) and len(widths := {len(row) for row in columns[0]}) > 1:
        raise ArtifactError(
            f"{path}: {name} has rows of {sorted(widths)} {next(iter(types))}: they must be equally many"
        )
    dtype = np.result_type(*(kind.to_pandas_dtype() for kind in kinds))
    return np.array(columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)), dtype=dtype)


TEXT, TEXTS = pa.string(), pa.list_(pa.string())
LOGIT = "logits"
LOGITS = {LOGIT: pa.list_(pa.float32())}  # of each class, in label order
PROBABILITIES = {"probabilities": pa.list_(pa.float32())}  # of each class, in label order
ONE = Form({"label": pa.int64()}, PROBABILITIES, logits=True)
LANGUAGE = Form(  # tokens to foresee and their bytes; the sum of -ln p, and how many were the likeliest
    {"tokens": pa.int64(), "bytes": pa.int64()}, {"loss": pa.float64(), "hits": pa.int64()}
)
WRITTEN = Form({"target": TEXT}, {"predicted": TEXT})
FORMS: Mapping[str, Form] = {
    "label": ONE,
    "pair": ONE,
    "labels": Form(
        {"labels": pa.list_(pa.int8())}, PROBABILITIES, logits=True
    ),  # 1 for each label that the row has
    "score": Form({"score": pa.float32()}, {"predicted": pa.float32()}),
    "text": LANGUAGE,
    "completion": LANGUAGE,
    "chat": LANGUAGE,
    "answer": Form({"answers": TEXTS}, {"predicted": TEXT}),  # true ones; "" and none: no answer
    "translation": WRITTEN,
    "prefix-remainder": WRITTEN,
    "tags": Form({"tags": pa.list_(pa.int32())}, {"predicted": pa.list_(pa.int32())}, ragged=True),
}
