"""Give every cluster of duplicates to one split, by a hash of its content alone.

Nothing depends on order or on a random state: new rows never move an old row, unless they join its cluster
and bring a smaller content hash or tie two clusters together.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.artifacts import SPLITS
from tasks.errors import DataError

SCALE = 2**64
ENOUGH = 2  # rows of each class to train on; to judge, 1


@dataclass(frozen=True)
class Row:
    """A kept document in its split; `cluster` is the same for all its duplicates, also those removed."""

    id: str
    text: str
    label: str
    cluster: str
    split: str


def assign(clusters: Mapping[str, str], *, validation: float, test: float, salt: str) -> dict[str, str]:
    """Row id -> split, for row id -> cluster key; `validation` and `test` are shares of the clusters."""
    splits = {cluster: _split(position(cluster, salt), validation, test) for cluster in clusters.values()}
    return {row: splits[cluster] for row, cluster in clusters.items()}


def position(key: str, salt: str) -> float:
    """A number in [0, 1), the same for the same key and salt on every machine."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / SCALE


def _split(place: float, validation: float, test: float) -> str:
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def outside_subset(
    splits: Mapping[str, str], limits: Mapping[str, int | None], *, salt: str
) -> dict[str, str]:
    """Row id -> detail, for the rows beyond `limits` (split -> most rows, None for all), by order of hash."""
    beyond: dict[str, str] = {}
    for split, most in limits.items():
        rows = [row for row, of in splits.items() if of == split]
        if most is not None and len(rows) > most:
            rows.sort(key=lambda row: (position(row, salt), row))
            beyond |= dict.fromkeys(rows[most:], f"{split} takes {most} of {len(rows)} rows")
    return beyond


def order_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Alphabetical; whole numbers by value, so that 10 follows 9."""
    distinct = set(labels)
    numeric = all(label.isdecimal() for label in distinct)
    return tuple(sorted(distinct, key=lambda label: (int(label) if numeric else 0, label)))


def check_classes(rows: Iterable[Row], labels: Sequence[str]) -> None:
    """Raises DataError with every class that `rows` leave too small to learn or to judge."""
    if len(labels) < 2:
        only = f"{labels[0]!r} is the only label" if labels else "no row is left"
        raise DataError(f"{only}: a classifier needs two classes; name another label column or add rows")
    counts = Counter((row.label, row.split) for row in rows)
    faults = [
        f"class {label!r} has {counts[label, split]} rows left in {split} and needs {_needed(split)} "
        f"({sum(counts[label, other] for other in SPLITS)} in all splits)"
        for label in labels
        for split in SPLITS
        if counts[label, split] < _needed(split)
    ]
    if faults:
        remedy = (
            "add rows of that class, merge it with another, or change preparation.salt, fractions or subset"
        )
        raise DataError("; ".join([*faults, remedy]))


def _needed(split: str) -> int:
    return ENOUGH if split == "train" else 1
