"""The unfreezing schedule, carried out: one phase after another, each resumable at any step.

Only this module knows that training can be interrupted; the loop does not.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks import files
from tasks.errors import TrainingError
from tasks.params import LOWER_IS_BETTER
from tasks.progress import track
from tasks.training import interrupt, loop, randomness, resume, table, updates
from tasks.training.events import Change, Event, Finished, Measure
from tasks.training.loop import Batches, Pace, Step, Work
from tasks.training.ranks import ALONE, Ranks
from tasks.training.table import NewRows

log = logging.getLogger(__name__)
NEW = "new rows"  # among a record's floors
Stack = Sequence[tuple[str, Mapping[str, nn.Parameter], Sequence[nn.Module]]]
BEST = "best-{}-{}.safetensors"  # of a phase, by number, and its step
TOLD_EVERY = 10  # steps between two looks at how far the weights have moved, at least


@dataclass(frozen=True)
class Planned:
    """A phase with everything decided: what learns, from which work, in which order, how fast.

    work: called when the phase begins: frozen work is done then, once. measure: validation figures, asked
    after every epoch. epochs: the batches of each. complete: called when the phase is, the best weights in
    place, and never again.
    early_stopping: epochs without a better one after which the phase ends; None: never.
    rows: of a table on a floor that does not learn, which learn nevertheless, at the top floor's rate.
    """

    name: str
    stack: Stack  # the floors that learn, bottom to top
    work: Callable[[], Work]
    measure: Callable[[], Mapping[str, float]]
    epochs: Sequence[Batches]
    learning_rate: float
    layer_decay: float
    pace: Pace
    early_stopping: int | None = None
    rows: NewRows | None = None
    complete: Callable[[], None] = lambda: None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that change in part or as a whole."""
        whole = {name: value for _, parameters, _ in self.stack for name, value in parameters.items()}
        return whole | ({self.rows.name: self.rows.table} if self.rows else {})

    @property
    def ends(self) -> list[int]:
        """Steps of the phase after which its epochs end."""
        return list(accumulate(len(epoch) for epoch in self.epochs))


@dataclass(frozen=True)
class Settings:
    """select: the validation figure by which the best epoch of a phase is chosen.
    save_every: optimizer steps between resume points; told: changes of weights told in a phase."""

    seed: int
    optimizer: str
    weight_decay: float
    save_every: int
    select: str
    told: int = 20


@dataclass
class Training:
    """Where it stands; everything that changes is in the resume point."""

    model: nn.Module
    phases: Sequence[Planned]
    settings: Settings
    point: Path
    start: Mapping[str, Tensor]  # the converted weights, by name
    floors: Stack  # all, bottom to top
    ranks: Ranks = ALONE
    number: int = 0
    done: int = 0
    told: list[Event] = field(default_factory=list)
    moments: updates.Moments = field(default_factory=dict)  # of what does not learn now
    began: dict[str, float] = field(default_factory=dict)  # floor -> ||w0||², once it is asked for

    @property
    def phase(self) -> Planned:
        return self.phases[self.number]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """All that have learned so far, in this phase or one before."""
        return {k: v for phase in self.phases[: self.number + 1] for k, v in phase.parameters.items()}

    @property
    def measures(self) -> list[Measure]:
        """Of this phase."""
        return [event for event in self.told if isinstance(event, Measure) and event.phase == self.phase.name]

    @property
    def best(self) -> Measure | None:
        """The first of the best epochs of this phase so far."""
        sign = -1 if self.settings.select in LOWER_IS_BETTER else 1
        return max(self.measures, key=lambda m: sign * m.figures[self.settings.select], default=None)

    @property
    def over(self) -> bool:
        """Whether the phase has had its epochs, or no better one for too long."""
        patience, best = self.phase.early_stopping, self.best
        worse = [measure for measure in self.measures if best and measure.step > best.step]
        return self.done >= self.phase.ends[-1] or (patience is not None and len(worse) >= patience)

    @property
    def parts(self) -> int:
        """Those in which a batch of this phase has had to be computed."""
        steps = (event for event in reversed(self.told) if isinstance(event, Step))
        last = next(steps, None)
        return last.parts if last and last.phase == self.phase.name else 1

    def tell(self, event: Event) -> Event:
        self.told.append(event)
        return event

    def save(self, target: Path, optimizer: torch.optim.Optimizer) -> None:
        """The first of several processes does it for all, which hold the same."""
        if not self.ranks.first:
            return
        resume.save(
            target,
            phase=self.number,
            done=self.done,
            told=self.told,
            parameters=self.trained,
            moments={**self.moments, **updates.moments(optimizer)},
        )


def fine_tune(
    model: nn.Module,
    floors: Stack,
    phases: Sequence[Planned],
    settings: Settings,
    *,
    point: Path,
    ranks: Ranks = ALONE,
) -> Generator[Event, None, None]:
    """Carry out `phases` on `model` in place, yielding what happens.

    floors: all of the model's. The epoch with the best validation figure is what the next phase begins with.
    With a resume point on disk all that was told is told again and training goes on behind it, bit for bit
    as if never interrupted. Each of several processes (`ranks`) iterates this for itself.
    Raises TrainingError for a loss, a gradient or a validation figure that is not finite, for a frozen tensor
    that has changed, and where processes have lost one another.
    """
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    training = Training(model, phases, settings, point, start, floors, ranks)
    stood = resume.load(point)
    if stood:
        log.info("going on from phase %s, step %d", phases[stood.phase].name, stood.done)
        stood.place_weights(model)
        training.number, training.done = stood.phase, stood.done
        training.told, training.moments = list(stood.told), stood.moments
    random, stood = (stood.random if stood else None), None  # what it holds is large
    yield from list(training.told)
    while training.number < len(phases):
        yield from _phase(training, random)
        training.number, training.done, random = training.number + 1, 0, None


Obey = Callable[[Callable[[], None]], None]


def _phase(training: Training, random: Mapping[str, Tensor] | None) -> Iterator[Event]:
    phase = training.phase
    if not training.over:
        optimizer, work = _begin(training, random)
        with interrupt.postponed() as obey:
            for stop in phase.ends:
                if stop > training.done and not training.over:
                    yield from _epoch(training, optimizer, work, stop, obey)
                    measured = training.tell(_measured(phase, stop))
                    _keep(training, optimizer)
                    _learn(training.model, phase)
                    obey(lambda: None)  # saved already
                    yield measured
        training.moments = {**training.moments, **updates.moments(optimizer)}
    _restore_best(training)
    _demand_untouched(training)
    _demand_same(training)
    phase.complete()
    yield training.tell(_finished(training))


def _begin(training: Training, random: Mapping[str, Tensor] | None) -> tuple[torch.optim.Optimizer, Work]:
    """The optimizer, with the moments of what has learned before and goes on, and the work, begun."""
    phase, model, settings = training.phase, training.model, training.settings
    model.eval()  # frozen work is done without dropout
    work = phase.work()
    _learn(model, phase)
    optimizer = updates.optimizer(_groups(phase, settings.weight_decay), kind=settings.optimizer)
    updates.assert_same(optimizer, model)
    updates.remember(optimizer, training.moments)
    table.forget_others(phase.rows, optimizer)
    training.moments = {k: v for k, v in training.moments.items() if k not in phase.parameters}
    torch.manual_seed(settings.seed * 1000 + training.number)
    if random is not None:
        randomness.restore(random)
    return optimizer, work


def _learn(model: nn.Module, phase: Planned) -> None:
    loop.freeze(model, phase.parameters.values(), [m for _, _, modules in phase.stack for m in modules])


def _epoch(
    training: Training, optimizer: torch.optim.Optimizer, work: Work, stop: int, obey: Obey
) -> Iterator[Event]:
    phase, start = training.phase, training.done
    batches = [batch for epoch in phase.epochs for batch in epoch]
    work = replace(work, accumulation=max(work.accumulation, training.parts), ranks=training.ranks)
    steps = loop.run_phase(
        phase.name,
        work,
        batches,
        optimizer,
        phase.pace,
        start=start,
        stop=stop,
        seed=(training.settings.seed, training.number),
    )
    every = max(TOLD_EVERY, len(batches) // training.settings.told)
    save = partial(training.save, training.point, optimizer)
    with table.only(phase.rows):
        for step in track(
            steps,
            total=sum(work.size(rows)[0] for rows in batches[start:stop]),
            description=f"fine-tuning: {phase.name}",
            size=lambda step: step.tokens,
            unit=" tokens",
            about=lambda step: f"loss {step.loss:.3f}",
        ):
            table.refuse_cached(phase.rows, phase.name)
            training.done = step.number
            yield training.tell(step)
            if step.number % every == 0 or step.number == stop:
                yield training.tell(Change(phase.name, step.number, _changes(training)))
            if step.number != stop:  # the end of an epoch is measured first, then saved
                obey(save)
                if step.number % training.settings.save_every == 0:
                    save()


def _measured(phase: Planned, step: int) -> Measure:
    figures = dict(phase.measure())
    if wrong := [f"{name} {value}" for name, value in figures.items() if not math.isfinite(value)]:
        raise TrainingError(
            f"phase {phase.name}, step {step}: on the validation rows the model's {', '.join(wrong)}: it has "
            "diverged; lower the learning rate"
        )
    return Measure(phase.name, step, figures)


def _keep(training: Training, optimizer: torch.optim.Optimizer) -> None:
    """At the end of an epoch: the best one first, and a former best one goes last, so that whatever point is
    there, the best one that it speaks of is too."""
    best = training.best
    if best is None or best.step != training.done:
        training.save(training.point, optimizer)
        return
    training.save(_best(training), optimizer)
    if not training.ranks.first:
        return
    files.link(_best(training), training.point)
    for other in training.point.parent.glob(BEST.format("*", "*")):
        if other != _best(training):
            other.unlink()


def _best(training: Training) -> Path:
    """The best epoch of this phase so far, whole."""
    assert training.best
    return training.point.with_name(BEST.format(training.number, training.best.step))


def _restore_best(training: Training) -> None:
    """Where a later epoch was worse, weights and moments of the best one come back."""
    best = training.best
    if best is None or best.step == training.done:
        return
    kept = resume.load(_best(training))
    if kept is None:
        raise TrainingError(
            f"{_best(training)} is missing, the best epoch of phase {training.phase.name}: remove "
            f"{training.point.parent} and train again"
        )
    kept.place_weights(training.model)
    training.moments = kept.moments


def _demand_untouched(training: Training) -> None:
    trained = training.trained
    changed = [
        name
        for name, value in training.model.named_parameters()
        if name not in trained and not torch.equal(value, training.start[name])
    ]
    if changed:
        raise TrainingError(
            f"phase {training.phase.name}: tensors that no phase has unfrozen have changed: "
            f"{', '.join(changed)}"
        )


def _demand_same(training: Training) -> None:
    """Every process holds the same weights: each has taken the same steps from the same beginning."""
    if training.ranks.size == 1:
        return
    sums = [float(value.detach().sum(dtype=torch.float64)) for value in training.trained.values()]
    if any(other != sums for other in training.ranks.gather(sums)):
        raise TrainingError(
            f"phase {training.phase.name}: the weights of the {training.ranks.size} processes have drifted "
            "apart: set finetuning.processes to 1"
        )


def _changes(training: Training) -> dict[str, float]:
    """||w - w0|| / ||w0|| of each floor; what nothing has trained has not changed, which is looked at once a
    phase."""
    learned, start = training.trained, training.start
    with torch.no_grad():
        found = dict.fromkeys((name for name, _, _ in training.floors), 0.0)
        for name, parameters, _ in training.floors:
            moved = sum(_squares(v - start[key]) for key, v in parameters.items() if key in learned)
            if moved:
                found[name] = (moved / _began(training, name, parameters)) ** 0.5
    return found


def _began(training: Training, floor: str, parameters: Mapping[str, nn.Parameter]) -> float:
    """||w0||² of a floor, which stays what it is."""
    if floor not in training.began:
        training.began[floor] = sum(_squares(training.start[name]) for name in parameters)
    return training.began[floor]


def _squares(value: Tensor) -> float:
    flat = value.flatten()
    return float(flat @ flat)  # without the copy that squaring makes


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


def _finished(training: Training) -> Finished:
    phase, best = training.phase, training.best
    whole = sum(value.numel() for _, parameters, _ in phase.stack for value in parameters.values())
    return Finished(
        name=phase.name,
        floors=(*([NEW] if phase.rows else []), *(name for name, _, _ in phase.stack)),
        parameters=whole + (phase.rows.size if phase.rows else 0),
        steps=training.done,
        best=best.step if best else training.done,
        figures=dict(best.figures) if best else {},
    )
