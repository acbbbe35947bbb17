"""From probabilities to what is said: a threshold for each label, and when to say nothing. Numpy only.

Everything is chosen on validation rows and only told of test rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.figures.metrics import ratio
from tasks.evaluation.predictions import Array

HALF = 0.5
DIGITS = 6  # of a threshold, rounded down, so that the row it was read off is still answered
NEVER = 1.000001  # where no confidence is enough: above 1 in float32 too, which many rows have exactly


@dataclass(frozen=True)
class Decision:
    """How probabilities become an answer. temperature: what logits are divided by, before anything else.

    abstain_below: a row whose largest probability is smaller is not answered; None answers all. thresholds:
    of each label, the probability from which on it holds; empty where rows have one label.
    """

    temperature: float = 1.0
    abstain_below: float | None = None
    thresholds: tuple[float, ...] = ()


def read(text: str, labels: Sequence[str]) -> Decision:
    """What a registered version has chosen, as JSON; what it lacks is as in Decision().

    Raises ValueError for what is no decision, and for thresholds that are not one a label.
    """
    told = json.loads(text)
    if not isinstance(told, dict):
        raise ValueError(f"{text[:40]} is no object")
    thresholds = tuple(map(float, told.get("thresholds") or ()))
    if thresholds and len(thresholds) != len(labels):
        raise ValueError(f"{len(thresholds)} thresholds for {len(labels)} labels")
    below = told.get("abstain_below")
    return Decision(float(told.get("temperature") or 1), None if below is None else float(below), thresholds)


def abstain_below(correct: NDArray[np.bool_], confidence: Array, accuracy: float) -> float:
    """The smallest confidence such that rows of at least it are right in this share; NEVER where none is.

    correct, confidence: (rows,).
    """
    counts, right, ends = _from_surest(correct, confidence)
    enough = np.flatnonzero(right >= accuracy * counts)
    return _down(ends[enough[-1]]) if enough.size else NEVER


def coverage_curve(correct: NDArray[np.bool_], confidence: Array) -> tuple[Array, Array]:
    """Share of rows answered, and of these the share that is right, as confidence is asked less of (El-Yaniv
    & Wiener 2010): (distinct confidences,) each."""
    counts, right, _ = _from_surest(correct, confidence)
    return counts / len(correct), right / counts


def best_f1(actual: Array, probabilities: Array) -> tuple[float, ...]:
    """Of each label the threshold with the best F1, the largest of equals; HALF for one that no row has.

    actual, probabilities: (rows, classes).
    """
    return tuple(_best(held > 0, said) for held, said in zip(actual.T, probabilities.T, strict=True))


def coverage(probabilities: Array, below: float) -> float:
    """Share of rows that are answered."""
    return float((probabilities.max(axis=1) >= below).mean())


def selective_accuracy(labels: Array, probabilities: Array, below: float) -> float:
    """Accuracy on the rows that are answered; 0 where none is."""
    answered = probabilities.max(axis=1) >= below
    right = (probabilities.argmax(axis=1) == labels) & answered
    return float(right.sum() / max(1, answered.sum()))


def held(probabilities: Array, thresholds: Sequence[float]) -> Array:
    """1 where a label holds, 0 elsewhere: (rows, classes), of the probabilities' dtype."""
    return (probabilities >= np.array(thresholds)).astype(probabilities.dtype)


def _best(held: NDArray[np.bool_], said: Array) -> float:
    if not held.any():
        return HALF
    counts, hits, ends = _from_surest(held, said)
    return _down(ends[ratio(2 * hits, counts + held.sum()).argmax()])


def _from_surest(good: NDArray[np.bool_], sureness: Array) -> tuple[Array, Array, Array]:
    """Down from the surest row, equals at once: rows so far, good ones so far, the sureness reached."""
    order = np.argsort(-sureness, kind="stable")
    falling = sureness[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    return last + 1, np.cumsum(good[order])[last], falling[last]


def _down(value: float) -> float:
    """A threshold of 0 would hold for every row."""
    below = float(np.floor(float(value) * 10**DIGITS) / 10**DIGITS)
    return below or float(np.nextafter(np.float32(value), np.float32(0)))
