"""What a phase minimises: a table of objectives whose updates do not depend on how a batch is cut up.

An objective gives the sum of the losses of some rows; the loop divides by the weight of the whole batch. The
mean of the parts' means would be another number wherever the parts weigh differently. Validation figures come
from sums too, so that the logits of all rows are never held at once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tasks.errors import TrainingError, did_you_mean
from tasks.params import SELECTED

NOTHING = -100  # a target that counts for nothing, as in torch's cross-entropy
AUTO, PERPLEXITY = "auto", "perplexity"  # the latter is a figure of language models alone


@dataclass(frozen=True)
class Settings:
    """weights: (classes,) float32 of each class, or none. smoothing: of labels (Szegedy et al., 2016).
    focus: gamma of the focal loss (Lin et al., 2017); 0 is cross-entropy."""

    weights: Tensor | None = None
    smoothing: float = 0.0
    focus: float = 0.0


@dataclass(frozen=True)
class Objective:
    """loss: logits (read, outputs), targets -> the sum of the losses, in nats where it is a likelihood.
    weight: targets -> what the sum is divided by. sums: logits, targets -> (k,) float64 that add up over
    batches. figures: those of all rows -> name -> value. select: the figure by which the best epoch is kept.
    balance: targets, classes -> weights that give every class the same say, where that means something.
    softened: whether label smoothing and the focal loss mean something."""

    loss: Callable[[Tensor, Tensor, Settings], Tensor]
    weight: Callable[[Tensor, Settings], Tensor]
    sums: Callable[[Tensor, Tensor], Tensor]
    figures: Callable[[Tensor], dict[str, float]]
    select: str
    balance: Callable[[Tensor, int], Tensor] | None = None
    names: tuple[str, ...] = ("accuracy", "loss")
    softened: bool = False

    def selected(self, wanted: str) -> str:
        """The figure that `finetuning.select` means. Raises TrainingError for one that there is not."""
        if wanted == AUTO:
            return self.select
        if wanted not in self.names:
            raise TrainingError(f"finetuning.select: no figure {wanted!r} of these rows; "
                                f"{did_you_mean(wanted, self.names)}")  # fmt: skip
        return wanted


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
    counts = torch.bincount(labels[labels != NOTHING], minlength=classes).float()
    return torch.where(counts > 0, counts.sum() / (classes * counts.clamp(min=1)), torch.ones_like(counts))


def balanced_labels(targets: Tensor, classes: int) -> Tensor:
    """Weights (classes,) float32 of the rows that have a label, against those that have not: as many times as
    these are more. targets (rows, classes)."""
    held = targets.float().sum(dim=0)
    return torch.where(held > 0, (len(targets) - held) / held.clamp(min=1), torch.ones_like(held))


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


def _label_sums(logits: Tensor, targets: Tensor) -> Tensor:
    right = (logits.argmax(dim=-1) == targets).sum()
    loss = functional.cross_entropy(logits, targets, ignore_index=NOTHING, reduction="sum")
    return _stacked(right, loss, (targets != NOTHING).sum())


def _label_figures(sums: Tensor) -> dict[str, float]:
    right, loss, count = sums.tolist()
    return {"accuracy": right / count, "loss": loss / count}


def _word_figures(sums: Tensor) -> dict[str, float]:
    figures = _label_figures(sums)
    return {**figures, PERPLEXITY: math.exp(min(figures["loss"], 700.0))}


def _binary(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Each class by itself, yes or no; a row counts for the mean over its classes."""
    each = functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), pos_weight=settings.weights, reduction="none"
    )
    return each.mean(dim=-1).sum()


def _labels_sums(logits: Tensor, targets: Tensor) -> Tensor:
    said, given = logits > 0, targets > 0
    exact = (said == given).all(dim=-1).sum()
    loss = _binary(logits, targets, Settings())
    return _stacked(exact, (said & given).sum(), said.sum() + given.sum(), loss, torch.tensor(len(targets)))


def _labels_figures(sums: Tensor) -> dict[str, float]:
    exact, hits, both, loss, rows = sums.tolist()
    return {"accuracy": exact / rows, "micro_f1": 2 * hits / max(1.0, both), "loss": loss / rows}


def _squared(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    return ((logits[:, 0] - targets) ** 2).sum()


def _score_sums(logits: Tensor, targets: Tensor) -> Tensor:
    wide = targets.double()
    error = ((logits[:, 0].double() - wide) ** 2).sum()
    return _stacked(error, wide.sum(), (wide**2).sum(), torch.tensor(len(targets)))


def _score_figures(sums: Tensor) -> dict[str, float]:
    error, total, squares, rows = sums.tolist()
    spread = max(squares / rows - (total / rows) ** 2, 1e-12)
    return {"r2": 1 - error / rows / spread, "loss": error / rows}


def _rows(targets: Tensor, settings: Settings) -> Tensor:
    return torch.tensor(float(len(targets)))


def _span(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Of every row, where the answer starts and where it ends, each one of the row's tokens: the mean of both
    cross-entropies (Devlin et al., 2019, section 4.2). logits (tokens, 2); targets (tokens, 3): starts here,
    ends here, the row begins here."""
    losses = _normalisers(logits, targets) - _at_answers(logits, targets)
    return losses.sum() / 2


def _normalisers(logits: Tensor, targets: Tensor) -> Tensor:
    """log of the sum of exp over each row's tokens: (rows, 2)."""
    lengths = torch.diff(
        torch.nonzero(targets[:, 2])[:, 0], append=targets.new_tensor([len(targets)])
    ).tolist()
    return torch.stack([part.logsumexp(dim=0) for part in logits.split(lengths)])


def _at_answers(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits of the answers' starts and ends: (rows, 2)."""
    return torch.stack([logits[targets[:, side] > 0, side] for side in (0, 1)], dim=1)


def _span_weight(targets: Tensor, settings: Settings) -> Tensor:
    return targets[:, 2].sum().float()


def _span_sums(logits: Tensor, targets: Tensor) -> Tensor:
    at, rows = _at_answers(logits, targets), int(targets[:, 2].sum())
    row = targets[:, 2].cumsum(0) - 1
    best = torch.full((rows, 2), -torch.inf, device=logits.device)
    best = best.scatter_reduce(0, row[:, None].expand(-1, 2), logits.detach().float(), "amax")
    exact = (at >= best).all(dim=1).sum()
    return _stacked(exact, _span(logits, targets, Settings()), torch.tensor(rows))


def _stacked(*values: Tensor) -> Tensor:
    return torch.stack([value.detach().double().cpu() for value in values])


LABEL = Objective(
    _classify, _class_weight, _label_sums, _label_figures, SELECTED["label"], balanced, softened=True
)
WORDS = Objective(
    _classify,
    _class_weight,
    _label_sums,
    _word_figures,
    SELECTED["text"],
    names=("accuracy", "loss", PERPLEXITY),
    softened=True,
)
OBJECTIVES: Mapping[str, Objective] = {
    "label": LABEL,
    "pair": LABEL,
    "labels": Objective(
        _binary, _rows, _labels_sums, _labels_figures, SELECTED["labels"], balanced_labels,
        ("accuracy", "micro_f1", "loss"),
    ),
    "score": Objective(_squared, _rows, _score_sums, _score_figures, SELECTED["score"], names=("r2", "loss")),
    "tags": LABEL,
    "answer": Objective(_span, _span_weight, _span_sums, _label_figures, SELECTED["answer"]),
    "text": WORDS,
    "completion": WORDS,
    "chat": WORDS,
    "translation": WORDS,
    "prefix-remainder": WORDS,
}  # fmt: skip
