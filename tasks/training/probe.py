"""How long a phase will take, from a few of its steps: seconds a token, times its tokens."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from tasks.training.loop import Step, Work
from tasks.training.phases import Planned, Settings, Stack, fine_tune

STEPS = 5
NEVER = 10**12  # steps between resume points


@dataclass(frozen=True)
class Rates:
    """Seconds a token: of the pass over what stands still, of a step, of a look at validation rows."""

    frozen: float
    step: float
    validation: float


@dataclass(frozen=True)
class Seconds:
    """About what a phase takes."""

    frozen: float
    steps: float
    validation: float

    @property
    def all(self) -> float:
        return self.frozen + self.steps + self.validation


@dataclass(frozen=True)
class Tokens:
    """Those of a whole phase, each as often as it is computed."""

    frozen: int
    steps: int
    validation: int

    def at(self, rates: Rates) -> Seconds:
        return Seconds(
            self.frozen * rates.frozen, self.steps * rates.step, self.validation * rates.validation
        )


def measure(model: nn.Module, floors: Stack, phase: Planned, settings: Settings, *, scratch: Path) -> Rates:
    """Carry out the steps of `phase`, whose batches are a few, and forget them; `model` is not what it was.

    The first step, which prepares memory, counts only where there is no other. scratch: a folder for what
    would be a resume point, were there one.
    """
    timed, marks, tokens = _Timed(phase), list[float](), list[int]()
    once = replace(phase, work=timed.work)
    point = scratch / "point.safetensors"
    told = fine_tune(model, floors, [once], replace(settings, save_every=NEVER), point=point)
    with closing(told):
        while len(marks) < phase.ends[-1]:
            if isinstance(event := next(told), Step):
                marks.append(time.perf_counter())
                tokens.append(event.tokens)
    first = 1 if len(marks) > 1 else 0
    stepping = marks[-1] - [timed.begun, *marks][first]
    learned = sum(tokens)
    return Rates(
        timed.seconds / max(1, learned),
        stepping / max(1, sum(tokens[first:])),
        _looked(model, timed.made, phase.epochs[0]) / max(1, learned),
    )


class _Timed:
    """A phase's work, and when and for how long it was made."""

    def __init__(self, phase: Planned) -> None:
        self._make = phase.work

    def work(self) -> Work:
        started = time.perf_counter()
        self.made = self._make()
        self.begun = time.perf_counter()
        self.seconds = self.begun - started
        return self.made


def _looked(model: nn.Module, work: Work, batches: Sequence[Sequence[int]]) -> float:
    """Seconds that these rows take where nothing is learned."""
    model.eval()
    begun = time.perf_counter()
    with torch.no_grad():
        for rows in batches:
            work.forward(rows).cpu()
    return time.perf_counter() - begun
