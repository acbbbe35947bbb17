"""Drift as one page of HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import pages
from tasks.drift.measures import LEVEL, RESAMPLES, Measure

MEANINGS: Mapping[str, str] = {
    "length": "shares of rows between the deciles of length: Jensen-Shannon divergence in bits",
    "words": "frequencies of words: Jensen-Shannon divergence in bits; shown are the words that differ most",
    "classes": "shares of classes: Jensen-Shannon divergence in bits",
    "scores": "shares of rows between the deciles of the score: Jensen-Shannon divergence in bits",
    "states": "energy distance of what the checkpoint makes of the texts, as a share of the largest",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the page says. rows: of the table; `new` of them were not there before, of which `passed` the
    filters. silent: measure -> why it tells nothing."""

    table: str
    rows: int
    new: int
    passed: int
    measures: Sequence[Measure]
    silent: Mapping[str, str]


def render(facts: Facts) -> str:
    """The page; every text is escaped."""
    return pages.render(
        Path(__file__).with_name("report.jinja"),
        facts=facts,
        headline=headline(facts.new, facts.rows, facts.measures),
        meanings=MEANINGS,
        level=LEVEL,
        resamples=RESAMPLES,
    )


def headline(new: int, rows: int, measures: Sequence[Measure]) -> str:
    """What it comes to, in a sentence."""
    said = f"{new:,} of {rows:,} rows are new"
    if not measures:
        return f"{said}."
    unlike = [one.name for one in measures if one.differs]
    alike = [one.name for one in measures if not one.differs]
    told = [f"unlike the training rows in {', '.join(unlike)}"] if unlike else []
    told += [f"alike in {', '.join(alike)}"] if alike else []
    return f"{said}: {'; '.join(told)}."
