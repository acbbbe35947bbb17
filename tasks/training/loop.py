"""The training loop as a generator: it decides and computes; whoever iterates logs and saves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import TrainingError
from tasks.training import updates

Forward = Callable[[Sequence[int]], Tensor]  # row places -> logits (batch, classes)


@dataclass(frozen=True)
class Step:
    """One optimizer step. `number` counts from 1 within the phase; `loss` is the batch mean, in nats."""

    phase: str
    number: int
    loss: float
    learning_rate: float
    gradient_norm: float
    rows: int


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
    forward: Forward,
    labels: Tensor,
    batches: Sequence[Sequence[int]],
    adam: torch.optim.Optimizer,
    *,
    warmup: float,
    maximum_norm: float,
    start: int = 0,
) -> Iterator[Step]:
    """Yield one Step per batch, from batch `start` on; after each, weights and optimizer are consistent.

    labels (rows,) int64 on the device of the logits; `batches` hold places in it.
    Raises TrainingError when a loss is not finite, naming the rows of the batch.
    """
    parameters = [value for group in adam.param_groups for value in group["params"]]
    for number in range(start, len(batches)):
        rate = updates.set_rate(adam, updates.rate_share(number, len(batches), warmup))
        rows = list(batches[number])
        loss = functional.cross_entropy(forward(rows), labels[rows])
        if not torch.isfinite(loss):
            raise TrainingError(f"phase {phase}, step {number + 1}: the loss is {loss.item()} on rows {rows}")
        adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, maximum_norm)
        adam.step()
        yield Step(phase, number + 1, loss.item(), rate, norm.item(), len(rows))
