"""The gate's verdict as one page of Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.evaluation.gate.checks import Check, decimal, p_text
from tasks.pages import visible

MARKS = {"promote": "yes", "hold": "**no**", "reject": "**worse**"}


@dataclass(frozen=True)
class Facts:
    """What the page shows. judged_against, champion: versions, or None; the champion is that of now."""

    model: str
    version: str
    outcome: str
    reasons: Sequence[str]
    checks: Sequence[Check]
    judged_against: str | None
    champion: str | None


def render(facts: Facts) -> str:
    """The page; equal facts give equal bytes."""
    parts = [
        f"# {facts.outcome}: {facts.model} version {facts.version}",
        *_reasons(facts),
        f"Judged against the champion: {_version(facts.judged_against)}. "
        f"Champion now: {_version(facts.champion)}.",
        *_conditions(facts.checks),
        *_comparisons(facts.checks),
        *_slices(facts.checks),
        "To make the champion before this one champion again: `regraft rollback`.",
    ]
    return "\n\n".join(parts) + "\n"


def unfinished(why: str) -> str:
    """The page where there is no verdict."""
    return (
        f"# hold: the gate did not end\n\n- {_plain(why)}\n\nWhich version is champion: `regraft status`.\n"
    )


def _reasons(facts: Facts) -> list[str]:
    """Those that the table of conditions does not tell as well: a person's, and what stands in the way."""
    held = {check.sentence for check in facts.checks if check.outcome == "promote"}
    told = [f"- {_plain(reason)}" for reason in facts.reasons if reason not in held]
    return ["\n".join(told)] if told else []


def _conditions(checks: Sequence[Check]) -> list[str]:
    rows = [(check.name, _mark(check), check.sentence) for check in checks]
    return ["## Conditions", _table(("condition", "holds", "in numbers"), rows)] if rows else []


def _mark(check: Check) -> str:
    return MARKS[check.outcome] if check.figures or check.outcome == "promote" else "**not known**"


def _comparisons(checks: Sequence[Check]) -> list[str]:
    """The paired tests: one line a rival."""
    rows = [
        (
            check.name,
            decimal(got["score"]),
            decimal(got["other"]),
            decimal(got["difference"], "+"),
            f"{decimal(got['low'], '+')} to {decimal(got['high'], '+')}",
            p_text(got["p_value"]),
            decimal(got["detectable"]),
            f"{got['rows']:,.0f}",
        )
        for check in checks
        if "p_value" in (got := check.figures)
    ]
    header = ("against", "ours", "theirs", "difference", "interval", "p", "detectable", "rows")
    return ["## Paired tests", _table(header, rows)] if rows else []


def _slices(checks: Sequence[Check]) -> list[str]:
    rows = [(part.name, _part(part), part.sentence) for check in checks for part in check.parts]
    return ["## Slices", _table(("slice", "holds", "in numbers"), rows)] if rows else []


def _part(part: Check) -> str:
    return MARKS[part.outcome] if part.figures else "no evidence"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """In one line, and in one cell of a table."""
    return visible(" ".join(text.split())).replace("|", "\\|")


def _version(number: str | None) -> str:
    return f"version {number}" if number else "none"
