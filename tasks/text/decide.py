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
PRECEDENCE = np.array(
    [2, 1, 0, 3], dtype=np.int8
)  # test leads validation, that leads train; new texts follow


@dataclass(frozen=True)
class Rules:
    """How to decide, as plain values."""

    threshold: float
    conflicts: dedup.Conflicts
    one_answer: bool  # a text with two answers is a conflict; else both stay, in one split
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
    known: Splits  # (texts,) what the ledger or the table itself says
    component: Integers  # (texts,) by all pairs at or above the threshold
    measured: Pairs  # of texts, also below the threshold
    foreign: Hashes  # keys of evaluations kept elsewhere that ours hold, or nearly


def decide(gathered: Gathered, signed: Signed, rules: Rules, entries: pl.DataFrame) -> Decided:
    """Fates of all rows of `gathered`.

    `signed` holds its texts first and then those of evaluations kept elsewhere; `entries` is the ledger as it
    was.
    """
    fates = Fates(len(gathered.content))
    fates.leave(np.setdiff1d(np.arange(len(gathered.content)), gathered.numbers), "filtered")
    fates.leave(gathered.numbers[gathered.repeated[gathered.numbers]], "duplicate_id")
    places = np.flatnonzero(fates.stays[gathered.numbers])
    rows, keys = gathered.numbers[places], signed.keys[places]
    given, shares = _given(gathered.fixed[places], rules.shares)
    before = np.where(given == UNKNOWN, ledger.known(entries, keys, salt=rules.salt), given)
    units = dedup.units(keys, gathered.answers[places], np.lexsort((rows, PRECEDENCE[before])))
    _, first = np.unique(units.text, return_index=True)
    texts = units.first[first]
    measured, near, hits, foreign = _measure(signed, places[texts], len(gathered.numbers), rules.threshold)
    pairs = dedup.between_units(units, near)

    aside = dedup.conflicts(units, pairs, rules.conflicts if rules.one_answer else "keep")
    live = np.zeros(len(texts), dtype=bool)
    live[units.text[aside.reason == ""]] = True
    splits = _assign(
        live, keys[texts], near, before[texts], gathered.classes[places[texts]], shares, rules.salt
    )
    own = splits[units.text]
    _tell_duplicates(fates, units, rows, pairs, aside, own, one_answer=rules.one_answer)
    _tell_straddling(fates, rows[units.first], pairs, own)
    touched = hits | _any_row(gathered.overlaps[places], units, len(texts))
    _tell_contaminated(fates, rows[units.first], touched[units.text] & (own == TRAIN))

    component = dedup.components(len(texts), near)
    fates.split[rows] = own[units.unit]
    fates.cluster[rows] = dedup.smallest(keys[texts], component)[units.text[units.unit]]
    _tell_subset(fates, gathered.ids, rules)
    return Decided(
        fates, units, rows, texts, keys[texts], splits, before[texts], component, measured, foreign
    )


def _given(fixed: Splits, shares: Mapping[str, float]) -> tuple[Splits, Mapping[str, float]]:
    """The table's own splits; one that it does not name takes its share of the table's train."""
    present = {SPLITS[number] for number in np.unique(fixed[fixed != UNKNOWN])}
    if not present:
        return fixed, shares
    missing = set(SPLITS) - present
    free = {name: share if name in missing else 0.0 for name, share in shares.items()}
    return np.where((fixed == TRAIN) & bool(missing), UNKNOWN, fixed).astype(np.int8), free


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
    hits = np.isin(signed.keys[ours], signed.keys[count:])
    same = signed.keys[ours][hits]
    hits[across.left] = True
    foreign = np.unique(np.concatenate([same, signed.keys[theirs[across.right - own]]]))
    return inside, inside.chosen(inside.similarity >= threshold), hits, foreign


def _assign(
    live: Mask,
    keys: Hashes,
    near: Pairs,
    known: Splits,
    classes: NDArray[np.object_],
    shares: Mapping[str, float],
    salt: str,
) -> Splits:
    """Splits of the texts that have a row left; what is set aside ties nothing together."""
    number = np.cumsum(live) - 1
    both = near.chosen(live[near.left] & live[near.right])
    among = Pairs(number[both.left], number[both.right], both.similarity)
    splits = np.full(len(live), UNKNOWN, dtype=np.int8)
    splits[live] = split.assign(
        keys[live], among, known[live], classes[live].tolist(), shares=shares, salt=salt
    )
    return splits


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
    *,
    one_answer: bool,
) -> None:
    first = rows[units.first]
    later = np.ones(len(rows), dtype=bool)
    later[units.first] = False
    fates.leave(rows[later], "exact_duplicate", first[units.unit[later]], 1.0)

    held = own == HELD_OUT
    comparable = one_answer | (units.answer[pairs.left] == units.answer[pairs.right])
    gone = held | (aside.reason != "")
    led = dedup.leaders(len(units.first), pairs.chosen(comparable), gone=gone)
    follows = np.flatnonzero(led.leader >= 0)
    lead = led.leader[follows]
    reason = np.where(own[follows] == own[lead], "near_duplicate", "straddles_splits").astype(object)
    reason[(units.text[follows] == units.text[lead]) & (own[follows] == own[lead])] = "exact_duplicate"
    fates.leave(first[follows], reason, first[lead], led.similarity[follows])

    whole = held[units.unit]
    fates.leave(rows[whole], "bridges_splits")
    out = (aside.reason != "")[units.unit]
    unit = units.unit[out]
    rival = np.where(aside.rival[unit] >= 0, first[aside.rival[unit]], -1)
    fates.leave(rows[out], aside.reason[unit], rival, aside.similarity[unit])


def _tell_straddling(fates: Fates, first: Integers, pairs: Pairs, own: Splits) -> None:
    """Of two units that stay in different splits the one of the lesser split goes: never the test row."""
    across = pairs.chosen(
        (own[pairs.left] != own[pairs.right])
        & fates.stays[first[pairs.left]]
        & fates.stays[first[pairs.right]]
    )
    later = PRECEDENCE[own[across.left]] < PRECEDENCE[own[across.right]]
    goes, stays = np.where(later, across.right, across.left), np.where(later, across.left, across.right)
    fates.leave(first[goes], "straddles_splits", first[stays], across.similarity)


def _tell_contaminated(fates: Fates, first: Integers, hit: Mask) -> None:
    fates.leave(first[hit & fates.stays[first]], "contaminates_evaluation")


def _tell_subset(fates: Fates, ids: pl.Series, rules: Rules) -> None:
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(fates.stays & (fates.split == number))
        beyond = split.outside_subset(ids.gather(rows).to_list(), rules.limits[name], salt=rules.salt)
        fates.leave(rows[beyond], "outside_subset")
