"""The prepared rows of one split, in batches of equal size whatever the row groups of their file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet

BATCH = 8192  # rows; also a row group of what is written of them, so that other shards give the same bytes


def batches(path: Path, split: str, columns: Sequence[str], *, rows: int = BATCH) -> Iterator[pa.Table]:
    """`columns` of the rows of `split`, in the order of the file; every table but the last has `rows`.

    What is held at once is two batches, not the file.
    """
    waiting: list[pa.Table] = []
    with parquet.ParquetFile(path) as stream:
        for batch in stream.iter_batches(batch_size=rows, columns=[*columns, "split"]):
            table = pa.Table.from_batches([batch])
            waiting.append(table.filter(compute.field("split") == split).select(list(columns)))
            if sum(map(len, waiting)) >= rows:
                held = pa.concat_tables(waiting)
                yield held.slice(0, rows)
                waiting = [held.slice(rows)]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)
