"""Rows of language modelling filled to their length, by trl: several texts in one row, no token lost.

Of trl's three strategies the default, "bfd", cuts off what is longer than a row (measured: 28 % of the tokens
of a corpus with a heavy tail) and is not offered.
"""

from typing import Literal

import pyarrow as pa
from datasets import Dataset

from tasks import environment
from tasks.errors import DataError, ParamsError

Strategy = Literal["none", "wrapped", "bfd_split"]
IDS = pa.list_(pa.int32())


def check(strategy: Strategy, kind: str) -> None:
    """Raises ParamsError where `strategy` does not suit the kind, or trl is not installed."""
    if strategy == "none":
        return
    if kind != "text":
        raise ParamsError(
            f"encoding.packing = {strategy} is for rows of kind text; these are of kind {kind}: set it to "
            "none"
        )
    _trl()


def schema(strategy: Strategy) -> pa.Schema:
    """input_ids (ragged int32) and, of "bfd_split", seq_lengths: tokens of each text or part of one in the
    row. Training does not read them: a text sees those before it in its row, as in GPT-2's pretraining."""
    lengths = {"seq_lengths": IDS} if strategy == "bfd_split" else {}
    return pa.schema({"input_ids": IDS, **lengths})


def pack(rows: pa.Table, *, strategy: Strategy, length: int) -> pa.Table:
    """The tokens of `rows`' input_ids in rows of `length` at most, as `schema` says.

    "wrapped" keeps their order and cuts wherever a row is full; "bfd_split" (best fit decreasing) keeps texts
    whole that fit a row. Only rows of the same call share a row. Raises DataError where a token is missing
    afterwards.
    """
    if not rows["input_ids"].combine_chunks().flatten():
        return schema(strategy).empty_table()
    table = pa.table({"input_ids": rows["input_ids"].combine_chunks().cast(IDS)})
    whole = {
        "batch_size": None,
        "keep_in_memory": True,
        "load_from_cache_file": False,
        "new_fingerprint": "packed",
    }
    packed = _trl()(Dataset(table), length, strategy, map_kwargs=whole)
    found = packed.with_format(None).data.table.cast(schema(strategy)).combine_chunks()
    before, after = (sum(map(len, part["input_ids"].to_pylist())) for part in (table, found))
    if before != after:
        raise DataError(
            f"packing by {strategy} changed {before:,} tokens into {after:,}: set encoding.packing to none"
        )
    return found


def _trl():  # type: ignore[no-untyped-def]
    """Late: it takes seconds and brings torch."""
    environment.demand("trl", extra="packing", wanted="encoding.packing")
    from trl.data_utils import pack_dataset

    return pack_dataset
