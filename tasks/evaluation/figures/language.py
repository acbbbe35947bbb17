"""Figures for language models: how well each next token, or each hidden one, was foreseen. Numpy only.

A metric takes what is true of the rows, (rows, 2) tokens to foresee and their bytes, and what a contestant
came to, (rows, 2) sum of -ln p in nats and tokens foreseen as the likeliest.
"""

from collections.abc import Mapping

import numpy as np

from tasks.evaluation.figures.metrics import Metric
from tasks.evaluation.predictions import Array

TOKENS, BYTES = 0, 1  # columns of what is true
LOSS, HITS = 0, 1  # columns of what a contestant came to


def loss(actual: Array, answer: Array) -> float:
    """Mean -ln p of a token, in nats."""
    return float(answer[:, LOSS].sum() / max(1, actual[:, TOKENS].sum()))


def perplexity(actual: Array, answer: Array) -> float:
    """e to the power of `loss`: among how many equally likely tokens the model is undecided."""
    return float(np.exp(loss(actual, answer)))


def bits_per_byte(actual: Array, answer: Array) -> float:
    """What the text costs, whatever its tokens: comparable between vocabularies (Gao et al. 2020,
    section 3.1)."""
    return float(answer[:, LOSS].sum() / np.log(2) / max(1, actual[:, BYTES].sum()))


def token_accuracy(actual: Array, answer: Array) -> float:
    """Share of the tokens that were the likeliest."""
    return float(answer[:, HITS].sum() / max(1, actual[:, TOKENS].sum()))


def row_score(actual: Array, answer: Array) -> Array:
    """Minus the bits per byte of each row, (rows,); 0 of a row without bytes."""
    bits = answer[:, LOSS] / np.log(2)
    return np.asarray(-np.divide(bits, actual[:, BYTES], out=np.zeros(len(bits)), where=actual[:, BYTES] > 0))


METRICS: Mapping[str, Metric] = {
    "loss": Metric(loss, higher_is_better=False, anywhere=True),
    "perplexity": Metric(perplexity, higher_is_better=False, anywhere=True),
    "bits_per_byte": Metric(bits_per_byte, higher_is_better=False, anywhere=True),
    "token_accuracy": Metric(token_accuracy, higher_is_better=True, anywhere=True),
}
