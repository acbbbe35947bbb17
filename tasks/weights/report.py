"""The conversion as one page of HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import pages
from tasks.weights.picture import Picture
from tasks.weights.plan import ACTIONS, USUAL


@dataclass(frozen=True)
class Facts:
    """What the page shows. rows: as `Plan.rows()` gives them; proofs: level -> sentence.

    padding: what the head takes for it, where it has to tell.
    picture: of the embedding table, where it does not stay as it is.
    """

    reference: str
    source: str  # digest
    licence: str
    family: str
    architecture: str
    dtype: str
    labels: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    proofs: Mapping[str, str]
    padding: str = ""
    picture: Picture | None = None


@dataclass(frozen=True)
class Total:
    action: str
    tensors: int
    parameters: int
    share: str  # of the converted model


@dataclass(frozen=True)
class Applied:
    rule: str
    action: str
    tensors: int
    parameters: int


def render(facts: Facts) -> str:
    rows = facts.rows
    return pages.render(
        Path(__file__).with_name("report.jinja"),
        facts=facts,
        totals=totals(rows),
        headline=headline(rows),
        applied=applied(rows),
    )


def totals(rows: Sequence[Mapping[str, Any]]) -> list[Total]:
    whole = sum(row["parameters"] for row in rows if row["action"] != "dropped")
    found = []
    present = {row["action"] for row in rows}.union(USUAL)
    for action in filter(present.__contains__, ACTIONS):
        parameters = [row["parameters"] for row in rows if row["action"] == action]
        share = "" if action == "dropped" else percent(sum(parameters), whole)
        found.append(Total(action, len(parameters), sum(parameters), share))
    return found


def applied(rows: Sequence[Mapping[str, Any]]) -> list[Applied]:
    """The rules in the order of the rows they made."""
    by_rule: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        by_rule.setdefault((row["rule"], row["action"]), []).append(row["parameters"])
    return [Applied(*names, len(parameters), sum(parameters)) for names, parameters in by_rule.items()]


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    by_action = {total.action: total for total in totals(rows)}
    kept = sum(
        total.parameters for total in by_action.values() if total.action not in ("initialised", "dropped")
    )
    fresh, dropped = by_action["initialised"], by_action["dropped"]
    whole = kept + fresh.parameters
    return (
        f"{percent(kept, whole)} of the model's {whole:,} parameters come from the checkpoint; "
        f"{fresh.parameters:,} are new; unused tensors: {dropped.tensors}."
    )


def percent(part: int, whole: int) -> str:
    """Never rounded up to 100 % or down to 0 %: a single new parameter must show."""
    share = 100 * part / whole if whole else 0.0
    if 0 < part < whole:
        share = min(max(share, 0.001), 99.999)
    return f"{share:.3f} %" if 0 < part < whole else f"{share:.0f} %"
