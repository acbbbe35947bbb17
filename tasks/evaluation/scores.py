"""METRICS as `evaluate` modules, computed together through `evaluate.combine`, offline.

Importing `evaluate` costs seconds, so nothing but the stage imports this module.
"""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as Each

from tasks.evaluation.metrics import METRICS, Array
from tasks.evaluation.predictions import Labels


class Score(evaluate.Metric):
    """The metric that `config_name` names. `evaluate` wants direct subclasses of its Metric."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{self.config_name} of predicted probabilities",
            citation="",
            inputs_description="predictions: probabilities of each class; references: class numbers",
            features=Features({"predictions": Each(Value("float32")), "references": Value("int64")}),
        )

    def _compute(self, *, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        labels, probabilities = np.array(references, np.int64), np.array(predictions, np.float32)
        return {self.config_name: METRICS[self.config_name](labels, probabilities)}


def scores(labels: Labels, probabilities: Array, names: Sequence[str]) -> dict[str, float]:
    """Metric -> value, in the order of `names`."""
    with TemporaryDirectory() as folder:  # the user's Hugging Face cache would be written to otherwise
        modules = {name: Score(config_name=name, keep_in_memory=True, cache_dir=folder) for name in names}
        values: dict[str, Any] = evaluate.combine(modules).compute(
            predictions=probabilities, references=labels
        )
    return {name: float(values[name]) for name in names}
