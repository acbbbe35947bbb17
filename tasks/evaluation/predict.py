"""What a model answers: logits, frozen features, probabilities; always in the order the rows came in.

`batches` turns rows of token ids into (row numbers, ids (batch, tokens), mask (batch, tokens)) and may take
the rows in any order; the caller passes it, ready with batch size and padding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.errors import TrainingError
from tasks.evaluation.predictions import Probabilities
from tasks.progress import track

Tokens = Sequence[Sequence[int]]
Batches = Callable[[Tokens], Iterable[tuple[Sequence[int], Tensor, Tensor]]]
Pooling = Callable[[Tensor, Tensor], Tensor]
Matrix = NDArray[np.float32]


def logits(model: PreTrainedModel, input_ids: Tokens, *, ids: Sequence[str], batches: Batches) -> Matrix:
    """(rows, classes) float32. Raises TrainingError naming the rows whose logits are not finite."""

    def answer(tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return (model(input_ids=tokens, attention_mask=mask).logits,)

    (scores,) = _forward(model, answer, input_ids, batches=batches)
    return _finite(scores, ids, "logits")


def features(
    model: PreTrainedModel, input_ids: Tokens, *, ids: Sequence[str], batches: Batches, pooling: str = "mean"
) -> Matrix:
    """The base model's last hidden states, pooled: (rows, width) float32.

    Raises TrainingError naming the rows whose features are not finite.
    """
    base, pool = getattr(model, model.base_model_prefix), POOLINGS[pooling]

    def answer(tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return (pool(base(input_ids=tokens, attention_mask=mask).last_hidden_state, mask),)

    (pooled,) = _forward(model, answer, input_ids, batches=batches)
    return _finite(pooled, ids, "features")


def logits_and_features(
    model: PreTrainedModel, input_ids: Tokens, *, ids: Sequence[str], batches: Batches, pooling: str = "mean"
) -> tuple[Matrix, Matrix]:
    """`logits` and `features` from one forward pass instead of two."""
    base, pool = getattr(model, model.base_model_prefix), POOLINGS[pooling]
    hidden: list[Tensor] = []

    def answer(tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        scores = model(input_ids=tokens, attention_mask=mask).logits
        return scores, pool(hidden.pop(), mask)

    hook = base.register_forward_hook(lambda module, given, output: hidden.append(output.last_hidden_state))
    try:
        scores, pooled = _forward(model, answer, input_ids, batches=batches)
    finally:
        hook.remove()
    return _finite(scores, ids, "logits"), _finite(pooled, ids, "features")


def predict_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batches: Batches,
    max_length: int,
) -> Probabilities:
    """Probabilities (rows, classes) float32 of `texts`, cut to `max_length` tokens as in training."""
    rows = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    names = [f"text {number}" for number in range(1, len(texts) + 1)]
    return softmax(logits(model, rows, ids=names, batches=batches))


def softmax(scores: NDArray[Any]) -> Probabilities:
    """(rows, classes) logits to probabilities, float32; each row sums to 1."""
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (batch, tokens, width), (batch, tokens) -> (batch, width)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def first(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first token's state, BERT's [CLS]: (batch, tokens, width) -> (batch, width)."""
    return hidden[:, 0]


def _forward(
    model: PreTrainedModel,
    answer: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    input_ids: Tokens,
    *,
    batches: Batches,
) -> list[Matrix]:
    """`answer` of every row, in row order: one (rows, …) float32 array per tensor it returns."""
    rows: list[tuple[Matrix, ...] | None] = [None] * len(input_ids)
    each = _each(model, answer, batches(input_ids))
    for number, parts in track(each, total=len(input_ids), description="predicting"):
        rows[number] = parts
    if missing := rows.count(None):
        raise ValueError(f"batches left out {missing} of {len(rows)} rows")
    return [np.stack(parts) for parts in zip(*(row for row in rows if row is not None), strict=True)]


def _each(
    model: PreTrainedModel,
    answer: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    batches: Iterable[tuple[Sequence[int], Tensor, Tensor]],
) -> Iterator[tuple[int, tuple[Matrix, ...]]]:
    model.eval()
    for numbers, tokens, mask in batches:
        with torch.inference_mode():
            tensors = answer(tokens.to(model.device), mask.to(model.device))
        arrays = [tensor.float().cpu().numpy() for tensor in tensors]
        for place, number in enumerate(numbers):
            yield number, tuple(array[place] for array in arrays)


def _finite(values: Matrix, ids: Sequence[str], what: str) -> Matrix:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        named = ", ".join(ids[number] for number in bad[:5]) + (", …" if bad.size > 5 else "")
        raise TrainingError(
            f"the model's {what} are not finite numbers for {bad.size:,} of {len(ids):,} rows ({named}): "
            "its weights have diverged; train again at a lower learning rate"
        )
    return values


POOLINGS: Mapping[str, Pooling] = {"mean": mean, "first": first}
