"""What rows came to as tokens: how many, how long, and what it cost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as compute

# What stands beside each encoded row and is counted, not written.
COUNTED = {"lost": pa.int32(), "unknown": pa.int32(), "missed": pa.int32()}


@dataclass(frozen=True)
class Tally:
    """What the rows of a split came to; `lengths` counts rows (windows, where they have any) by tokens before
    the cut."""

    rows: int = 0
    tokens: int = 0
    truncated: int = 0  # rows that lost tokens
    lost: int = 0  # tokens cut off
    unknown: int = 0  # tokens that the vocabulary does not know
    lengths: Mapping[int, int] = field(default_factory=dict)
    missed: int = 0  # words that give no token, answers that no window holds

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.truncated + other.truncated,
            self.lost + other.lost,
            self.unknown + other.unknown,
            Counter(self.lengths) + Counter(other.lengths),
            self.missed + other.missed,
        )

    def fitting(self, share: float) -> int:
        """Tokens that `share` of the lengths do not exceed; 0 without rows."""
        wanted, seen = share * sum(self.lengths.values()), 0
        for length in sorted(self.lengths):
            seen += self.lengths[length]
            if seen >= wanted:
                return length
        return 0


def tallied(encoded: pa.Table) -> Tally:
    """The totals of what `encode.shard` gave; the windows of one row count as one row."""
    sizes = [
        compute.list_value_length(encoded[name])
        for name in ("input_ids", "target_ids")
        if name in encoded.column_names
    ]
    kept = sizes[0] if len(sizes) == 1 else compute.add(*sizes)
    return Tally(
        rows=compute.count_distinct(encoded["id"]).as_py(),
        tokens=compute.sum(kept).as_py() or 0,
        truncated=compute.sum(compute.greater(encoded["lost"], 0)).as_py() or 0,
        lost=compute.sum(encoded["lost"]).as_py() or 0,
        unknown=compute.sum(encoded["unknown"]).as_py() or 0,
        lengths=Counter(compute.add(kept, encoded["lost"]).to_pylist()),
        missed=compute.sum(encoded["missed"]).as_py() or 0,
    )
