"""How answers to rows of each kind are judged: a table with one entry a kind, and what `auto` means.

Light, because the verdict needs it: no torch, no scikit-learn, no matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.errors import DataError, ParamsError, did_you_mean
from tasks.evaluation.figures import (
    answering,
    language,
    metrics,
    multilabel,
    regression,
    tagging,
    translating,
)
from tasks.evaluation.figures.metrics import Metric
from tasks.evaluation.predictions import Array, Predictions

Auto = Literal["auto"]


@dataclass(frozen=True)
class Judging:
    """metrics: all that fit, the names of `usual` being those of evaluation.metrics: auto.

    score: actual, answer -> (rows,) float64, of each row, higher is better; `measure` is its name. Paired
    tests compare it: by McNemar's where it is `right_or_wrong`, 1 or 0, else by permutation.
    unfit: actual, answer -> (rows,) bool, rows that cannot have been answered so; `flaw` says in words why
    not. view: actual, answer, class names -> what the metrics take.
    """

    metrics: Mapping[str, Metric]
    usual: tuple[str, ...]
    measure: str
    score: Callable[[Array, Array], Array]
    unfit: Callable[[Array, Array], Array]
    flaw: str
    right_or_wrong: bool = False
    view: Callable[[Array, Array, Sequence[str]], tuple[Array, Array]] = lambda a, b, names: (a, b)

    def chosen(self, names: Sequence[str] | Auto, *, key: str = "evaluation.metrics") -> dict[str, Metric]:
        """The metrics of these names, in their order; `key` is where params name them.

        Raises ParamsError that lists every one that does not fit rows of this kind.
        """
        wanted = self.usual if names == "auto" else tuple(names)
        if unknown := [name for name in wanted if name not in self.metrics]:
            faults = (
                f"{key}: no metric {name!r} for rows of this kind; {did_you_mean(name, self.metrics)}"
                for name in unknown
            )
            raise ParamsError("\n".join(faults))
        return {name: self.metrics[name] for name in wanted}


def find(kind: str) -> Judging:
    """Raises DataError for a kind of row whose answers nobody can judge yet."""
    if kind not in JUDGINGS:
        raise DataError(
            f"rows of kind {kind!r} cannot be evaluated yet; kinds that can: {', '.join(JUDGINGS)} "
            "(sources.text.kind)"
        )
    return JUDGINGS[kind]


def scores(found: Predictions) -> Array:
    """Of each row, higher is better: (rows,) float64."""
    return find(found.kind).score(found.actual, found.answer)


def _right(actual: Array, probabilities: Array) -> Array:
    return np.asarray(probabilities.argmax(axis=1) == actual, dtype=np.float64)


def _closeness(actual: Array, predicted: Array) -> Array:
    return np.asarray(-((predicted.astype(np.float64) - actual) ** 2))


def _no_distribution(actual: Array, values: Array) -> Array:
    fit = (values >= 0).all(axis=1) & np.isclose(values.sum(axis=1), 1, atol=1e-3)  # NaN is neither
    return np.asarray(~fit)


def _no_shares(actual: Array, values: Array) -> Array:
    return np.asarray(~((values >= 0) & (values <= 1)).all(axis=1))


def _not_finite(actual: Array, values: Array) -> Array:
    return np.asarray(~np.isfinite(values))


def _not_all_tagged(actual: Array, predicted: Array) -> Array:
    return np.array([len(a) != len(b) for a, b in zip(actual, predicted, strict=True)])


def _no_text(actual: Array, answer: Array) -> Array:
    return np.array([not isinstance(said, str) for said in answer], dtype=bool)


def _no_likelihood(actual: Array, answer: Array) -> Array:
    return np.asarray(~(np.isfinite(answer).all(axis=1) & (answer >= 0).all(axis=1)))


ONE = Judging(
    metrics=metrics.METRICS,
    usual=("accuracy", "macro_f1", "log_loss"),
    measure="accuracy",
    score=_right,
    unfit=_no_distribution,
    flaw="are no probabilities (not numbers, below 0, or a sum other than 1)",
    right_or_wrong=True,
)
LANGUAGE = Judging(
    metrics=language.METRICS,
    usual=("loss", "perplexity", "bits_per_byte", "token_accuracy"),
    measure="negative bits per byte",
    score=language.row_score,
    unfit=_no_likelihood,
    flaw="have no likelihood (not a number, or below 0)",
)
WRITTEN = Judging(
    metrics=translating.METRICS,
    usual=("bleu", "chrf", "rouge_l"),
    measure="chrF of a row",
    score=translating.row_score,
    unfit=_no_text,
    flaw="are no texts",
    view=translating.counted,
)
JUDGINGS: Mapping[str, Judging] = {
    "text": LANGUAGE,
    "completion": LANGUAGE,
    "chat": LANGUAGE,
    "translation": WRITTEN,
    "prefix-remainder": WRITTEN,
    "answer": Judging(
        metrics=answering.METRICS,
        usual=("f1", "exact_match"),
        measure="F1 of a row's words",
        score=answering.row_score,
        unfit=_no_text,
        flaw="are no texts",
        view=answering.counted,
    ),
    "label": ONE,
    "pair": ONE,
    "labels": Judging(
        metrics=multilabel.METRICS,
        usual=("micro_f1", "macro_f1", "row_f1", "exact_match", "log_loss"),
        measure="F1 of a row's labels",
        score=multilabel.row_f1,
        unfit=_no_shares,
        flaw="are no probabilities (not numbers, below 0 or above 1)",
    ),
    "score": Judging(
        metrics=regression.METRICS,
        usual=("rmse", "mae", "r2", "spearman"),
        measure="negative squared error",
        score=_closeness,
        unfit=_not_finite,
        flaw="are not finite numbers",
    ),
    "tags": Judging(
        metrics=tagging.METRICS,
        usual=("token_accuracy", "entity_f1", "macro_f1"),
        measure="share of a row's words tagged rightly",
        score=tagging.right,
        unfit=_not_all_tagged,
        flaw="have not one tag for each word",
        view=tagging.counted,
    ),
}
