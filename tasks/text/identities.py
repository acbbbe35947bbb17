"""Which row is meant: ids made from what a row says, and the digests by which forgotten rows are known."""

import hashlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from tasks.text.signatures import Hashes


def numbered(content: Hashes) -> pl.Series:
    """Ids that neither new rows nor another order of the others change."""
    frame = pl.DataFrame({"content": content})
    number = frame.select(pl.int_range(1, pl.len() + 1).over("content")).to_series()
    names = [f"{stem(hash)}-{again}" for hash, again in zip(content.tolist(), number.to_list(), strict=True)]
    return pl.Series("id", names, dtype=pl.String)


def forgotten(row: Mapping[str, Any]) -> str:
    """The digest under which a row is asked to be forgotten: of its own id, else of its content."""
    return digest(row["id"] if row["id"] is not None else stem(row["content"]))


def digest(name: str) -> str:
    """Of an id of the table's own, or of the `stem` of an id that was made from content."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def stem(content: int) -> str:
    """What all ids made from this content begin with; a number follows."""
    return f"{content:016x}"
