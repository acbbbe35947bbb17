"""Which text belongs to which split, remembered: a small Parquet file that grows.

It holds hashes and no text. What stands in it never moves, and leaves only when its text is forgotten;
another salt begins a list of its own.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks import files
from tasks.artifacts import SPLITS
from tasks.errors import ArtifactError
from tasks.text.signatures import Hashes

NAME = "ledger.parquet"
SCHEMA = {"salt": pl.String, "key": pl.UInt64, "split": pl.String}
Splits = NDArray[np.int8]  # numbers of SPLITS, or UNKNOWN
UNKNOWN = -1


def read(path: Path) -> pl.DataFrame:
    """Columns salt, key (hash of a text's key), split; empty where there is no file yet.

    Raises ArtifactError for a file that is no ledger.
    """
    if not path.exists():
        return pl.DataFrame(schema=SCHEMA)
    try:
        found = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise ArtifactError(f"{path} cannot be read ({error}): bring it back with `dvc checkout`") from None
    if found.schema != SCHEMA or not set(found["split"].unique()) <= set(SPLITS):
        raise ArtifactError(
            f"{path} is not a ledger of splits: bring it back with `dvc checkout {path.name}`"
        )
    return found


def known(entries: pl.DataFrame, keys: Hashes, *, salt: str) -> Splits:
    """The split of each key under `salt`, UNKNOWN where it is new."""
    mine = entries.filter(pl.col("salt") == salt).select(
        "key", number=pl.col("split").replace_strict(list(SPLITS), range(len(SPLITS)), return_dtype=pl.Int8)
    )
    joined = pl.DataFrame({"key": keys}).join(mine, on="key", how="left", maintain_order="left")
    splits: Splits = joined["number"].fill_null(UNKNOWN).to_numpy()
    return splits


def without(entries: pl.DataFrame, keys: Hashes) -> pl.DataFrame:
    """`entries` but those of `keys`, whatever their salt: of forgotten texts not even a hash stays."""
    return entries.filter(~pl.col("key").is_in(pl.Series(keys, dtype=pl.UInt64).implode()))


def write(path: Path, former: pl.DataFrame, keys: Hashes, splits: Splits, *, salt: str) -> None:
    """`former` with each of `keys` in its split; what this run says stands over what was there."""
    here = splits >= 0
    names = pl.Series(np.asarray(SPLITS)[splits[here]], dtype=pl.String)
    new = pl.DataFrame({"salt": [salt] * int(here.sum()), "key": keys[here], "split": names}, schema=SCHEMA)
    whole = pl.concat([former, new]).unique(["salt", "key"], keep="last").sort("salt", "key")
    with files.replace_file(path) as draft:
        whole.write_parquet(draft)
