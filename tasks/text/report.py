"""The preparation as one page of HTML that needs nothing else: no script, no font, no network."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.artifacts import SPLITS
from tasks.text.sources import Document, Quarantined
from tasks.text.split import Row, position

SHOWN = 10  # clusters, conflicts and rewritten texts
VARIANTS = 4  # different texts shown of one cluster
CHARACTERS = 280  # of a text
BARS = 24  # of the length histogram
REASONS: Mapping[str, str] = {  # in the order in which rows leave
    "undecodable": "set aside: a byte is no character in the file's encoding",
    "unclosed_quote": "set aside: a quotation mark is opened and never properly closed",
    "malformed": "set aside: not a CSV record",
    "missing_columns": "set aside: fewer fields than the header",
    "extra_columns": "set aside: more fields than the header",
    "repeated_header": "set aside: the header again",
    "no_label": "set aside: no label",
    "too_short": "dropped: fewer characters than the minimum",
    "too_long": "dropped: more characters than the maximum",
    "conflicting_labels": "set aside: a duplicate bears another label",
    "exact_duplicate": "dropped: same words as an earlier row",
    "near_duplicate": "dropped: nearly the same words as a row that stays",
    "outside_subset": "dropped: beyond the declared subset",
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
    """All that the page says, as plain values."""

    reference: str
    licence: str
    rows_in: int
    repaired: int
    reasons: Mapping[str, int]  # reason -> rows that left for it
    changed: Mapping[str, int]  # cleaning step -> rows it changed
    rows: Sequence[Row]
    labels: Sequence[str]
    largest: Sequence[Cluster]
    conflicts: Sequence[Cluster]
    clashes: int  # clusters with conflicting labels, shown or not
    rewritten: Sequence[tuple[str, str]]  # before and after cleaning
    unread: Sequence[Quarantined]  # rows that the reader set aside
    limits: Mapping[str, int | None]  # split -> declared limit
    threshold: float
    shingle: int


def render(facts: Facts) -> str:
    """The page; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.jinja").render(
        facts=facts,
        funnel=funnel(facts.rows_in, facts.reasons),
        splits={split: sum(row.split == split for row in facts.rows) for split in SPLITS},
        balance=Counter((row.label, row.split) for row in facts.rows),
        histogram=histogram([len(row.text) for row in facts.rows]),
        subset=subset_sentence(facts.limits),
    )


def funnel(rows_in: int, reasons: Mapping[str, int]) -> list[tuple[str, str, int, int]]:
    """(reason, what it means, rows that left, rows that remain), in the order in which rows leave."""
    steps, remain = [], rows_in
    for reason, meaning in REASONS.items():
        if left := reasons.get(reason, 0):
            remain -= left
            steps.append((reason, meaning, left, remain))
    return steps


def histogram(lengths: Sequence[int]) -> list[tuple[str, int]]:
    """Equal steps up to the length that 99 % do not exceed, and one bar for the rest: (range, rows)."""
    ordered = sorted(lengths)
    most = ordered[math.ceil(0.99 * len(ordered)) - 1]
    step = max(1, math.ceil(most / BARS))
    counts = Counter(min((length - 1) // step, most // step + 1) for length in lengths)
    last = max(counts)
    names = [f"{bar * step + 1}–{(bar + 1) * step}" for bar in range(last + 1)]
    if last * step >= most:
        names[last] = f"over {last * step}"
    return [(name, counts[bar]) for bar, name in enumerate(names)]


def subset_sentence(limits: Mapping[str, int | None]) -> str:
    """What a reader must know before comparing figures with those of all rows."""
    declared = [f"{limits[split]:,} {split}" for split in SPLITS if limits.get(split)]
    if not declared:
        return "All rows that survived are used."
    return (
        f"This run uses a declared subset, at most {', '.join(declared)} rows chosen by a hash of their ids, "
        "to keep it short; set the counts of preparation.subset to null to use all rows."
    )


def cluster_stories(
    documents: Iterable[Document], clusters: Mapping[str, str], fates: Mapping[str, str]
) -> list[Cluster]:
    """The clusters of two rows or more, largest first; `fates` says what became of each document id."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        if document.id in clusters:
            groups.setdefault(clusters[document.id], []).append(document)
    ordered = sorted(groups.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return [_story(members, fates) for _, members in ordered if len(members) > 1]


def _story(members: Sequence[Document], fates: Mapping[str, str]) -> Cluster:
    texts = Counter(document.text[:CHARACTERS] for document in members).most_common()
    labels = Counter(document.label for document in members).most_common()
    fate = Counter(fates[document.id] for document in members).most_common()
    return Cluster(
        size=len(members),
        labels=dict(labels),
        texts=texts[:VARIANTS],
        more=max(0, len(texts) - VARIANTS),
        fate=", ".join(f"{count} {name}" for name, count in fate),
    )


def rewritten(before: Iterable[Document], after: Iterable[Document]) -> list[tuple[str, str]]:
    """Some texts that cleaning changed, those changed in more than white space first, else by hash."""
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old.text != new.text]
    changed.sort(key=lambda pair: (_only_spaces(*pair), position(pair[0].id, "rewritten")))
    return [(old.text[:CHARACTERS], new.text[:CHARACTERS]) for old, new in changed[:SHOWN]]


def _only_spaces(old: Document, new: Document) -> bool:
    return old.text.split() == new.text.split()
