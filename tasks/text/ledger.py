"""Which text belongs to which split, remembered: a small Parquet file that grows.

It holds hashes and no text. What stands in it never moves, and leaves only when its text is forgotten;
another salt begins a list of its own.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from tasks import files
from tasks.artifacts import SPLITS
from tasks.errors import ArtifactError
from tasks.text.signatures import Hashes

NAME = "ledger.parquet"
SCHEMA = {"salt": pl.String, "key": pl.UInt64, "split": pl.String, "content": pl.UInt64}
Splits = NDArray[np.int8]  # numbers of SPLITS, or UNKNOWN
UNKNOWN = -1


def read(path: Path) -> pl.DataFrame:
    """Columns salt, key (hash of a text's key), split, content (of the row that stood for it); empty where
    there is no file yet.

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


class Known(NamedTuple):
    splits: Splits  # (keys,) UNKNOWN where a key is new
    content: Hashes  # (keys,) of the row that stood for it, 0 where it is new


def known(entries: pl.DataFrame, keys: Hashes, raw: Hashes, *, salt: str) -> Known:
    """What is remembered of each key under `salt`, else of its `raw` one, which no cleaning step changed."""
    mine = entries.filter(pl.col("salt") == salt).select(
        "key",
        "content",
        number=pl.col("split").replace_strict(list(SPLITS), range(len(SPLITS)), return_dtype=pl.Int8),
    )
    asked = pl.DataFrame({"key": keys, "raw": raw})
    found = asked.join(mine, on="key", how="left", maintain_order="left")
    found = found.join(mine, left_on="raw", right_on="key", how="left", maintain_order="left", suffix="_raw")
    number = found.select(pl.coalesce("number", "number_raw").fill_null(UNKNOWN)).to_series()
    content = found.select(pl.coalesce("content", "content_raw").fill_null(0)).to_series()
    return Known(number.to_numpy(), content.to_numpy())


def without(entries: pl.DataFrame, keys: Hashes, content: Hashes) -> pl.DataFrame:
    """`entries` but those of `keys` and of rows of this `content`, whatever their salt and cleaning: of
    forgotten texts not even a hash stays."""
    gone = pl.Series(keys, dtype=pl.UInt64).implode(), pl.Series(content, dtype=pl.UInt64).implode()
    return entries.filter(~(pl.col("key").is_in(gone[0]) | pl.col("content").is_in(gone[1])))


def write(
    path: Path,
    former: pl.DataFrame,
    keys: Hashes,
    raw: Hashes,
    splits: Splits,
    content: Hashes,
    *,
    salt: str,
) -> None:
    """`former` with each of `keys`, and its `raw` one, in its split; what this run says stands over what was
    there."""
    here = splits >= 0
    names = pl.Series(np.asarray(SPLITS)[splits[here]], dtype=pl.String)
    columns = {"salt": [salt] * int(here.sum()), "split": names, "content": content[here]}
    new = [
        pl.DataFrame({**columns, "key": of[here]}, schema_overrides=SCHEMA).select(list(SCHEMA))
        for of in (raw, keys)
    ]
    whole = pl.concat([former, *new]).unique(["salt", "key"], keep="last").sort("salt", "key")
    with files.replace_file(path) as draft:
        parquet.write_table(whole.to_arrow(), draft)  # polars does not say that a disk is full
