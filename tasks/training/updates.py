"""The optimizer of one phase: which parameters, at which rate, with which moments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import TrainingError

Moments = Mapping[str, Mapping[str, Tensor]]  # parameter -> what its optimizer remembers of it


@dataclass(frozen=True)
class Group:
    """The parameters of one floor that learn at one rate."""

    floor: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float


def groups(
    stack: Sequence[tuple[str, Mapping[str, nn.Parameter]]],
    *,
    learning_rate: float,
    layer_decay: float,
    weight_decay: float,
) -> list[Group]:
    """Discriminative rates (Howard & Ruder 2018, §3.2): the top floor learns at `learning_rate`, each one
    below at `layer_decay` times the one above. `stack` is (floor, parameters), bottom to top.

    Biases, norms and vectors of adapters, all of one dimension, are not decayed (Loshchilov & Hutter 2019
    decay matrices; BERT's own training excludes both).
    """
    result = []
    for down, (floor, parameters) in enumerate(reversed(stack)):
        rate = learning_rate * layer_decay**down
        for decay, wanted in ((weight_decay, True), (0.0, False)):
            part = {name: value for name, value in parameters.items() if _is_matrix(value) == wanted}
            if part:
                result.append(Group(floor, part, rate, decay))
    return result


def _is_matrix(value: Tensor) -> bool:
    """An adapter's vector may be stored as one row."""
    return sum(size > 1 for size in value.shape) > 1


def optimizer(parts: Sequence[Group], *, kind: str = "adamw") -> torch.optim.Optimizer:
    """One of OPTIMIZERS over exactly `parts`, built anew for each phase: one that was built before a layer
    was unfrozen never updates it."""
    return OPTIMIZERS[kind](
        [
            {
                "params": list(part.parameters.values()),
                "names": list(part.parameters),
                "lr": part.learning_rate,
                "peak": part.learning_rate,
                "weight_decay": part.weight_decay,
            }
            for part in parts
        ]
    )


def assert_same(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise TrainingError unless the optimizer updates exactly the parameters that require gradients."""
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    wanted = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
    if held != wanted.keys():
        missed = sorted(name for key, name in wanted.items() if key not in held)
        raise TrainingError(
            f"the optimizer misses {missed or 'nothing'}, holds {len(held - wanted.keys())} more"
        )


def moments(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What it remembers of each parameter, by name; tensors that go on changing."""
    return {
        name: {key: kept for key, kept in optimizer.state[value].items() if isinstance(kept, Tensor)}
        for name, value in _held(optimizer)
        if value in optimizer.state
    }


def remember(optimizer: torch.optim.Optimizer, found: Moments) -> None:
    """Give the moments of `found` to the parameters that it holds; the others begin anew."""
    for name, value in _held(optimizer):
        if name in found:
            optimizer.state[value] = {key: _placed(kept, value) for key, kept in found[name].items()}


def _placed(kept: Tensor, value: nn.Parameter) -> Tensor:
    """Counts stay where they are made; the fused optimizer wants them beside the parameter."""
    return kept.clone().to(value.device)


def _held(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Scale every group's peak rate by `share`; returns the highest rate now in force."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return float(max(group["lr"] for group in optimizer.param_groups))


def _adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True)


def _adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, fused=True)


def _sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9, fused=True)


OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
}
