"""Give every cluster of duplicates to one split, and never move what once has been given.

The first time a cluster's split follows from the rank of its hash within its class, so that shares hold
even for rare classes and nothing depends on order or on a random state. From then on the ledger decides: a
new text joins the split of its duplicates, and one that would tie two splits together is held out.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts import SPLITS
from tasks.errors import DataError
from tasks.text.dedup import Integers, Pairs, components, smallest
from tasks.text.ledger import UNKNOWN, Splits
from tasks.text.signatures import Hashes

SCALE = 2**64
ENOUGH = 2  # rows of each class to train on; to judge, 1
RARE = 4  # clusters of a class below which it is divided together with other rare ones
HELD_OUT = -2
TRAIN, VALIDATION, TEST = range(3)


def position(key: str, salt: str) -> float:
    """A number in [0, 1), the same for the same key and salt on every machine."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / SCALE


class Assigned(NamedTuple):
    splits: Splits  # (texts,) numbers of SPLITS, or HELD_OUT where a text would tie two splits together
    clusters: Hashes  # (texts,) the smallest key of those that stay together, always in one split


def assign(
    keys: Hashes,
    near: Pairs,
    known: Splits,
    classes: Sequence[str],
    *,
    groups: Hashes,
    shares: Mapping[str, float],
    salt: str,
) -> Assigned:
    """A split and a cluster for each text.

    `near` are the pairs that must not be divided, `known` the splits that are given already (UNKNOWN for new
    texts), `classes` each text's stratum, `shares` how much of the clusters goes to validation and test. The
    texts of one group (of pairs with the same first part) are not divided either; empty: there are none.
    """
    splits = known.copy()
    torn = _inherit(splits, components(len(keys), _tied(near, groups, np.zeros_like(splits))))
    _join_one_by_one(splits, keys, near, groups, torn)
    clusters = smallest(keys, components(len(keys), _tied(near, groups, splits)))
    _divide(splits, clusters, classes, shares, salt)
    return Assigned(splits, clusters)


def _tied(near: Pairs, groups: Hashes, splits: Splits) -> Pairs:
    """Pairs that stay together: near, or neighbours in their group, and with the same of `splits`."""
    one, other = splits[near.left], splits[near.right]
    near = near.chosen((one == other) & (one != HELD_OUT))
    if not len(groups):
        return near
    order = np.lexsort((splits, groups))
    order = order[splits[order] != HELD_OUT]
    left, right = order[:-1], order[1:]
    same = (groups[left] == groups[right]) & (splits[left] == splits[right])
    left, right = np.concatenate([near.left, left[same]]), np.concatenate([near.right, right[same]])
    return Pairs(left, right, np.ones(len(left)))


def _inherit(splits: Splits, component: Integers) -> NDArray[np.bool_]:
    """Fill in components that know one split; returns which texts are in components that know several."""
    count = int(component.max(initial=-1)) + 1
    low, high = np.full(count, len(SPLITS), dtype=np.int8), np.full(count, UNKNOWN, dtype=np.int8)
    given = splits != UNKNOWN
    np.minimum.at(low, component[given], splits[given])
    np.maximum.at(high, component[given], splits[given])
    new, several = ~given, (low < high)[component]
    inherits = new & (low == high)[component]
    splits[inherits] = low[component[inherits]]
    torn: NDArray[np.bool_] = several & new
    return torn


def _join_one_by_one(
    splits: Splits, keys: Hashes, near: Pairs, groups: Hashes, torn: NDArray[np.bool_]
) -> None:
    """New texts between splits, in the order of their hashes: each joins its neighbours unless they differ.

    Neighbours that have no split yet are joined too, and take the split that all of them get later.
    """
    neighbours = _neighbours(near, torn)
    mates = _mates(splits, groups, torn)
    joined: dict[int, set[int]] = {}
    for place in sorted(neighbours, key=lambda place: int(keys[place])):
        group = mates.get(int(groups[place]), {}) if len(groups) else {}
        around = [*neighbours[place], *group.values()]
        others = [other for other in around if splits[other] != UNKNOWN or other in joined]
        given = {int(splits[other]) for other in others} - {UNKNOWN, HELD_OUT}
        if len(given) > 1:
            splits[place] = HELD_OUT
            continue
        together = {place}.union(*(joined[other] for other in others if other in joined))
        for member in together:
            joined[member] = together
            splits[member] = next(iter(given), UNKNOWN)
        group[int(splits[place])] = place


def _neighbours(near: Pairs, torn: NDArray[np.bool_]) -> dict[int, list[int]]:
    """The places near each torn one."""
    neighbours: dict[int, list[int]] = {int(place): [] for place in np.flatnonzero(torn)}
    for left, right in zip(near.left.tolist(), near.right.tolist(), strict=True):
        if left in neighbours:
            neighbours[left].append(right)
        if right in neighbours:
            neighbours[right].append(left)
    return neighbours


def _mates(splits: Splits, groups: Hashes, torn: NDArray[np.bool_]) -> dict[int, dict[int, int]]:
    """For each group with a torn text one place for each split that is known in it."""
    if not len(groups):
        return {}
    mates: dict[int, dict[int, int]] = {group: {} for group in np.unique(groups[torn]).tolist()}
    for place in np.flatnonzero(np.isin(groups, groups[torn]) & (splits != UNKNOWN)).tolist():
        mates[int(groups[place])][int(splits[place])] = place
    return mates


def _divide(
    splits: Splits, names: Hashes, classes: Sequence[str], shares: Mapping[str, float], salt: str
) -> None:
    """New clusters by rank of hash within their class, as many to each split as its share still wants."""
    chosen: dict[int, int] = {}
    for clusters in _strata(splits, names, classes):
        new = [name for name, split in clusters.items() if split == UNKNOWN]
        ranked = sorted(new, key=lambda name: (position(f"{name:016x}", salt), name))
        have, start = Counter(clusters.values()), 0
        for number in (TEST, VALIDATION):
            stop = start + max(0, _wanted(len(clusters), shares[SPLITS[number]]) - have[number])
            chosen |= dict.fromkeys(ranked[start:stop], number)
            start = stop
    for place in np.flatnonzero(splits == UNKNOWN).tolist():
        splits[place] = chosen.get(int(names[place]), TRAIN)


def _strata(splits: Splits, names: Hashes, classes: Sequence[str]) -> list[dict[int, int]]:
    """For each class its clusters (name -> split), those of rare classes together."""
    of: dict[int, str] = {}
    strata: dict[str, dict[int, int]] = {}
    for place, (name, split) in enumerate(zip(names.tolist(), splits.tolist(), strict=True)):
        if split != HELD_OUT:
            strata.setdefault(of.setdefault(name, classes[place]), {})[name] = split
    rare: dict[int, int] = {}
    for clusters in strata.values():
        if len(clusters) < RARE:
            rare |= clusters
    return [*(clusters for clusters in strata.values() if len(clusters) >= RARE), rare]


def _wanted(clusters: int, share: float) -> int:
    """Clusters of `clusters` that a split wants: its share, and one at least where there are enough."""
    least = 1 if clusters >= RARE and share > 0 else 0
    return max(least, int(clusters * share + 0.5))


def outside_subset(ids: Sequence[str], most: int | None, *, salt: str) -> list[int]:
    """Places of the rows beyond the `most` that a declared subset takes, chosen by a hash of their ids."""
    if most is None or len(ids) <= most:
        return []
    ranked = sorted(range(len(ids)), key=lambda place: (position(ids[place], salt), ids[place]))
    return ranked[most:]


def order_labels(labels: Collection[str]) -> tuple[str, ...]:
    """Alphabetical; whole numbers by value, so that 10 follows 9."""
    numeric = all(label.isdecimal() for label in labels)
    return tuple(sorted(set(labels), key=lambda label: (int(label) if numeric else 0, label)))


def check_classes(balance: Mapping[tuple[str, str], int], labels: Sequence[str]) -> None:
    """`balance` counts rows by (label, split).

    Raises DataError with every class that is too small to learn or to judge.
    """
    if len(labels) < 2:
        only = f"{labels[0]!r} is the only label" if labels else "no row is left"
        raise DataError(f"{only}: a classifier needs two classes; name another label column or add rows")
    faults = [
        _too_small(label, split, balance)
        for label in labels
        for split in SPLITS
        if balance.get((label, split), 0) < _needed(split)
    ]
    if faults:
        remedy = "add rows of that class, merge it with another, or change preparation.fractions or subset"
        raise DataError("; ".join([*faults, remedy]))


def check_rows(rows: Mapping[str, int]) -> None:
    """Raises DataError where a split holds no row: nothing to train on, to choose by, or to judge."""
    if empty := [split for split in SPLITS if not rows.get(split)]:
        raise DataError(
            f"no row is left in {' and '.join(empty)} ({sum(rows.values())} in all): add rows or change "
            "preparation.fractions"
        )


def _needed(split: str) -> int:
    return ENOUGH if split == "train" else 1


def _too_small(label: str, split: str, balance: Mapping[tuple[str, str], int]) -> str:
    rows, whole = balance.get((label, split), 0), sum(balance.get((label, other), 0) for other in SPLITS)
    return (
        f"class {label!r} has {rows} rows left in {split} and needs {_needed(split)} ({whole} in all splits)"
    )
