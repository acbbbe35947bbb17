"""What a model answers: logits, frozen features, answers; always in the order the rows came in.

`batches` turns rows of tokens (input_ids and, for pairs, token_type_ids, ragged) into (row numbers, what the
model takes of them, each (batch, tokens)) and may take the rows in any order; the caller passes it, ready
with batch size and padding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.errors import TrainingError
from tasks.evaluation.asking.sequences import Wording
from tasks.evaluation.predictions import Array, Probabilities, Text, ragged, texts_of
from tasks.progress import track
from tasks.spans import Span, chosen, likeliest

Tokens = Mapping[str, Sequence[Sequence[int]]]
Given = Mapping[str, Tensor]
Batches = Callable[[Tokens], Iterable[tuple[Sequence[int], Given]]]
Pooling = Callable[[Tensor, Tensor], Tensor]
Matrix = NDArray[np.float32]

LOGITS = 2**25  # of a language model at once: 128 MiB


def logits(model: PreTrainedModel, rows: Tokens, *, ids: Sequence[str], batches: Batches) -> Matrix:
    """(rows, classes) float32. Raises TrainingError naming the rows whose logits are not finite."""

    def answer(given: Given) -> tuple[Tensor, ...]:
        return (model(**given).logits,)

    (scores,) = _forward(model, answer, rows, batches=batches)
    return _finite(scores, ids, "logits")


def features(
    model: PreTrainedModel, rows: Tokens, *, ids: Sequence[str], batches: Batches, pooling: str = "mean"
) -> Matrix:
    """The base model's last hidden states, pooled: (rows, width) float32.

    Raises TrainingError naming the rows whose features are not finite.
    """
    base, pool = getattr(model, model.base_model_prefix), POOLINGS[pooling]

    def answer(given: Given) -> tuple[Tensor, ...]:
        return (pool(base(**given).last_hidden_state, given["attention_mask"]),)

    (pooled,) = _forward(model, answer, rows, batches=batches)
    return _finite(pooled, ids, "features")


def tags(model: PreTrainedModel, rows: Tokens, *, ids: Sequence[str], batches: Batches) -> Array:
    """The likeliest class at each of the row's `places`, ragged (rows,).

    Raises TrainingError naming the rows whose logits are not finite.
    """
    found: list[Matrix] = [np.empty((0, 1), dtype=np.float32)] * len(rows["places"])
    each = _each(model, lambda given: (model(**given).logits,), batches(rows))
    for number, (scores,) in track(each, total=len(found), description="predicting"):
        found[number] = scores[np.asarray(rows["places"][number], dtype=np.int64)]
    _finite(np.array([[one.sum()] for one in found]), ids, "logits")
    return ragged(one.argmax(axis=1) for one in found)


def likelihoods(model: PreTrainedModel, rows: Tokens, *, ids: Sequence[str], batches: Batches) -> Array:
    """Sum of -ln p of the row's `targets`, each under the logits at its one of `places`, and how many are the
    likeliest: (rows, 2) float64. Logits of one batch are held at once.

    Raises TrainingError naming the rows whose loss is not finite.
    """
    found = np.zeros((len(rows["places"]), 2))
    model.eval()
    for numbers, given in track(
        batches(rows), total=len(found), description="predicting", size=lambda batch: len(batch[0])
    ):
        with torch.inference_mode():
            scores = model(**{name: value.to(model.device) for name, value in given.items()}).logits
            for row, number in zip(scores, numbers, strict=True):
                at = row[torch.as_tensor(list(rows["places"][number]), dtype=torch.int64)].float()
                wanted = torch.as_tensor(list(rows["targets"][number]), dtype=torch.int64).to(at.device)
                lost = functional.cross_entropy(at, wanted, reduction="none").double().sum()
                found[number] = lost.item(), (at.argmax(dim=-1) == wanted).sum().item()
    _finite(found[:, :1].astype(np.float32), ids, "losses")
    return found


def spans(
    model: PreTrainedModel, rows: Tokens, texts: Sequence[str], *, ids: Sequence[str], batches: Batches
) -> Array:
    """The part of its text that answers each row's question, empty where none does: (rows,) texts.

    rows: the windows of all texts; their `offsets` are characters of the text, two a token, `owners` the
    number of the row that each belongs to. Raises TrainingError naming the rows whose logits are not finite.
    """

    def ends(given: Given) -> tuple[Tensor, ...]:
        said = model(**given)
        return said.start_logits, said.end_logits

    found: list[list[Span]] = [[] for _ in texts]
    sums = np.zeros((len(texts), 1), dtype=np.float32)
    each = _each(model, ends, batches(rows))
    for number, (first, last) in track(each, total=len(rows["input_ids"]), description="predicting"):
        (owner,), offsets = rows["owners"][number], np.array(rows["offsets"][number]).reshape(-1, 2)
        length = len(offsets)  # of the row; behind it is padding
        sums[owner] += first[:length].sum() + last[:length].sum()
        found[owner].append(likeliest(first[:length], last[:length], offsets))
    _finite(sums, ids, "logits")
    return texts_of(chosen(windows, text) for windows, text in zip(found, texts, strict=True))


def answers(
    model: PreTrainedModel, rows: Tokens, *, kind: str, ids: Sequence[str], batches: Batches
) -> Array:
    """What the model says of rows of `kind`, as `predictions.FORMS` says."""
    if kind == "tags":
        return tags(model, rows, ids=ids, batches=batches)
    if "targets" in rows:
        return likelihoods(model, rows, ids=ids, batches=batches)
    return FROM_LOGITS[kind](logits(model, rows, ids=ids, batches=batches))


def logits_and_features(
    model: PreTrainedModel, rows: Tokens, *, ids: Sequence[str], batches: Batches, pooling: str = "mean"
) -> tuple[Matrix, Matrix]:
    """`logits` and `features` from one forward pass instead of two."""
    base, pool = getattr(model, model.base_model_prefix), POOLINGS[pooling]
    hidden: list[Tensor] = []

    def answer(given: Given) -> tuple[Tensor, ...]:
        scores = model(**given).logits
        return scores, pool(hidden.pop(), given["attention_mask"])

    hook = base.register_forward_hook(lambda module, given, output: hidden.append(output.last_hidden_state))
    try:
        scores, pooled = _forward(model, answer, rows, batches=batches)
    finally:
        hook.remove()
    return _finite(scores, ids, "logits"), _finite(pooled, ids, "features")


def predict_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    kind: str,
    batches: Batches,
    max_length: int,
) -> Array:
    """The answers to `texts`, or to pairs of them, as rows of `kind`, cut to `max_length` tokens as in
    training. Of a word that is cut off, or is no token, the tag is -1."""
    names = [f"text {number}" for number in range(1, len(texts) + 1)]
    if kind == "tags":
        words = [text.split() if isinstance(text, str) else list(text) for text in texts]
        return _tag_words(model, tokenizer, words, ids=names, batches=batches, max_length=max_length)
    given = encode(tokenizer, texts, max_length=max_length)
    return answers(model, given, kind=kind, ids=names, batches=batches)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], *, max_length: int) -> Tokens:
    """What a model takes of `texts`, or of pairs of them, cut to `max_length` tokens."""
    sides = [[text] if isinstance(text, str) else list(text) for text in texts]
    columns = [list(side) for side in zip(*sides, strict=True)]
    found = tokenizer(*columns, truncation=True, max_length=max_length)
    told = ("input_ids", *(["token_type_ids"] if len(columns) > 1 else []))
    return {name: found[name] for name in told if name in found}


def _tag_words(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[Sequence[str]],
    *,
    ids: Sequence[str],
    batches: Batches,
    max_length: int,
) -> Array:
    """A tag a word, ragged (rows,): that of its first token."""
    found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    given: dict[str, list[list[int]]] = {"input_ids": found["input_ids"], "places": []}
    held: list[list[int]] = []
    for row, _ in enumerate(words):
        owners = found.word_ids(row)
        firsts = {owner: place for place, owner in reversed(list(enumerate(owners))) if owner is not None}
        given["places"].append([firsts[owner] for owner in sorted(firsts)])
        held.append(sorted(firsts))
    told = tags(model, given, ids=ids, batches=batches)
    return ragged(_spread(row, places, len(of)) for row, places, of in zip(told, held, words, strict=True))


def _spread(values: Array, places: Sequence[int], length: int) -> Array:
    """`values` at `places` of so many, -1 elsewhere."""
    found = np.full(length, -1, dtype=np.int64)
    found[list(places)] = values
    return found


def affordable(model: PreTrainedModel, rows: Tokens, most: int) -> int:
    """Rows of a batch, at most `most`, so that the logits of all their tokens are no more than LOGITS."""
    longest, words = max(map(len, rows["input_ids"])), int(model.config.vocab_size)
    return max(1, min(most, LOGITS // (longest * words)))


def wording(tokenizer: PreTrainedTokenizerBase, *, masked: bool) -> Wording:
    """How a language model's tokens are read."""

    def decode(rows: Sequence[Sequence[int]]) -> list[str]:
        plain = [list(row) for row in rows]
        told = tokenizer.batch_decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return list(told)

    mask = tokenizer.mask_token_id if masked else None
    return Wording(decode, frozenset(tokenizer.all_special_ids), mask)


def softmax(scores: NDArray[Any]) -> Probabilities:
    """(rows, classes) logits to probabilities, float32; each row sums to 1."""
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def sigmoid(scores: NDArray[Any]) -> Probabilities:
    """(rows, classes) logits to the probability of each class by itself, float32."""
    halved = np.tanh(0.5 * scores.astype(np.float64))  # does not overflow
    return np.asarray(0.5 * (1 + halved), dtype=np.float32)


def value(scores: NDArray[Any]) -> NDArray[np.float32]:
    """(rows, 1) logits to scores (rows,) float32."""
    return np.asarray(scores[:, 0], dtype=np.float32)


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (batch, tokens, width), (batch, tokens) -> (batch, width)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def first(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first token's state, BERT's [CLS]: (batch, tokens, width) -> (batch, width)."""
    return hidden[:, 0]


def _forward(
    model: PreTrainedModel,
    answer: Callable[[Given], tuple[Tensor, ...]],
    rows: Tokens,
    *,
    batches: Batches,
) -> list[Matrix]:
    """`answer` of every row, in row order: one (rows, …) float32 array per tensor it returns."""
    found: list[tuple[Matrix, ...] | None] = [None] * len(rows["input_ids"])
    each = _each(model, answer, batches(rows))
    for number, parts in track(each, total=len(found), description="predicting"):
        found[number] = parts
    if missing := found.count(None):
        raise ValueError(f"batches left out {missing} of {len(found)} rows")
    return [np.stack(parts) for parts in zip(*(row for row in found if row is not None), strict=True)]


def _each(
    model: PreTrainedModel,
    answer: Callable[[Given], tuple[Tensor, ...]],
    batches: Iterable[tuple[Sequence[int], Given]],
) -> Iterator[tuple[int, tuple[Matrix, ...]]]:
    model.eval()
    for numbers, given in batches:
        with torch.inference_mode():
            tensors = answer({name: value.to(model.device) for name, value in given.items()})
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
FROM_LOGITS: Mapping[str, Callable[[NDArray[Any]], Array]] = {  # kind of row -> logits to answers
    "label": softmax,
    "pair": softmax,
    "labels": sigmoid,
    "score": value,
}
