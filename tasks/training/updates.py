"""The optimizer of one phase: which parameters, at which rate, at which step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tasks.errors import TrainingError


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

    Biases and norms, the one-dimensional parameters, are not decayed (Loshchilov & Hutter 2019 decay
    matrices; BERT's own training excludes both).
    """
    result = []
    for down, (floor, parameters) in enumerate(reversed(stack)):
        rate = learning_rate * layer_decay**down
        for decay, wanted in ((weight_decay, True), (0.0, False)):
            part = {name: value for name, value in parameters.items() if (value.ndim > 1) == wanted}
            if part:
                result.append(Group(floor, part, rate, decay))
    return result


def optimizer(parts: Sequence[Group]) -> torch.optim.AdamW:
    """AdamW over exactly `parts`, built anew for each phase: one that was built before a layer was unfrozen
    never updates it."""
    return torch.optim.AdamW(
        [
            {
                "params": list(part.parameters.values()),
                "lr": part.learning_rate,
                "peak": part.learning_rate,
                "weight_decay": part.weight_decay,
            }
            for part in parts
        ],
        fused=True,
    )


def assert_same(adam: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise TrainingError unless the optimizer updates exactly the parameters that require gradients."""
    held = {id(value) for group in adam.param_groups for value in group["params"]}
    wanted = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
    if held != wanted.keys():
        missed = sorted(name for key, name in wanted.items() if key not in held)
        raise TrainingError(
            f"the optimizer misses {missed or 'nothing'}, holds {len(held - wanted.keys())} more"
        )


def set_rate(adam: torch.optim.Optimizer, share: float) -> float:
    """Scale every group's peak rate by `share`; returns the highest rate now in force."""
    for group in adam.param_groups:
        group["lr"] = group["peak"] * share
    return float(max(group["lr"] for group in adam.param_groups))


def rate_share(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at `step` (from 0) of `steps`: linear rise over `warmup`, linear fall to 0."""
    rise = round(steps * warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    return (steps - step) / max(1, steps - rise)
