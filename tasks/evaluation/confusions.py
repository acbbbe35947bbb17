"""Which rows deserve a look: those whose label may be wrong, and those of classes taken for one another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.evaluation.figures import metrics
from tasks.evaluation.predictions import Array, Predictions

KINDS = ("label", "pair")  # of row: those with one label
PAIRS = 3  # of classes shown
EACH = 3  # rows shown of a pair
SUSPECTS = 10  # rows shown


@dataclass(frozen=True)
class Suspect:
    """A row whose label may be wrong: `given` has the probability `share`, `likely` is what it rather is."""

    row: int
    given: int
    likely: int
    share: float


@dataclass(frozen=True)
class Pair:
    """So many rows of the class `actual`, `share` of it, are taken for `predicted`; `rows`: the surest."""

    actual: int
    predicted: int
    count: int
    share: float
    rows: tuple[int, ...]


def suspects(found: Predictions) -> list[Suspect]:
    """Rows whose label is likely wrong, by confident learning (Northcutt et al. 2021, JAIR 70:1373).

    A row is counted for a class whose probability is at least the mean of that probability over the rows that
    bear its label; one that is counted for another class than its own, and that the model gives another label
    too, is suspected, the least likely label first. cleanlab 2.9.0 finds the same rows.

    The probabilities must be of a model that has not learned from these rows.
    """
    labels, shares = found.actual, found.answer.astype(np.float64)
    classes = shares.shape[1]
    borne = np.eye(classes, dtype=bool)[labels]  # (rows, classes)
    means = metrics.ratio((shares * borne).sum(axis=0), borne.sum(axis=0))
    thresholds = np.where(borne.any(axis=0), means, np.inf)
    sure = np.where(shares >= thresholds - 1e-6, shares, -1)
    counted, own = sure.argmax(axis=1), shares[np.arange(len(labels)), labels]
    rows = np.flatnonzero((sure.max(axis=1) >= 0) & (counted != labels) & ~found.correct)
    order = sorted(rows.tolist(), key=lambda row: (own[row], found.ids[row]))
    return [Suspect(row, int(labels[row]), int(counted[row]), float(own[row])) for row in order]


def pairs(found: Predictions) -> list[Pair]:
    """The pairs of classes that are most often taken for one another, at most PAIRS."""
    classes = found.answer.shape[1]
    table = metrics.confusion(found.actual, found.chosen, classes)
    wrong = [
        (int(table[a, b]), a, b) for a in range(classes) for b in range(classes) if a != b and table[a, b]
    ]
    wrong.sort(key=lambda one: (-one[0], one[1], one[2]))
    return [
        Pair(a, b, count, count / float(table[a].sum()), _surest(found, a, b))
        for count, a, b in wrong[:PAIRS]
    ]


def _surest(found: Predictions, actual: int, predicted: int) -> tuple[int, ...]:
    rows: Array = np.flatnonzero((found.actual == actual) & (found.chosen == predicted))
    confidence = found.answer[:, predicted]
    return tuple(sorted(rows.tolist(), key=lambda row: (-confidence[row], found.ids[row]))[:EACH])


def lines(found: Predictions, labels: Sequence[str]) -> Iterator[tuple[str, str, str, float]]:
    """Every suspect as a row of a table under COLUMNS."""
    if found.kind in KINDS:
        for one in suspects(found):
            yield found.ids[one.row], labels[one.given], labels[one.likely], round(one.share, 6)


COLUMNS = ("id", "label", "likely", "probability")
