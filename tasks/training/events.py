"""What a training tells while it goes on: kept in the resume point, and told again from there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tasks.training.loop import Step


@dataclass(frozen=True)
class Measure:
    """Validation figures after `step` steps of a phase, at the end of an epoch."""

    phase: str
    step: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """How far each floor has moved from the converted checkpoint: floor -> ||w - w0|| / ||w0||, Frobenius."""

    phase: str
    step: int
    floors: Mapping[str, float]


@dataclass(frozen=True)
class Finished:
    """A phase is complete: what learned, for how long, and how good its best epoch was."""

    name: str
    floors: tuple[str, ...]
    parameters: int
    steps: int
    best: int  # the step whose weights were kept
    figures: Mapping[str, float]


Event = Step | Measure | Change | Finished
KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Step, Measure, Change, Finished)}


def plain(event: Event) -> dict[str, Any]:
    return {"event": type(event).__name__, **asdict(event)}


def read(values: Mapping[str, Any]) -> Event:
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name != "event"}
    event: Event = KINDS[values["event"]](**fields)
    return event
