"""What a phase minimises: a table of objectives whose updates do not depend on how a batch is cut up.

An objective gives the sum of the losses of some rows; the loop divides by the weight of the whole batch. The
mean of the parts' means would be another number wherever the parts weigh differently.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tasks.errors import TrainingError

NOTHING = -100  # a target that counts for nothing, as in torch's cross-entropy


@dataclass(frozen=True)
class Settings:
    """weights: (classes,) float32 of each class, or none. smoothing: of labels (Szegedy et al., 2016).
    focus: gamma of the focal loss (Lin et al., 2017); 0 is cross-entropy."""

    weights: Tensor | None = None
    smoothing: float = 0.0
    focus: float = 0.0


@dataclass(frozen=True)
class Objective:
    """loss: logits (rows, classes), targets -> the sum of the rows' losses, in nats where it is a likelihood.
    weight: targets -> what the sum is divided by. figures: logits, targets -> name -> value."""

    loss: Callable[[Tensor, Tensor, Settings], Tensor]
    weight: Callable[[Tensor, Settings], Tensor]
    figures: Callable[[Tensor, Tensor], dict[str, float]]


def find(kind: str) -> Objective:
    """Raises TrainingError for a kind of row that nothing is learned from yet."""
    if kind not in OBJECTIVES:
        raise TrainingError(
            f"rows of kind {kind!r} can be prepared and encoded, but not trained on yet; kinds that can: "
            f"{', '.join(OBJECTIVES)} (sources.text.kind)"
        )
    return OBJECTIVES[kind]


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Weights (classes,) float32 that give every class the same say: rows / (classes x rows of the class);
    1 for a class without rows."""
    counts = torch.bincount(labels, minlength=classes).float()
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp(min=1)), torch.ones_like(counts))


def _classify(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    if not settings.focus:
        return functional.cross_entropy(
            logits,
            targets,
            weight=settings.weights,
            label_smoothing=settings.smoothing,
            ignore_index=NOTHING,
            reduction="sum",
        )
    each = functional.cross_entropy(
        logits, targets, label_smoothing=settings.smoothing, ignore_index=NOTHING, reduction="none"
    )
    counted = targets.clamp(min=0)
    likely = logits.log_softmax(dim=-1).gather(-1, counted[:, None])[:, 0].exp()
    weights = 1.0 if settings.weights is None else settings.weights[counted]
    return ((1 - likely) ** settings.focus * weights * each).sum()


def _class_weight(targets: Tensor, settings: Settings) -> Tensor:
    counted = targets[targets != NOTHING]
    if settings.weights is None:
        return torch.tensor(float(len(counted)))
    return settings.weights[counted].sum()


def _label_figures(logits: Tensor, targets: Tensor) -> dict[str, float]:
    right = (logits.argmax(dim=-1) == targets).float().mean().item()
    return {"accuracy": right, "loss": functional.cross_entropy(logits, targets).item()}


def _binary(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Each class by itself, yes or no; a row counts for the mean over its classes."""
    each = functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), pos_weight=settings.weights, reduction="none"
    )
    return each.mean(dim=-1).sum()


def _labels_figures(logits: Tensor, targets: Tensor) -> dict[str, float]:
    said, given = logits > 0, targets > 0
    hits = (said & given).sum().item()
    f1 = 2 * hits / max(1, (said.sum() + given.sum()).item())
    exact = (said == given).all(dim=-1).float().mean().item()
    loss = functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype)).item()
    return {"accuracy": exact, "micro_f1": f1, "loss": loss}


def _squared(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    return ((logits[:, 0] - targets) ** 2).sum()


def _score_figures(logits: Tensor, targets: Tensor) -> dict[str, float]:
    error = (logits[:, 0] - targets) ** 2
    spread = ((targets - targets.mean()) ** 2).mean().clamp(min=1e-12)
    return {"r2": 1 - (error.mean() / spread).item(), "loss": error.mean().item()}


def _rows(targets: Tensor, settings: Settings) -> Tensor:
    return torch.tensor(float(len(targets)))


LABEL = Objective(_classify, _class_weight, _label_figures)
OBJECTIVES: Mapping[str, Objective] = {
    "label": LABEL,
    "pair": LABEL,
    "labels": Objective(_binary, _rows, _labels_figures),
    "score": Objective(_squared, _rows, _score_figures),
}
