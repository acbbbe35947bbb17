"""Whether a model is as sure as it is right, and one number that mends it: the temperature that its logits
are divided by (Guo et al. 2017). It changes no choice between classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from tasks.evaluation.asking.predict import Matrix, sigmoid, softmax
from tasks.evaluation.figures import metrics, multilabel
from tasks.evaluation.figures.metrics import Metric
from tasks.evaluation.predictions import Array, Predictions, Probabilities

COLDEST, HOTTEST = 0.05, 20.0  # where rows that are all right, or all guessed, would have no bound
SPREAD = 0.5  # of the temperature's logarithm about 0, before any row is seen: few rows move it little
DIGITS = 6  # of what is chosen: below them libraries differ


def fit(found: Predictions) -> float:
    """The likeliest temperature, given these rows and that models are seldom far from being as sure as they
    are right; they must have logits."""
    return temperature(found.kind, found.actual, _scores(found), prior=1 / (2 * SPREAD**2))


def temperature(kind: str, actual: Array, scores: Array, *, prior: float = 0.0) -> float:
    """Where the summed log loss of rows of this kind is least, given what is true of them and their logits
    (rows, classes), with `prior` times the square of the temperature's logarithm added."""
    link, loss = LINKS[kind], FIGURES[kind]["log_loss"]

    def cost(power: float) -> float:
        return loss(actual, link(scores / np.exp(power))) + prior * power**2 / actual.size

    best = minimize_scalar(
        cost, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-6}
    )
    return round(float(np.exp(best.x)), DIGITS)


def at(found: Predictions, temperature: float) -> Probabilities:
    """The probabilities (rows, classes) at this temperature; the rows must have logits."""
    return LINKS[found.kind](_scores(found) / temperature)


def tempered(probabilities: Probabilities, kind: str, temperature: float) -> Probabilities:
    """Probabilities of temperature 1 at this one, without their logits: logarithms, or of labels that hold by
    themselves the log odds, differ from logits by what the link takes out again."""
    tiny = np.finfo(np.float32).tiny
    scores = np.log(np.maximum(probabilities.astype(np.float64), tiny))
    if kind == "labels":
        scores -= np.log(np.maximum(1 - probabilities.astype(np.float64), tiny))
    return LINKS[kind](scores / temperature)


def cells(actual: Array, probabilities: Array) -> tuple[Array, Array]:
    """Each label of each row as if it were a row with two classes: (cells,), (cells, 2)."""
    holds = np.stack([1 - probabilities, probabilities], axis=-1).reshape(-1, 2)
    return actual.reshape(-1).astype(np.int64), holds


def reliability(kind: str, actual: Array, probabilities: Array) -> dict[str, Array]:
    """`metrics.reliability`, for rows of any of these kinds."""
    return metrics.reliability(
        *(cells(actual, probabilities) if kind == "labels" else (actual, probabilities))
    )


def _scores(found: Predictions) -> Matrix:
    assert found.logits is not None
    return found.logits


def _ece_of_cells(actual: Array, probabilities: Array) -> float:
    return metrics.ece(*cells(actual, probabilities))


ONE = {"ece": metrics.METRICS["ece"], "log_loss": metrics.METRICS["log_loss"]}
LINKS: Mapping[str, Callable[[Any], Probabilities]] = {"label": softmax, "pair": softmax, "labels": sigmoid}
FIGURES: Mapping[str, Mapping[str, Metric]] = {  # kind of row -> what is told before and after
    "label": ONE,
    "pair": ONE,
    "labels": {
        "ece": Metric(_ece_of_cells, higher_is_better=False),
        "log_loss": multilabel.METRICS["log_loss"],
    },
}
