"""What a split is worth when data grows: test rows with a near-duplicate in train, and rows that move.

Rows are split, a ninth as many are appended, and all are split again: by the stage, which remembers, and by
scikit-learn's seeded `train_test_split`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from sklearn.model_selection import train_test_split

from benchmarks import brute_force, corpus
from benchmarks.corpus import Text
from benchmarks.duplicates import SHINGLE, THRESHOLD
from tasks.params import PreparationParams, TextSource
from tasks.stages import preparation
from tasks.text import clean, signatures

SETTINGS = PreparationParams.model_validate({"engine": "thread"})
OLD = 0.9  # share of rows that are there at first


class Outcome(NamedTuple):
    leaked: int  # test rows at the end that have a near-duplicate in train
    moved: int  # old rows in another split than before
    gone: int  # old rows in no split any more
    tested: int  # test rows at the end


def compare(rows: int) -> dict[str, Outcome]:
    texts = corpus.real(rows)
    old = int(rows * OLD)
    return {"regraft": _outcome(texts, *_ours(texts, old)), "sklearn": _outcome(texts, *_theirs(rows, old))}


Splits = Mapping[int, str]  # a row's place -> its split


def source(path: Path) -> TextSource:
    return TextSource.model_validate({"path": str(path), "id": "id", "licence": "benchmark"})


def _ours(texts: Sequence[Text], old: int) -> tuple[Splits, Splits]:
    with tempfile.TemporaryDirectory() as folder:
        return _prepared(texts[:old], Path(folder)), _prepared(texts, Path(folder))


def _prepared(texts: Sequence[Text], folder: Path) -> Splits:
    """Through the stage; `folder` keeps the ledger for the next time."""
    path = corpus.save(texts, folder / "texts.csv")
    with tempfile.TemporaryDirectory(dir=folder) as into:
        preparation.prepare(
            path,
            source(path),
            SETTINGS,
            into=Path(into),
            remembered=folder / "ledger.parquet",
        )
        kept = pl.read_parquet(Path(into) / "rows.parquet", columns=["id", "split"])
    return dict(zip(map(int, kept["id"]), kept["split"], strict=True))


def _theirs(rows: int, old: int) -> tuple[Splits, Splits]:
    return _seeded(old), _seeded(rows)


def _seeded(rows: int) -> Splits:
    share = SETTINGS.fractions.test
    train, test = train_test_split(np.arange(rows), test_size=share, random_state=0)
    return dict.fromkeys(train.tolist(), "train") | dict.fromkeys(test.tolist(), "test")


def _outcome(texts: Sequence[Text], before: Splits, after: Splits) -> Outcome:
    return Outcome(
        leaked=_leaked(texts, after),
        moved=sum(after.get(row, split) != split for row, split in before.items()),
        gone=sum(row not in after for row in before),
        tested=sum(split == "test" for split in after.values()),
    )


def _leaked(texts: Sequence[Text], splits: Splits) -> int:
    """By brute force, among texts as the stage cleans them, whoever divided them."""
    rows = sorted(splits)
    cleaned = [clean.text(texts[row].text, SETTINGS.clean) for row in rows]
    keys = signatures.keys(pl.Series(cleaned)).to_list()
    left, right = brute_force.pairs(brute_force.shingle_matrix(keys, SHINGLE), THRESHOLD)
    split = np.array([splits[row] for row in rows])
    one = left[(split[left] == "test") & (split[right] == "train")]
    other = right[(split[right] == "test") & (split[left] == "train")]
    return len(np.union1d(one, other))
