"""A verdict in its place: what the gate said of a candidate beside a champion, as a version keeps it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Self

from tasks.evaluation.gate.checks import Check
from tasks.tracking.registry import Version

TAG = "regraft.verdict"  # of a version
LARGEST = 50_000  # characters of a verdict kept whole; MLflow takes 100,000
KEPT_PARTS = 50


@dataclass(frozen=True)
class Ruling:
    """`basis` is the digest of all that it rests on, empty if it may differ next time."""

    outcome: str
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    candidate: str  # version
    champion: str | None  # version that the candidate was judged against
    basis: str = ""
    moved: bool = False  # this verdict has moved the alias, now or before

    @property
    def figures(self) -> Mapping[str, float]:
        """Under flat names: champion.p_value and the like."""
        return {
            f"{check.name.replace(' ', '_')}.{name}": value
            for check in self.checks
            for name, value in check.figures.items()
        }

    def written(self) -> str:
        """As JSON; of many slices only some that reject, where all would be more than a tag holds."""
        whole = json.dumps(asdict(self), ensure_ascii=False)
        if len(whole) <= LARGEST:
            return whole
        checks = tuple(
            replace(check, parts=tuple(part for part in check.parts if part.outcome == "reject")[:KEPT_PARTS])
            for check in self.checks
        )
        return json.dumps(asdict(replace(self, checks=checks)), ensure_ascii=False)

    @classmethod
    def of(cls, version: Version) -> Self | None:
        """What `written` left on this version; None where it was not judged yet."""
        if TAG not in version.tags:
            return None
        kept = json.loads(version.tags[TAG])
        reasons, checks = tuple(kept.pop("reasons")), tuple(map(Check.read, kept.pop("checks", ())))
        return cls(**kept, reasons=reasons, checks=checks)
