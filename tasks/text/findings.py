"""What the page of preparation tells: counts, the largest clusters, the nearest texts across splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as compute

from tasks.artifacts import SPLITS
from tasks.text import kinds, report, shards, signatures
from tasks.text.contamination import Finding
from tasks.text.decide import Decided, Rules
from tasks.text.dedup import Integers, Pairs
from tasks.text.deliver import Delivered
from tasks.text.gather import Gathered
from tasks.text.ledger import Splits

SHOWN = 10  # clusters, conflicts
NEAREST = 3  # pairs across splits
VARIANTS = 4  # different texts of a cluster
CHARACTERS = 280  # of a text
BIN = 0.05  # of similarity


def clusters(gathered: Gathered, decided: Decided) -> tuple[list[report.Cluster], list[report.Cluster], int]:
    """The largest clusters of duplicates, the largest with conflicting answers, how many of these exist."""
    component = decided.component[decided.units.text[decided.units.unit]]  # of each candidate
    size = np.bincount(component)
    torn = np.zeros(len(size), dtype=bool)
    contradicted = np.isin(decided.fates.reason[decided.rows], ["conflicting_labels", "minority_label"])
    torn[component[contradicted]] = True
    order = np.lexsort((_first(component, len(size)), -size))
    large = [int(place) for place in order if size[place] > 1]
    conflicts = [place for place in large if torn[place]]
    wanted = [*large[:SHOWN], *conflicts[:SHOWN]]
    members = {place: np.flatnonzero(component == place) for place in set(wanted)}
    stories = {place: _story(gathered, decided, candidates) for place, candidates in members.items()}
    return (
        [stories[place] for place in large[:SHOWN]],
        [stories[place] for place in conflicts[:SHOWN]],
        int(torn.sum()),
    )


def _first(component: Integers, count: int) -> Integers:
    first = np.full(count, len(component), dtype=np.int64)
    np.minimum.at(first, component, np.arange(len(component)))
    return first


def _story(gathered: Gathered, decided: Decided, candidates: Integers) -> report.Cluster:
    fates, rows = decided.fates, decided.rows[candidates]
    labels = Counter(_classes(gathered, rows))
    became = Counter(
        str(reason).replace("_", " ") or f"in {SPLITS[split]}"
        for reason, split in zip(fates.reason[rows], fates.split[rows], strict=True)
    )
    units, counts = np.unique(decided.units.unit[candidates], return_counts=True)
    common = np.lexsort((units, -counts))[:VARIANTS]
    shown = texts_of(gathered, decided.rows[decided.units.first[units[common]]])
    return report.Cluster(
        size=len(rows),
        labels=dict(labels.most_common()),
        texts=tuple(
            (text[:CHARACTERS], int(counts[place])) for text, place in zip(shown, common, strict=True)
        ),
        more=len(units) - len(common),
        fate=", ".join(f"{count} {name}" for name, count in became.most_common()),
    )


def _classes(gathered: Gathered, rows: Integers) -> list[str]:
    found = gathered.classes[np.searchsorted(gathered.numbers, rows)]
    return [str(name).replace(kinds.JOINT, " + ") for name in found]


def texts_of(gathered: Gathered, rows: Integers) -> list[str]:
    """The cleaned texts of `rows`, from their shards."""
    shard = np.searchsorted(gathered.starts, rows, side="right") - 1
    found: dict[int, str] = {}
    for number in np.unique(shard).tolist():
        mine = rows[shard == number]
        column = shards.read(gathered.files[number], ["text"])["text"]
        taken = compute.take(column, mine - gathered.starts[number]).to_pylist()
        found |= dict(zip(mine.tolist(), taken, strict=True))
    return [found[row] for row in rows.tolist()]


def crossing(
    gathered: Gathered, decided: Decided, threshold: float
) -> tuple[Mapping[str, Sequence[tuple[float, int]]], Sequence[tuple[float, str, str, str, str]], int]:
    """Measured pairs of kept texts in different splits: a histogram for each two splits, the nearest pairs
    with their texts, and how many reach the threshold, which must be none."""
    stays = np.zeros(len(decided.texts), dtype=bool)
    stays[decided.units.text[decided.units.unit[decided.fates.stays[decided.rows]]]] = True
    pairs, splits = decided.measured, decided.splits
    across = pairs.chosen(
        stays[pairs.left] & stays[pairs.right] & (splits[pairs.left] != splits[pairs.right])
    )
    histogram = {
        f"{SPLITS[one]}–{SPLITS[other]}": _histogram(
            across, splits[across.left], splits[across.right], one, other
        )
        for one, other in ((0, 1), (0, 2), (1, 2))
    }
    straddling = int((across.similarity >= threshold).sum())
    return histogram, _nearest(gathered, decided, across), straddling


def _histogram(
    pairs: Pairs, left: Splits, right: Splits, one: int, other: int
) -> Sequence[tuple[float, int]]:
    mine = ((left == one) & (right == other)) | ((left == other) & (right == one))
    bins = Counter(np.floor(pairs.similarity[mine] / BIN + 1e-9).astype(int).tolist())
    return tuple((round(place * BIN, 2), count) for place, count in sorted(bins.items()))


def _nearest(
    gathered: Gathered, decided: Decided, pairs: Pairs
) -> Sequence[tuple[float, str, str, str, str]]:
    order = np.lexsort((pairs.right, pairs.left, -pairs.similarity))[:NEAREST]
    ends = [decided.rows[decided.texts[side[order]]] for side in (pairs.left, pairs.right)]
    texts = [texts_of(gathered, rows) for rows in ends]
    names = [[SPLITS[decided.fates.split[row]] for row in rows] for rows in ends]
    return tuple(
        (
            float(pairs.similarity[place]),
            names[0][n],
            texts[0][n][:CHARACTERS],
            names[1][n],
            texts[1][n][:CHARACTERS],
        )
        for n, place in enumerate(order.tolist())
    )


def lengths(delivered: Delivered) -> Mapping[str, Sequence[tuple[int, int]]]:
    """Split -> (characters, rows), by characters."""
    found: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for (split, characters), rows in sorted(delivered.lengths.items()):
        found[split].append((characters, rows))
    return found


def remembered(decided: Decided) -> Mapping[str, int]:
    """How many texts the ledger knew, how many are new, how many were held out."""
    live = decided.splits != -1
    return {
        "known": int((live & (decided.known >= 0)).sum()),
        "new": int((live & (decided.known < 0) & (decided.splits >= 0)).sum()),
        "held out": int((decided.splits == -2).sum()),
    }


def facts(
    gathered: Gathered,
    decided: Decided,
    delivered: Delivered,
    rules: Rules,
    *,
    unread: Sequence[Mapping[str, Any]],
    contamination: Sequence[Finding],
    labels: Sequence[str],
    shingle: int,
    **told: Any,
) -> report.Facts:
    """All that the page says; `told` are its fields that stand in params and listing."""
    largest, conflicts, clashes = clusters(gathered, decided)
    histogram, closest, straddling = crossing(gathered, decided, rules.threshold)
    rows = signatures.rows_per_band(rules.threshold)
    return report.Facts(
        rows_in=gathered.rows_in,
        repaired=gathered.repaired,
        reasons=delivered.dropped + delivered.quarantined,
        changed=gathered.changed,
        examples=gathered.examples,
        balance={
            (name.replace(kinds.JOINT, " + "), split): n for (name, split), n in delivered.balance.items()
        },
        labels=labels,
        detached=delivered.detached,
        lengths=lengths(delivered),
        largest=largest,
        conflicts=conflicts,
        clashes=clashes,
        crossing=histogram,
        closest=closest,
        straddling=straddling,
        ledger=remembered(decided),
        contamination=contamination,
        unread=unread,
        limits=rules.limits,
        threshold=rules.threshold,
        shingle=shingle,
        bands=signatures.PERMUTATIONS // rows,
        rows_per_band=rows,
        **told,
    )
