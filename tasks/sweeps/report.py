"""A sweep as one page of HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from tasks import pages
from tasks.sweeps import pictures
from tasks.sweeps.results import Result

Figure = Mapping[str, float]  # value, low, high


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the page says. ranked: best first, failed ones last. tested: metric -> the winner's figure on
    the test rows; empty where every trial failed."""

    ranked: Sequence[Result]
    select: str
    tested: Mapping[str, Figure]
    confidence: float
    shared: str  # what every trial has in common: preset, assignments
    remedy: str  # the command that makes the winner the project's own


def render(facts: Facts) -> str:
    """The page. Every text is escaped; the picture alone is taken as it is."""
    good = [result for result in facts.ranked if not result.failure]
    varied = list(facts.ranked[0].changes)
    drawn = pictures.trials(good, facts.select) if len(good) > 1 and varied else ""
    return pages.render(
        Path(__file__).with_name("report.jinja"),
        facts=facts,
        headline=headline(facts),
        keys={key: pictures.short(key) for key in varied},
        figures=list(good[0].figures) if good else [],
        picture=Markup(drawn.replace(pictures.INK, "currentColor").replace(pictures.PAPER, "var(--card)")),
        failed=[result for result in facts.ranked if result.failure],
    )


def headline(facts: Facts) -> str:
    """What the sweep comes to, in a sentence or two."""
    best = facts.ranked[0]
    failed = sum(bool(result.failure) for result in facts.ranked)
    if best.failure:
        return f"All {failed} trials failed." if failed > 1 else "The only trial failed."
    count = f"Best of {len(facts.ranked)} trials" if len(facts.ranked) > 1 else "The only trial"
    what = ", ".join(f"{pictures.short(key)} {value}" for key, value in best.changes.items())
    said = f"{count} by validation {facts.select}, {best.figures[facts.select]:.4f}"
    said += f": {what}." if what else "."
    return f"{said} {failed} failed." if failed else said
