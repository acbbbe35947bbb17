"""What a training tells while it goes on: kept in the resume point, and told again from there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

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
KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Measure, Change, Finished)}
NUMBERS = tuple(field.name for field in fields(Step) if field.name != "phase")
WHOLE = ("number", "rows", "parts", "tokens", "positions")


def pack(told: Sequence[Event]) -> tuple[Tensor, str]:
    """The steps as numbers (steps, 9) float64, which a training has many of, and JSON of all else with its
    place among them."""
    steps = [event for event in told if isinstance(event, Step)]
    phases = list(dict.fromkeys(step.phase for step in steps))
    numbers = [[phases.index(step.phase), *(getattr(step, name) for name in NUMBERS)] for step in steps]
    others = [
        [place, {"event": type(event).__name__, **asdict(event)}]
        for place, event in enumerate(told)
        if not isinstance(event, Step)
    ]
    packed = torch.tensor(numbers, dtype=torch.float64).reshape(len(steps), 1 + len(NUMBERS))
    return packed, json.dumps({"phases": phases, "others": others})


def unpack(steps: Tensor, text: str) -> tuple[Event, ...]:
    """What `pack` was given."""
    held = json.loads(text)
    told: list[Event] = [_step(held["phases"][int(phase)], numbers) for phase, *numbers in steps.tolist()]
    for place, values in held["others"]:
        told.insert(place, _read(values))
    return tuple(told)


def _step(phase: str, numbers: Sequence[float]) -> Step:
    values: dict[str, Any] = dict(zip(NUMBERS, numbers, strict=True))
    return Step(phase, **{name: int(v) if name in WHOLE else v for name, v in values.items()})


def _read(values: Mapping[str, Any]) -> Event:
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name != "event"}
    event: Event = KINDS[values["event"]](**given)
    return event
