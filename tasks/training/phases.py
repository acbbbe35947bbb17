"""The unfreezing schedule, carried out: one phase after another, each resumable at any step.

Only this module knows that training can be interrupted; the loop does not.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.progress import track
from tasks.training import loop, resume, table, updates
from tasks.training.loop import Step
from tasks.training.table import NewRows

log = logging.getLogger(__name__)
NEW = "new rows"  # among a record's floors
Stack = Sequence[tuple[str, Mapping[str, nn.Parameter], Sequence[nn.Module]]]


@dataclass(frozen=True)
class Planned:
    """A phase with everything decided: what learns, from which logits, in which order, how fast.

    rows: of a table on a floor that does not learn, which learn nevertheless, at the top floor's rate.
    """

    name: str
    stack: Stack  # the floors that learn, bottom to top
    forward: Callable[[], loop.Forward]  # called when the phase begins: frozen work is done then, once
    batches: Sequence[Sequence[int]]
    learning_rate: float
    layer_decay: float
    warmup: float
    rows: NewRows | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that change in part or as a whole."""
        whole = {name: value for _, parameters, _ in self.stack for name, value in parameters.items()}
        return whole | ({self.rows.name: self.rows.table} if self.rows else {})


@dataclass
class Progress:
    """Where the training stands; everything in it is in the resume point."""

    phase: int = 0
    done: int = 0
    steps: list[Step] = field(default_factory=list)
    records: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    seed: int
    weight_decay: float
    maximum_norm: float
    save_every: int  # optimizer steps between resume points


def fine_tune(
    model: nn.Module,
    labels: Tensor,
    phases: Sequence[Planned],
    settings: Settings,
    *,
    point: Path,
    finished: Callable[[Planned], Mapping[str, float]],
) -> Iterator[Step | Mapping[str, Any]]:
    """Carry out `phases` on `model` in place, yielding every Step and, after each phase, its record.

    labels (rows,) int64. `finished(phase)` measures the model after a phase. With a resume point on disk the
    steps up to it are yielded again and training goes on behind it, bit for bit as if never interrupted.
    """
    stood = resume.load(point)
    progress = Progress()
    if stood:
        log.info("going on from phase %s, step %d", phases[stood.phase].name, stood.done)
        resume.restore_weights(stood, model)
        progress = Progress(stood.phase, stood.done, list(stood.steps), list(stood.records))
    yield from progress.steps
    yield from progress.records
    for number in range(progress.phase, len(phases)):
        going_on = stood if stood and stood.phase == number else None
        trained = {k: v for phase in phases[: number + 1] for k, v in phase.parameters.items()}
        keep = _Keep(point, number, progress, trained, settings.save_every)
        yield from _run(model, labels, phases[number], settings, number, going_on, keep)
        record = _record(phases[number]) | dict(finished(phases[number]))
        progress.records.append(record)
        yield record


@dataclass
class _Keep:
    """Writes resume points of one phase."""

    point: Path
    number: int
    progress: Progress
    trained: Mapping[str, nn.Parameter]
    every: int

    def step(self, step: Step, adam: torch.optim.Optimizer, *, last: bool) -> None:
        self.progress.steps.append(step)
        if last or step.number % self.every == 0:
            resume.save(
                self.point,
                phase=self.number,
                done=step.number,
                steps=self.progress.steps,
                records=self.progress.records,
                parameters=self.trained,
                adam=adam,
            )


def _run(
    model: nn.Module,
    labels: Tensor,
    phase: Planned,
    settings: Settings,
    number: int,
    stood: resume.Point | None,
    keep: _Keep,
) -> Iterator[Step]:
    model.eval()  # frozen work is done without dropout
    forward = phase.forward()
    loop.freeze(model, phase.parameters.values(), [m for _, _, modules in phase.stack for m in modules])
    adam = updates.optimizer(_groups(phase, settings.weight_decay))
    updates.assert_same(adam, model)
    torch.manual_seed(settings.seed * 1000 + number)
    if stood:
        resume.restore_optimizer(stood, adam)
        resume.restore_random(stood)
    start, total = (stood.done if stood else 0), len(phase.batches)
    steps = loop.run_phase(
        phase.name, forward, labels, phase.batches, adam,
        warmup=phase.warmup, maximum_norm=settings.maximum_norm, start=start,
    )  # fmt: skip
    with table.only(phase.rows):
        for step in track(steps, total=total - start, description=f"fine-tuning: {phase.name}"):
            table.refuse_cached(phase.rows, phase.name)
            keep.step(step, adam, last=step.number == total)
            yield step


def _groups(phase: Planned, weight_decay: float) -> list[updates.Group]:
    parts = updates.groups(
        [(name, parameters) for name, parameters, _ in phase.stack],
        learning_rate=phase.learning_rate,
        layer_decay=phase.layer_decay,
        weight_decay=weight_decay,
    )
    if phase.rows:  # without decay, which would reach the table's other rows
        parts.append(updates.Group(NEW, {phase.rows.name: phase.rows.table}, phase.learning_rate, 0.0))
    return parts


def _record(phase: Planned) -> dict[str, Any]:
    whole = sum(value.numel() for _, parameters, _ in phase.stack for value in parameters.values())
    return {
        "name": phase.name,
        "floors": [*([NEW] if phase.rows else []), *(name for name, _, _ in phase.stack)],
        "steps": len(phase.batches),
        "parameters": whole + (phase.rows.size if phase.rows else 0),
    }
