"""Decide what becomes of every row: plain arithmetic on keys, answers and measured pairs.

Every rule writes a reason; a row without one stays. Rules come in this order: ids that came before, answers
that contradict one another, splits, duplicates, pairs across splits, evaluations kept elsewhere, the
declared subset.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.artifacts import SPLITS
from tasks.text import dedup, ledger, split
from tasks.text.dedup import Integers, Pairs, Units
from tasks.text.gather import Gathered
from tasks.text.ledger import UNKNOWN, Splits
from tasks.text.signatures import Hashes, Signed
from tasks.text.split import HELD_OUT, TRAIN

Mask = NDArray[np.bool_]
# Test leads validation, that leads train; new texts follow.
PRECEDENCE = np.array([2, 1, 0, 3], dtype=np.int8)
NEW = 3  # the standing of a row that neither the table nor the ledger places


@dataclass(frozen=True)
class Rules:
    """How to decide, as plain values."""

    threshold: float
    conflicts: dedup.Conflicts
    one_answer: bool  # a text with two answers is a conflict; else both stay, in one split
    near_answers: bool  # near texts with different answers are a conflict too, as for classes
    shares: Mapping[str, float]
    salt: str
    limits: Mapping[str, int | None]


class Fates:
    """For each of `count` rows: why it leaves ("": it stays), for which row, and how similar that is."""

    def __init__(self, count: int) -> None:
        self.reason: NDArray[np.object_] = np.full(count, "", dtype=object)
        self.other: Integers = np.full(count, -1, dtype=np.int64)
        self.similarity = np.full(count, np.nan)
        self.split: Splits = np.full(count, UNKNOWN, dtype=np.int8)
        self.cluster: Hashes = np.zeros(count, dtype=np.uint64)

    def leave(
        self,
        rows: Integers,
        reason: str | NDArray[np.object_],
        other: Integers | int = -1,
        similarity: NDArray[np.float64] | float = np.nan,
    ) -> None:
        self.reason[rows], self.other[rows], self.similarity[rows] = reason, other, similarity

    @property
    def stays(self) -> Mask:
        staying: Mask = self.reason == ""
        return staying


@dataclass(frozen=True)
class Decided:
    """Fates by row, and what they were decided by. A candidate is a row with a text to be compared."""

    fates: Fates
    units: Units  # of candidates
    rows: Integers  # (candidates,) the row of each
    texts: Integers  # (texts,) the first candidate of each
    keys: Hashes  # (texts,)
    splits: Splits  # (texts,)
    raw: Hashes  # (texts,) keys without any cleaning
    content: Hashes  # (texts,) of the row that stands for it
    known: Splits  # (texts,) what the ledger or the table itself says
    component: Integers  # (texts,) by all pairs at or above the threshold
    measured: Pairs  # of texts, also below the threshold
    foreign: Hashes  # keys of evaluations kept elsewhere that ours hold, or nearly


def decide(gathered: Gathered, signed: Signed, rules: Rules, entries: pl.DataFrame) -> Decided:
    """Fates of all rows of `gathered`.

    `signed` holds its texts first and then those of evaluations kept elsewhere; `entries` is the ledger as it
    was.
    """
    fates = _begun(gathered)
    places = np.flatnonzero(fates.stays[gathered.numbers])
    rows, keys = gathered.numbers[places], signed.keys[places]
    past = _past(gathered, places, keys, rules, entries)
    order = np.lexsort((rows, PRECEDENCE[past.split], past.standing))
    units = dedup.units(keys, gathered.answers[places], order)
    _, first = np.unique(units.text, return_index=True)
    texts = units.first[first]
    measured, near, hits, foreign = _measure(signed, places[texts], len(gathered.numbers), rules.threshold)
    pairs = dedup.between_units(units, near, across=rules.near_answers, within=rules.one_answer)

    policy = rules.conflicts if rules.one_answer else "keep"
    aside = dedup.conflicts(units, pairs, past.standing[units.first], policy)
    live = np.zeros(len(texts), dtype=bool)
    live[units.text[aside.reason == ""]] = True
    classes = gathered.classes[places[texts]]
    groups = gathered.groups[places[texts]] if len(gathered.groups) else gathered.groups
    splits, clusters = _assign(
        live, keys[texts], near, past.split[texts], classes, groups, past.shares, rules.salt
    )
    own = splits[units.text]
    _tell_duplicates(fates, units, rows, pairs, aside, own, past.misplaced(own[units.unit]))
    _tell_straddling(fates, units, rows[units.first], near, splits)
    touched = hits | _any_row(gathered.overlaps[places], units, len(texts))
    _tell_contaminated(fates, rows[units.first], touched[units.text] & (own == TRAIN))
    fates.split[rows], fates.cluster[rows] = own[units.unit], clusters[units.text[units.unit]]
    _tell_subset(fates, gathered.ids, rules)
    return Decided(
        fates=fates,
        units=units,
        rows=rows,
        texts=texts,
        keys=keys[texts],
        raw=gathered.raw[places[texts]],
        content=gathered.content[rows[texts]],
        splits=splits,
        known=past.split[texts],
        component=dedup.components(len(texts), near),
        measured=measured,
        foreign=np.union1d(foreign, gathered.parts),
    )


def _begun(gathered: Gathered) -> Fates:
    fates = Fates(len(gathered.content))
    fates.leave(np.setdiff1d(np.arange(len(gathered.content)), gathered.numbers), "filtered")
    fates.leave(gathered.numbers[gathered.repeated[gathered.numbers]], "duplicate_id")
    return fates


@dataclass(frozen=True)
class Past:
    """What is given before anything is decided, by candidate."""

    fixed: Splits  # the table's own split
    split: Splits  # that or the ledger's, UNKNOWN where there is neither
    standing: NDArray[np.int8]  # who leads and whom a contradiction spares: the lowest
    missing: tuple[int, ...]  # splits that the table does not name although it names others
    shares: Mapping[str, float]

    def misplaced(self, own: Splits) -> Mask:
        """Candidates whose text came into a split that is not the one the table fixed for them."""
        elsewhere = (self.fixed != UNKNOWN) & (own >= 0) & (own != self.fixed)
        allowed = (self.fixed == TRAIN) & np.isin(own, self.missing)
        wrong: Mask = elsewhere & ~allowed
        return wrong


def _past(gathered: Gathered, places: Integers, keys: Hashes, rules: Rules, entries: pl.DataFrame) -> Past:
    """The table's own splits and the ledger's; a split that the table does not name takes its share of the
    table's train."""
    fixed, content = gathered.fixed[places], gathered.content[gathered.numbers[places]]
    known = ledger.known(entries, keys, gathered.raw[places], salt=rules.salt)
    named = set(np.unique(fixed[fixed != UNKNOWN]).tolist())
    missing = tuple(number for number in range(len(SPLITS)) if number not in named) if named else ()
    free = (fixed == UNKNOWN) if not missing else (fixed == UNKNOWN) | (fixed == TRAIN)
    usable = free & ((fixed == UNKNOWN) | np.isin(known.splits, (TRAIN, *missing)))
    before = np.where(free, np.where(usable, known.splits, UNKNOWN), fixed).astype(np.int8)
    old = (known.content == content) & (before != UNKNOWN)
    standing = np.where(old | (fixed != UNKNOWN), PRECEDENCE[np.where(fixed != UNKNOWN, fixed, before)], NEW)
    shares = rules.shares
    if named:
        shares = {name: shares[name] if number in missing else 0.0 for number, name in enumerate(SPLITS)}
    return Past(fixed, before, standing.astype(np.int8), missing, shares)


def _measure(
    signed: Signed, ours: Integers, count: int, threshold: float
) -> tuple[Pairs, Pairs, Mask, Hashes]:
    """Measured pairs of our texts, those of them at the threshold, which of ours evaluations elsewhere hold,
    and under which keys. Texts from place `count` of `signed` on are theirs."""
    own = len(ours)
    _, first = np.unique(signed.keys[count:], return_index=True)
    theirs = count + first[~np.isin(signed.keys[count + first], signed.keys[ours])]
    measured = dedup.measured_pairs(signed, np.concatenate([ours, theirs]), threshold=threshold)
    inside = measured.chosen(measured.right < own)
    near = measured.similarity >= threshold
    across = measured.chosen(near & (measured.left < own) & (measured.right >= own))
    same = np.isin(signed.keys[ours], signed.keys[count:])
    pairs = inside.chosen(inside.similarity >= threshold)
    hits = same.copy()
    for places in (across.left, pairs.left[same[pairs.right]], pairs.right[same[pairs.left]]):
        hits[places] = True
    foreign = np.unique(np.concatenate([signed.keys[ours][same], signed.keys[theirs[across.right - own]]]))
    return inside, pairs, hits, foreign


def _assign(
    live: Mask,
    keys: Hashes,
    near: Pairs,
    known: Splits,
    classes: NDArray[np.object_],
    groups: Hashes,
    shares: Mapping[str, float],
    salt: str,
) -> split.Assigned:
    """Splits of the texts that have a row left; what is set aside ties nothing together."""
    number = np.cumsum(live) - 1
    both = near.chosen(live[near.left] & live[near.right])
    assigned = split.assign(
        keys[live],
        Pairs(number[both.left], number[both.right], both.similarity),
        known[live],
        classes[live].tolist(),
        groups=groups[live] if len(groups) else groups,
        shares=shares,
        salt=salt,
    )
    splits, clusters = np.full(len(live), UNKNOWN, dtype=np.int8), keys.copy()
    splits[live], clusters[live] = assigned
    return split.Assigned(splits, clusters)


def _any_row(flags: Mask, units: Units, texts: int) -> Mask:
    found = np.zeros(texts, dtype=bool)
    found[units.text[units.unit[flags]]] = True
    return found


def _tell_duplicates(
    fates: Fates,
    units: Units,
    rows: Integers,
    pairs: Pairs,
    aside: dedup.Aside,
    own: Splits,
    misplaced: Mask,
) -> None:
    first = rows[units.first]
    later = np.ones(len(rows), dtype=bool)
    later[units.first] = False
    fates.leave(rows[later], "exact_duplicate", first[units.unit[later]], 1.0)

    held = own == HELD_OUT
    gone = held | (aside.reason != "") | misplaced[units.first]
    led = dedup.leaders(len(units.first), pairs, gone=gone)
    follows = np.flatnonzero(led.leader >= 0)
    lead = led.leader[follows]
    reason = np.where(own[follows] == own[lead], "near_duplicate", "straddles_splits").astype(object)
    reason[(units.text[follows] == units.text[lead]) & (own[follows] == own[lead])] = "exact_duplicate"
    fates.leave(first[follows], reason, first[lead], led.similarity[follows])

    _, head = np.unique(units.text, return_index=True)
    fates.leave(rows[misplaced], "straddles_splits", first[head[units.text[units.unit[misplaced]]]], 1.0)
    fates.leave(rows[held[units.unit]], "bridges_splits")
    out = (aside.reason != "")[units.unit]
    unit = units.unit[out]
    rival = np.where(aside.rival[unit] >= 0, first[aside.rival[unit]], -1)
    fates.leave(rows[out], aside.reason[unit], rival, aside.similarity[unit])


def _tell_straddling(fates: Fates, units: Units, first: Integers, near: Pairs, splits: Splits) -> None:
    """Of two texts that stay in different splits that of the lesser split goes: never the test row."""
    stays = np.zeros(len(splits), dtype=bool)
    stays[units.text[fates.stays[first]]] = True
    across = near.chosen((splits[near.left] != splits[near.right]) & stays[near.left] & stays[near.right])
    later = PRECEDENCE[splits[across.left]] < PRECEDENCE[splits[across.right]]
    goes, leads = np.where(later, across.right, across.left), np.where(later, across.left, across.right)
    _, head = np.unique(units.text, return_index=True)
    why, similarity = np.full(len(splits), -1, dtype=np.int64), np.full(len(splits), np.nan)
    why[goes], similarity[goes] = first[head[leads]], across.similarity
    out = np.flatnonzero((why[units.text] >= 0) & fates.stays[first])
    fates.leave(first[out], "straddles_splits", why[units.text[out]], similarity[units.text[out]])


def _tell_contaminated(fates: Fates, first: Integers, hit: Mask) -> None:
    fates.leave(first[hit & fates.stays[first]], "contaminates_evaluation")


def _tell_subset(fates: Fates, ids: pl.Series, rules: Rules) -> None:
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(fates.stays & (fates.split == number))
        beyond = split.outside_subset(ids.gather(rows).to_list(), rules.limits[name], salt=rules.salt)
        fates.leave(rows[beyond], "outside_subset")
