"""Whether two ways to compute a model's logits say the same of every row: how far they are apart, and what is
chosen by them. Numpy only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.errors import TrainingError

Matrix = NDArray[np.float32]
TOLERANCE = 1e-4  # of the largest logit: float32 summed in another order; six layers of MiniLM differ by 1e-6


@dataclass(frozen=True)
class Agreement:
    """difference: the largest of any logit, relative to the largest logit; `row`: whose it is. close: answers
    with another label, where the two best logits are no further apart than `tolerance` of the largest."""

    difference: float
    row: str
    close: int
    tolerance: float = TOLERANCE


def measure(kind: str, ids: Sequence[str], ours: Sequence[Matrix], theirs: Sequence[Matrix]) -> Agreement:
    """Logits of rows of `kind`, each (answers, outputs): one answer a row, of tags one a token.

    Raises TrainingError naming the row whose logits are furthest apart, or the first that gets another label,
    where that is beyond TOLERANCE.
    """
    pairs = list(zip(ours, theirs, strict=True))
    largest = max(float(np.abs(one).max()) for one in ours)
    apart = [float(np.abs(one - other).max()) / largest for one, other in pairs]
    worst = int(np.nan_to_num(apart, nan=np.inf).argmax())
    if not apart[worst] <= TOLERANCE:  # so written, NaN fails
        raise TrainingError(
            f"row {ids[worst]}: logits differ by {apart[worst]:.3g} of the largest, more than {TOLERANCE:g}"
        )
    changed = [_changed(kind, one, other) / largest for one, other in pairs]
    for row, leads in zip(ids, changed, strict=True):
        if (leads > TOLERANCE).any():
            raise TrainingError(
                f"row {row}: another label, where the best logit leads by {leads.max():.3g} of the largest, "
                f"more than {TOLERANCE:g}"
            )
    return Agreement(apart[worst], ids[worst], sum(map(len, changed)))


def _changed(kind: str, one: Matrix, other: Matrix) -> Matrix:
    """By how much `one` preferred its choice to the next, of the answers where `other` chooses otherwise."""
    if kind not in CHOICES:
        return np.zeros(0, dtype=np.float32)
    ours, theirs = CHOICES[kind](one), CHOICES[kind](other)
    best = np.sort(ours, axis=-1)
    leads: Matrix = (best[..., -1] - best[..., -2])[ours.argmax(axis=-1) != theirs.argmax(axis=-1)]
    return leads


def _whole(logits: Matrix) -> Matrix:
    return logits


def _each(logits: Matrix) -> Matrix:
    """Every label by itself: it holds from a logit of 0 on."""
    return np.stack([np.zeros_like(logits), logits], axis=-1)


CHOICES: Mapping[str, Callable[[Matrix], Matrix]] = {  # kind of row -> logits of what is chosen from
    "label": _whole,
    "pair": _whole,
    "labels": _each,
    "tags": _whole,
}
