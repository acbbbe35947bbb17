"""From probabilities to a decision: how sure a label must be to be said. Validation rows have chosen that."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.evaluation.predictions import Array

HALF = 0.5  # from here on one of several labels holds, unless a threshold is chosen for it


@dataclass(frozen=True)
class Rule:
    """temperature: divides the logits of rows with one label. abstain_below: the confidence from which on
    such a row is answered. thresholds: of each of several labels, in their order; none: HALF for all."""

    temperature: float = 1.0
    abstain_below: float = 0.0
    thresholds: tuple[float, ...] = ()

    def scaled(self, probabilities: Array) -> Array:
        """Of rows with one label, (rows, classes), under the temperature (Guo et al. 2017, eq. 9)."""
        if self.temperature == 1:
            return probabilities
        logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
        powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.temperature)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    def holds(self, probabilities: Array) -> Array:
        """Which of several labels hold: (…, labels) bool."""
        return np.asarray(probabilities >= np.asarray(self.thresholds or HALF))

    @property
    def abstains(self) -> bool:
        return self.abstain_below > 0


def read(text: str | None, labels: Sequence[str]) -> Rule:
    """The rule that a version's tag holds as JSON; without a tag, or for a key that it lacks, the default.

    Raises ValueError for thresholds that are not one a label.
    """
    told = json.loads(text or "{}")
    thresholds = tuple(told.get("thresholds") or ())
    if thresholds and len(thresholds) != len(labels):
        raise ValueError(f"{len(thresholds)} thresholds for {len(labels)} labels")
    return Rule(told.get("temperature") or 1.0, told.get("abstain_below") or 0.0, thresholds)
