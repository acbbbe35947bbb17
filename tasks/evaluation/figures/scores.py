"""Metrics as `evaluate` modules, computed together through `evaluate.combine`, offline.

Importing `evaluate` costs seconds, so nothing but the stage imports this module.
"""

from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as Each

from tasks.evaluation.figures.metrics import Metric
from tasks.evaluation.predictions import Array


class Score(evaluate.Metric):
    """A metric under its name. `evaluate` wants direct subclasses of its Metric.

    Answers and what is true come as numbers, one or a list a row, like those of `answer` and `actual`.
    """

    def __init__(self, name: str, metric: Metric, actual: Array, answer: Array, **options: Any) -> None:
        self._metric, self._types = metric, (actual.dtype, answer.dtype)
        self._features = Features({"predictions": _feature(answer), "references": _feature(actual)})
        super().__init__(config_name=name, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{self.config_name} of answers to test rows",
            citation="",
            inputs_description="predictions: what is said of each row; references: what is true of it",
            features=self._features,
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        actual, answer = (
            np.array(given, dtype)
            for given, dtype in zip((references, predictions), self._types, strict=True)
        )
        return {self.config_name: self._metric(actual, answer)}


def scores(actual: Array, answer: Array, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Metric -> value, in the order of `metrics`."""
    with TemporaryDirectory() as folder:  # the user's Hugging Face cache would be written to otherwise
        modules = {
            name: Score(name, metric, actual, answer, keep_in_memory=True, cache_dir=folder)
            for name, metric in metrics.items()
        }
        values: dict[str, Any] = evaluate.combine(modules).compute(predictions=answer, references=actual)
    return {name: float(values[name]) for name in metrics}


def _feature(values: Array) -> Any:
    one = Value(str(values.dtype))
    return one if values.ndim == 1 else Each(one)
