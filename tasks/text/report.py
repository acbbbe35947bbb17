"""The preparation as one page of HTML."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tasks import pages
from tasks.artifacts import SPLITS
from tasks.errors import ArtifactError, did_you_mean
from tasks.text.clean import Example

CHARACTERS = 280  # of a text
BARS = 24  # of a length histogram
CLASSES = 40  # lines of the table of classes
BIN = 0.05  # of similarity


class Reason(NamedTuple):
    step: str
    meaning: str


REASONS: Mapping[str, Reason] = {  # in the order in which rows leave
    "undecodable": Reason("reading", "set aside: a byte is no character in the file's encoding"),
    "unclosed_quote": Reason("reading", "set aside: a quotation mark is opened and never properly closed"),
    "malformed": Reason("reading", "set aside: not a record of the file's format"),
    "missing_columns": Reason("reading", "set aside: a field is missing"),
    "extra_columns": Reason("reading", "set aside: more fields than the header"),
    "repeated_header": Reason("reading", "set aside: the header again"),
    "duplicate_key": Reason("reading", "set aside: a key twice in one object"),
    "lone_surrogate": Reason("reading", "set aside: half a character (a lone surrogate)"),
    "too_large": Reason("reading", "set aside: more bytes than a row may have"),
    "wrong_type": Reason("reading", "set aside: a value of another type than its column's"),
    "no_text": Reason("reading", "set aside: no text"),
    "no_label": Reason("reading", "set aside: no label"),
    "not_a_number": Reason("reading", "set aside: the score is no finite number"),
    "tags_mismatch": Reason("reading", "set aside: not one tag for each token"),
    "span_mismatch": Reason("reading", "set aside: the answer does not stand where it is said to"),
    "bad_messages": Reason("reading", "set aside: the messages are no conversation to learn from"),
    "nothing_to_split": Reason("reading", "set aside: too few words to make a prefix and a remainder"),
    "unknown_split": Reason("reading", "set aside: a split of another name than train, validation, test"),
    "no_id": Reason("reading", "set aside: no id"),
    "duplicate_id": Reason("reading", "set aside: another row bears this id"),
    "forgotten": Reason("forgetting", "removed for good: on the list of rows to forget"),
    "too_short": Reason("filters", "dropped: fewer characters than the minimum"),
    "empty_answer": Reason("filters", "dropped: nothing but white space where an answer should stand"),
    "too_long": Reason("filters", "dropped: more characters than the maximum"),
    "too_many_symbols": Reason("filters", "dropped: a larger share of symbols than allowed"),
    "other_language": Reason("filters", "dropped: surely in another language than those asked for"),
    "outside_labels": Reason("filters", "dropped: a label that is not declared"),
    "conflicting_labels": Reason("duplicates", "set aside: a duplicate bears another label"),
    "minority_label": Reason("duplicates", "dropped: most of its duplicates bear another label"),
    "exact_duplicate": Reason("duplicates", "dropped: same words as a row that stays"),
    "near_duplicate": Reason("duplicates", "dropped: nearly the same words as a row that stays"),
    "bridges_splits": Reason("splits", "held out: like rows of two splits, which stay where they are"),
    "straddles_splits": Reason(
        "splits", "dropped from train: like a row of the fixed validation or test set"
    ),
    "contaminates_evaluation": Reason("splits", "dropped from train: found in an evaluation kept elsewhere"),
    "outside_subset": Reason("subset", "dropped: beyond the declared subset"),
}


@dataclass(frozen=True)
class Cluster:
    """Duplicates of one another: different texts with how often each occurs, labels, what became of them."""

    size: int
    labels: Mapping[str, int]
    texts: Sequence[tuple[str, int]]
    more: int  # different texts beyond those shown
    fate: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the page says, as plain values; of rows only counts and examples."""

    reference: str
    licence: str
    kind: str
    rows_in: int
    repaired: int
    reasons: Mapping[str, int]  # reason -> rows that left for it
    changed: Mapping[str, int]  # cleaning step -> rows it changed
    examples: Sequence[Example]  # before and after cleaning
    balance: Mapping[tuple[str, str], int]  # (class, split) -> rows that stay
    labels: Sequence[str]
    lengths: Mapping[str, Sequence[tuple[int, int]]]  # split -> (characters, rows)
    largest: Sequence[Cluster]
    conflicts: Sequence[Cluster]
    clashes: int  # clusters with conflicting labels, shown or not
    crossing: Mapping[str, Sequence[tuple[float, int]]]  # "train–test" -> (similarity from, measured pairs)
    closest: Sequence[tuple[float, str, str, str, str]]  # similarity, split, text, split, text
    straddling: int  # pairs of rows that stay, across splits, at the threshold or above: must be 0
    ledger: Mapping[str, int]  # what the ledger knew, learnt and held out -> texts
    contamination: Sequence[tuple[str, int, int]]  # evaluation kept elsewhere, its rows, those found here
    unread: Sequence[Mapping[str, str]]  # place, reason, detail and raw of rows that were set aside
    limits: Mapping[str, int | None]  # split -> declared limit
    threshold: float
    shingle: int
    bands: int
    rows_per_band: int
    detached: int = 0  # rows that stay in which a tag I-X follows neither B-X nor I-X


class Left(NamedTuple):
    """The rows that left for one reason, and how many remained after."""

    reason: str
    meaning: str
    rows: int
    remain: int


def render(facts: Facts) -> str:
    """The page; every text is escaped. Raises ArtifactError for a reason that REASONS does not explain."""
    splits = {split: sum(n for (_, s), n in facts.balance.items() if s == split) for split in SPLITS}
    ranges, histograms = histogram(facts.lengths)
    return pages.render(
        Path(__file__).with_name("report.jinja"),
        facts=facts,
        funnel=funnel(facts.rows_in, facts.reasons),
        splits=splits,
        used=sum(splits.values()),
        balance=Counter(facts.balance),
        classes=classes(facts.balance, facts.labels),
        ranges=ranges,
        histograms=histograms,
        tallest=max((max(counts) / sum(counts) for counts in histograms.values() if any(counts)), default=0),
        marked=[marked(example.before, example.after) for example in facts.examples],
        curve=[(share / 50, found(share / 50, facts.bands, facts.rows_per_band)) for share in range(51)],
        caught=found(facts.threshold, facts.bands, facts.rows_per_band),
        subset=subset_sentence(facts.limits),
        CLASSES=CLASSES,
        CHARACTERS=CHARACTERS,
        BIN=BIN,
        log=math.log1p,
    )


def funnel(rows_in: int, reasons: Mapping[str, int]) -> list[tuple[str, list[Left]]]:
    """(step, its reasons) in the order in which rows leave. Raises ArtifactError for an unknown reason."""
    for reason in reasons:
        if reason not in REASONS:
            raise ArtifactError(
                f"the report cannot explain rows that left for {reason!r}; {did_you_mean(reason, REASONS)}: "
                "add the reason to REASONS in tasks/text/report.py"
            )
    left, remain = [], rows_in
    for reason, (step, meaning) in REASONS.items():
        if rows := reasons.get(reason, 0):
            remain -= rows
            left.append((step, Left(reason, meaning, rows, remain)))
    return [(step, [item for _, item in items]) for step, items in groupby(left, key=lambda entry: entry[0])]


def classes(balance: Mapping[tuple[str, str], int], labels: Sequence[str]) -> list[str]:
    """The classes of rows that stay: first `labels` in their order, then others (such as sets of labels), the
    commonest first; none where the only class has no name."""
    rows: Counter[str] = Counter()
    for (name, _), count in balance.items():
        rows[name] += count
    known = [name for name in labels if name in rows]
    others = sorted(rows.keys() - set(known), key=lambda name: (-rows[name], name))
    return [] if rows.keys() <= {""} else known + others


def histogram(
    lengths: Mapping[str, Sequence[tuple[int, int]]],
) -> tuple[list[str], dict[str, list[int]]]:
    """Ranges of characters, and split -> rows in each: equal steps up to the length that 99 % of all rows do
    not exceed, and one range for the rest."""
    most = _quantile(sorted(pair for pairs in lengths.values() for pair in pairs), 0.99)
    step = max(1, math.ceil(most / BARS))
    last = math.ceil(most / step)
    longest = max((characters for pairs in lengths.values() for characters, _ in pairs), default=0)
    bars = last + (longest > last * step)
    counts = {split: [0] * bars for split in lengths}
    for split, pairs in lengths.items():
        for characters, rows in pairs:
            counts[split][min(max(0, characters - 1) // step, bars - 1)] += rows
    ranges = [f"{bar * step + 1}–{(bar + 1) * step}" for bar in range(last)]
    return ranges + [f"over {last * step}"] * (bars - last), counts


def _quantile(pairs: Sequence[tuple[int, int]], share: float) -> int:
    """The smallest value that `share` of all do not exceed, of sorted (value, how often); at least 1."""
    wanted, seen = share * sum(count for _, count in pairs), 0
    for value, count in pairs:
        seen += count
        if seen >= wanted:
            return max(1, value)
    return 1


def found(similarity: float, bands: int, rows: int) -> float:
    """Probability that two texts of this Jaccard similarity agree in all rows of a band at least once
    (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, 3.4.2)."""
    return 1 - (1 - similarity**rows) ** bands


def subset_sentence(limits: Mapping[str, int | None]) -> str:
    """What a reader must know before comparing figures with those of all rows."""
    declared = [f"{limits[split]:,} {split}" for split in SPLITS if limits.get(split)]
    if not declared:
        return "All rows that survived are used."
    return (
        f"This run uses a declared subset, at most {', '.join(declared)} rows chosen by a hash of their ids, "
        "to keep it short; set the counts of preparation.subset to null to use all rows."
    )


def marked(before: str, after: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both texts in pieces, each with whether the other text lacks it."""
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    old: list[tuple[str, bool]] = []
    new: list[tuple[str, bool]] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        old.append((before[a:b], kind != "equal"))
        new.append((after[c:d], kind != "equal"))
    return [piece for piece in old if piece[0]], [piece for piece in new if piece[0]]
