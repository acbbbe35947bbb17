"""Find texts that are the same, or nearly, and decide which stay.

Candidates come from banded MinHash signatures; every candidate pair is then measured exactly, because
unverified bands merge strangers. What leaves is decided by the leader rule: a text goes only where its own
similarity to the text that stays is at or above the threshold. What must not be divided between splits is
decided by connected components, which reach further.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tasks import progress
from tasks.text.signatures import ROW_BITS, SHINGLE_BITS, Hashes, Signed

Integers = NDArray[np.int64]
Conflicts = Literal["quarantine", "majority", "keep"]

CROWD = 1000  # different texts in one bucket from which they are compared with leaders only
ELEMENTS = 2**22  # shingles measured at once


class Pairs(NamedTuple):
    """Measured pairs, `left` < `right`, ordered; of those below the threshold only what candidates showed."""

    left: Integers
    right: Integers
    similarity: NDArray[np.float64]

    def chosen(self, mask: NDArray[np.bool_]) -> "Pairs":
        return Pairs(self.left[mask], self.right[mask], self.similarity[mask])


def measured_pairs(signed: Signed, texts: Integers, *, threshold: float) -> Pairs:
    """Every candidate pair among `texts` (places in `signed`, no two of one key), with its similarity.

    Numbers of the pairs are places in `texts`. A pair at or above `threshold` is among them with the
    probability that `signatures.rows_per_band` tells; in a bucket of more than CROWD texts only pairs with a
    leader are looked for.
    """
    codes = _candidates(signed, texts, threshold)
    left, right = codes // max(len(texts), 1), codes % max(len(texts), 1)
    return Pairs(left, right, _similarities(signed, texts[left], texts[right], watched=True))


def _candidates(signed: Signed, texts: Integers, threshold: float) -> Integers:
    """Pairs that share a band, coded left * len(texts) + right, each once."""
    found = np.empty(0, dtype=np.int64)
    table = signed.bands
    bands = range(table.shape[1])
    for band in progress.track(bands, total=len(bands), description="joining bands"):
        buckets = pl.DataFrame({"bucket": np.asarray(table[:, band])[texts]}).with_row_index("text")
        shared = buckets.filter(pl.col("bucket").is_duplicated())
        crowded = shared.filter(pl.len().over("bucket") > CROWD)
        codes = _joined(shared.join(crowded, on="bucket", how="anti"), len(texts))
        crowds = [_stars(signed, texts, crowd, threshold) for crowd in _members(crowded)]
        found = np.unique(np.concatenate([found, codes, *crowds]))
    return found


def _joined(shared: pl.DataFrame, count: int) -> Integers:
    """One join over a band: every two texts of a bucket."""
    pairs = shared.join(shared, on="bucket", suffix="_right").filter(pl.col("text") < pl.col("text_right"))
    left, right = (pairs[name].cast(pl.Int64).to_numpy() for name in ("text", "text_right"))
    codes: Integers = left * count + right
    return codes


def _members(crowded: pl.DataFrame) -> list[Integers]:
    groups = crowded.group_by("bucket", maintain_order=True).agg("text")["text"]
    return [group.cast(pl.Int64).to_numpy() for group in groups]


def _stars(signed: Signed, texts: Integers, crowd: Integers, threshold: float) -> Integers:
    """Near-identical texts by the thousand: each with its leader, instead of each with each."""
    found = [np.empty(0, dtype=np.int64)]
    while len(crowd) > 1:
        leader, rest = crowd[0], crowd[1:]
        near = _similarities(signed, np.full(len(rest), texts[leader]), texts[rest]) >= threshold
        found.append(leader * len(texts) + rest[near])
        crowd = rest[~near]
    return np.concatenate(found)


def _similarities(
    signed: Signed, left: Integers, right: Integers, *, watched: bool = False
) -> NDArray[np.float64]:
    """Jaccard similarity of the sets of shingles of each pair of texts, exactly."""
    sizes = signed.counts[left] + signed.counts[right]
    shared = np.empty(len(left), dtype=np.int64)
    chunks = list(_chunks(sizes))
    bar = progress.track(chunks, total=len(chunks), description="measuring candidates")
    for part in bar if watched else chunks:
        shared[part] = _shared(signed, left[part], right[part])
    similarity: NDArray[np.float64] = shared / np.maximum(sizes - shared, 1)
    return similarity


def _chunks(sizes: Integers) -> Iterator[slice]:
    """Parts of at most ELEMENTS shingles, or one pair."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + ELEMENTS, side="right")), start + 1)
        stop = min(stop, start + 2**ROW_BITS)
        yield slice(start, stop)
        start = stop


def _shared(signed: Signed, left: Integers, right: Integers) -> Integers:
    """How many shingles both texts of each pair have: equal neighbours after sorting both sets as one."""
    texts, pair = np.concatenate([left, right]), np.tile(np.arange(len(left)), 2)
    counts = signed.counts[texts]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    hashes = signed.shingles[np.repeat(signed.starts[texts], counts) + within]
    coded = (np.repeat(pair, counts).astype(np.uint64) << SHINGLE_BITS) | hashes
    coded.sort()
    twice = coded[1:][coded[1:] == coded[:-1]] >> SHINGLE_BITS
    found: Integers = np.bincount(twice.astype(np.int64), minlength=len(left))
    return found


def components(count: int, pairs: Pairs) -> Integers:
    """For each of `count` texts the number of its connected component."""
    graph = coo_matrix((np.ones(len(pairs.left)), (pairs.left, pairs.right)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    found: Integers = component.astype(np.int64)
    return found


def smallest(values: Hashes, groups: Integers) -> Hashes:
    """For each place the smallest of `values` in its group: a group's name, whatever the order."""
    least = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least, groups, values)
    return least[groups]


class Leaders(NamedTuple):
    leader: Integers  # (units,) the unit that stays instead, -1 where the unit itself stays
    similarity: NDArray[np.float64]


def leaders(count: int, pairs: Pairs, *, gone: NDArray[np.bool_]) -> Leaders:
    """In order: a unit leaves for the most similar earlier unit that stays, if there is one.

    `gone` units neither stay nor lead.
    """
    leader = np.full(count, -1, dtype=np.int64)
    similarity = np.full(count, np.nan)
    usable = pairs.chosen(~(gone[pairs.left] | gone[pairs.right]))
    order = np.lexsort((usable.left, -usable.similarity, usable.right))
    for place in order:
        right, left = usable.right[place], usable.left[place]
        if leader[right] < 0 and leader[left] < 0:
            leader[right], similarity[right] = left, usable.similarity[place]
    return Leaders(leader, similarity)


class Units(NamedTuple):
    """Rows that say the same, text and answer, in the order in which units lead."""

    unit: Integers  # (rows,) the unit of each row
    first: Integers  # (units,) the row that stands for the unit
    text: Integers  # (units,) number of its text, texts numbered as they first lead
    answer: Hashes  # (units,)
    size: Integers  # (units,) rows


def units(keys: Hashes, answers: Hashes, order: Integers) -> Units:
    """Group rows by key and answer; `order` lists the rows, those first that shall stay."""
    rows = pl.DataFrame({"row": order, "key": keys[order], "answer": answers[order]})
    groups = rows.group_by(["key", "answer"], maintain_order=True).agg(pl.first("row"), size=pl.len())
    texts = groups.select(pl.col("key").unique(maintain_order=True)).with_row_index("text")
    groups = groups.join(texts, on="key", maintain_order="left").with_row_index("unit")
    unit = rows.join(groups.select("key", "answer", "unit"), on=["key", "answer"]).sort("row")["unit"]
    return Units(
        unit=unit.cast(pl.Int64).to_numpy(),
        first=groups["row"].cast(pl.Int64).to_numpy(),
        text=groups["text"].cast(pl.Int64).to_numpy(),
        answer=groups["answer"].to_numpy(),
        size=groups["size"].cast(pl.Int64).to_numpy(),
    )


def between_units(units: Units, near: Pairs, *, across: bool, within: bool) -> Pairs:
    """Pairs of texts as pairs of units: of all units with `across`, else of those with equal answers; and
    `within` one text, whose units differ in their answers and are 1.0 similar.
    """
    holders = pl.DataFrame({"text": units.text, "answer": units.answer}).with_row_index("unit")
    holders = holders.cast({"unit": pl.Int64})
    by = [] if across else ["answer"]
    pairs = pl.DataFrame(near._asdict(), schema_overrides={"left": pl.Int64, "right": pl.Int64})
    left = pairs.join(holders, left_on="left", right_on="text")
    ends = left.join(holders, left_on=["right", *by], right_on=["text", *by], suffix="_right")
    ends = ends.select(one="unit", other="unit_right", similarity="similarity")
    if within:
        several = holders.filter(pl.col("text").is_duplicated())
        same = several.join(several, on="text", suffix="_right").filter(pl.col("unit") < pl.col("unit_right"))
        same = same.select(one="unit", other="unit_right", similarity=pl.lit(1.0))
        ends = pl.concat([ends, same])
    ends = ends.select(
        left=pl.min_horizontal("one", "other"),
        right=pl.max_horizontal("one", "other"),
        similarity="similarity",
    ).sort("left", "right")
    return Pairs(*(ends[name].to_numpy() for name in ("left", "right", "similarity")))


class Aside(NamedTuple):
    """Units whose answer a duplicate contradicts."""

    reason: NDArray[np.object_]  # (units,) conflicting_labels, minority_label or ""
    rival: Integers  # (units,) the most similar unit with another answer, -1 where there is none
    similarity: NDArray[np.float64]  # (units,) to the rival


def conflicts(units: Units, pairs: Pairs, standing: NDArray[np.int8], policy: Conflicts) -> Aside:
    """Set units aside by `policy`: every unit with a contradicting duplicate; or, with "majority", those of
    all answers but the one that more than half of the rows of a component give; or none.

    `standing` says who was there first: a unit that contradicts one of lower standing goes alone.
    """
    torn = pairs.chosen(units.answer[pairs.left] != units.answer[pairs.right])
    rival, similarity = _rivals(len(units.first), torn)
    reason = np.full(len(units.first), "", dtype=object)
    if policy == "keep":
        return Aside(reason, rival, similarity)
    left, right = standing[torn.left], standing[torn.right]
    reason[torn.left[left > right]] = reason[torn.right[right > left]] = "conflicting_labels"
    open_ = (left == right) & (reason[torn.left] == "") & (reason[torn.right] == "")
    equal = np.unique(np.concatenate([torn.left[open_], torn.right[open_]]))
    if policy == "majority":
        free = (reason[pairs.left] == "") & (reason[pairs.right] == "")
        _outvote(reason, units, pairs.chosen(free), equal)
    else:
        reason[equal] = "conflicting_labels"
    return Aside(reason, rival, similarity)


def _rivals(count: int, torn: Pairs) -> tuple[Integers, NDArray[np.float64]]:
    unit, other = np.concatenate([torn.left, torn.right]), np.concatenate([torn.right, torn.left])
    near = np.tile(torn.similarity, 2)
    order = np.lexsort((other, -near, unit))[::-1]  # the last assignment wins: the most similar
    rival, similarity = np.full(count, -1, dtype=np.int64), np.full(count, np.nan)
    rival[unit[order]], similarity[unit[order]] = other[order], near[order]
    return rival, similarity


def _outvote(reason: NDArray[np.object_], units: Units, pairs: Pairs, torn: Integers) -> None:
    """Of the `torn` units those with the answer of the majority of their component stay."""
    component = components(len(units.first), pairs)
    votes: dict[int, dict[int, int]] = {}
    for place in np.flatnonzero(np.isin(component, component[torn])):
        answers = votes.setdefault(int(component[place]), {})
        answer = int(units.answer[place])
        answers[answer] = answers.get(answer, 0) + int(units.size[place])
    for place in torn:
        answers = votes[int(component[place])]
        winner = max(answers, key=lambda answer: answers[answer])
        if 2 * answers[winner] <= sum(answers.values()):
            reason[place] = "conflicting_labels"
        elif units.answer[place] != winner:
            reason[place] = "minority_label"
