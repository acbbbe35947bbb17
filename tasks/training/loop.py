"""The training loop as a generator: it decides and computes; whoever iterates logs and saves."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tasks.errors import TrainingError
from tasks.training import order, randomness, updates
from tasks.training.objectives import Objective, Settings
from tasks.training.ranks import ALONE, Ranks
from tasks.training.schedule import rate_share

log = logging.getLogger(__name__)
Forward = Callable[[Sequence[int]], Tensor]  # row places -> logits (read, outputs)
Targets = Callable[[Sequence[int]], Tensor]  # row places -> what those logits should say: (read, …)
Beside = Callable[[Sequence[int]], Tensor]  # places of the rows that came last -> a term of the loss
Size = Callable[[Sequence[int]], tuple[int, int]]  # row places -> tokens, positions computed at once for them
Batches = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Step:
    """One optimizer step. `number` counts from 1 within the phase; `loss` is the batch mean, in nats,
    without what is minimised beside it; `parts` those in which the batch was computed; `tokens` those of its
    rows, `positions` these and the padding."""

    phase: str
    number: int
    loss: float
    learning_rate: float
    gradient_norm: float
    rows: int
    parts: int = 1
    tokens: int = 0
    positions: int = 0


@dataclass(frozen=True)
class Work:
    """What a phase computes from rows, and how.

    targets: on the device of the logits; name: of a row, for whoever has to find it.
    accumulation: parts of a share whose gradients are added up. ranks: the processes that share a batch. The
    update is the same for any number of both, unless there is something `beside`: minimised of each part too,
    by its share of the batch's weight.
    """

    forward: Forward
    targets: Targets
    objective: Objective
    settings: Settings
    name: Callable[[int], str]
    accumulation: int = 1
    size: Size = lambda rows: (len(rows), len(rows))
    ranks: Ranks = ALONE
    beside: Beside | None = None

    def amount(self, rows: Sequence[int]) -> tuple[int, int]:
        """Tokens of a batch, and positions computed for them in its parts, by all processes."""
        parts = [part for rank in range(self.ranks.size) for part in self.parts(rows, rank)]
        tokens, positions = zip(*map(self.size, parts), strict=True)
        return sum(tokens), sum(positions)

    def parts(self, rows: Sequence[int], rank: int) -> list[list[int]]:
        """Of a batch, what process `rank` computes at once."""
        share = self.ranks.shares(rows)[rank]
        return order.parts(share, self.accumulation) if share else []


@dataclass(frozen=True)
class Pace:
    """How the rate moves and how long a gradient may be."""

    schedule: str
    warmup: float
    maximum_norm: float


def freeze(model: nn.Module, parameters: Iterable[nn.Parameter], modules: Iterable[nn.Module]) -> None:
    """Let only `parameters` learn. Everything else stands in eval mode: a frozen layer with dropout on would
    give another output each time it is asked."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    model.eval()
    for module in modules:
        module.train()


def run_phase(
    phase: str,
    work: Work,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    pace: Pace,
    *,
    start: int,
    stop: int,
    seed: Sequence[int] = (),
) -> Iterator[Step]:
    """Yield one Step for each batch from `start` up to `stop`; after each, weights and optimizer are
    consistent. The rate follows all `batches`.

    A batch that does not fit the memory is computed in twice as many parts, which is told, and gives the same
    update. Raises TrainingError when a loss is not finite, naming the rows of the batch, and when a single
    row does not fit.
    seed: of the phase; from it processes other than the first, whose random state is kept, draw each step.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for number in range(start, stop):
        share = rate_share(number, len(batches), schedule=pace.schedule, warmup=pace.warmup)
        rate = updates.set_rate(optimizer, share)
        rows = list(batches[number])
        if not work.ranks.first:
            randomness.begin((*seed, number, work.ranks.rank))
        loss, work = _gradients(phase, number + 1, work, rows, optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, pace.maximum_norm).item()
        if not math.isfinite(norm):  # clipped by it, every weight would be lost
            raise TrainingError(
                f"phase {phase}, step {number + 1}: the gradient's norm is {norm} on rows "
                f"{_named(work, rows)}: lower the learning rate, or look at these rows"
            )
        optimizer.step()
        yield Step(phase, number + 1, loss, rate, norm, len(rows), work.accumulation, *work.amount(rows))


def _gradients(
    phase: str, number: int, work: Work, rows: list[int], optimizer: torch.optim.Optimizer
) -> tuple[float, Work]:
    """The batch's mean loss, its gradients in place, and the work as it has to be cut up from now on.

    All processes hear how each has fared before any gradient is exchanged, and so go the same way.
    """
    drawn = randomness.state()
    while True:
        optimizer.zero_grad(set_to_none=True)
        fared = work.ranks.gather(_fared(work, rows))
        if all(fared):
            break
        work = _finer(phase, number, work, rows)
        randomness.restore(drawn)
    for rank, (loss, done) in enumerate(fared):
        if not math.isfinite(loss):
            part = work.parts(rows, rank)[int(done)]
            raise TrainingError(
                f"phase {phase}, step {number}: the loss is {loss} on rows {_named(work, part)}: "
                "lower the learning rate, or look at these rows"
            )
    work.ranks.add_up([value for group in optimizer.param_groups for value in group["params"]])
    return sum(loss for loss, _ in fared), work


def _fared(work: Work, rows: list[int]) -> list[float]:
    """This process's part of the batch's mean loss, and of how many parts it is the sum; nothing where these
    do not fit the memory."""
    try:
        return _accumulated(work, rows)
    except RuntimeError as error:
        if not _memory(error):
            raise
        return []


def _accumulated(work: Work, rows: list[int]) -> list[float]:
    """As `_fared`; up to the first part whose loss is not finite."""
    weight = float(work.objective.weight(work.targets(rows), work.settings))
    total, done = 0.0, 0
    for part in work.parts(rows, work.ranks.rank):
        targets = work.targets(part)
        loss = work.objective.loss(work.forward(part), targets, work.settings) / weight
        beside = (
            work.beside(part) * float(work.objective.weight(targets, work.settings)) if work.beside else 0
        )
        minimised = loss + beside / weight
        if not torch.isfinite(minimised):
            return [minimised.item(), done]
        minimised.backward()
        total, done = total + loss.item(), done + 1
    return [total, done]


def _named(work: Work, rows: Sequence[int]) -> str:
    return ", ".join(work.name(row) for row in rows[:8]) + (", …" if len(rows) > 8 else "")


def _memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _finer(phase: str, number: int, work: Work, rows: list[int]) -> Work:
    largest = len(work.ranks.shares(rows)[0])
    if work.accumulation >= largest:
        raise TrainingError(
            f"phase {phase}, step {number}: a single row does not fit the memory: shorten rows "
            "(encoding.max_length) or let fewer layers learn"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    count = min(2 * work.accumulation, largest)
    log.warning("phase %s, step %d: out of memory; batches are computed in %d parts", phase, number, count)
    return replace(work, accumulation=count)
