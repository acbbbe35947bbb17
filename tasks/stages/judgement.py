"""What is measured of the answers to the test rows: figures with intervals, paired tests, slices, trust."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from tasks.evaluation import confusions, judging, routing, slices, trust
from tasks.evaluation.exhibits import EXHIBITS, Classes
from tasks.evaluation.figures import metrics, scores
from tasks.evaluation.figures.metrics import Interval, Metric, Sampling
from tasks.evaluation.gate import verdict
from tasks.evaluation.gate.pairing import Comparison
from tasks.evaluation.predictions import MODEL, Predictions
from tasks.evaluation.routing import Routes
from tasks.evaluation.slices import Measured, Slice
from tasks.evaluation.trust import Trust
from tasks.params import EvaluationParams
from tasks.stages import upstream
from tasks.stages.contest import Answers


@dataclass(frozen=True, eq=False)
class Judged:
    """All that is measured on the test rows."""

    figures: Mapping[str, Mapping[str, Interval]]  # contestant -> metric -> value with interval
    comparisons: Mapping[str, Comparison]  # contestant -> the model against it
    slices: Sequence[Measured]  # of the model
    trust: Trust | None  # none where answers are no probabilities
    groups: int  # of near-duplicates, each row by itself counted too
    classes: Classes | None  # of the model's answers; none where there are no classes
    routes: Routes | None  # of a mixture of experts


def judge(
    answers: Answers,
    measured: Mapping[str, Metric],
    labels: Sequence[str],
    parts: Sequence[Slice],
    rows: pl.DataFrame,
    settings: EvaluationParams,
) -> Judged:
    """rows: the test rows as preparation wrote them."""
    sampling = Sampling(settings.resamples, settings.confidence, settings.seed, upstream.groups(rows))
    model, groups = answers.test[MODEL], sampling.groups
    return Judged(
        figures={n: _figures(one, measured, labels, sampling) for n, one in answers.test.items()},
        comparisons=_compare(answers.test, sampling),
        slices=_sliced(model, measured, labels, parts, sampling, settings.smallest_slice),
        trust=_trust(answers, sampling, settings),
        groups=len(model.ids) if groups is None else len(np.unique(groups)),
        classes=found(model, labels, sampling) if (found := EXHIBITS[model.kind].classes) else None,
        routes=routing.find(
            answers.reads.counts,
            answers.reads.chosen,
            _dividing(rows, settings.slices, model.kind),
            seed=settings.seed,
        ),
    )


def _dividing(rows: pl.DataFrame, asked: Mapping[str, str], kind: str) -> dict[str, list[str | None]]:
    """What each row has one of: its label, and the columns that slices name."""
    names = {"label": "label"} if kind in confusions.KINDS else {}
    told = {name for name, values in rows.schema.items() if values == pl.String}
    names |= {name: column for name, column in asked.items() if column in told}
    return {name: rows[column].to_list() for name, column in names.items()}


def _figures(
    found: Predictions, measured: Mapping[str, Metric], names: Sequence[str], sampling: Sampling
) -> dict[str, Interval]:
    actual, answer = judging.find(found.kind).view(found.actual, found.answer, names)
    values = scores.scores(actual, answer, measured)
    ranges = metrics.measure(actual, answer, measured, sampling)
    return {name: Interval(values[name], ranges[name].low, ranges[name].high) for name in measured}


def _sliced(
    model: Predictions,
    measured: Mapping[str, Metric],
    names: Sequence[str],
    parts: Sequence[Slice],
    sampling: Sampling,
    smallest: int,
) -> list[Measured]:
    judged = judging.find(model.kind)
    actual, answer = judged.view(model.actual, model.answer, names)
    fit = {name: metric for name, metric in measured.items() if metric.anywhere}
    fit = fit or {name: metric for name, metric in judged.metrics.items() if metric.anywhere}
    return slices.measure(parts, actual, answer, fit, sampling, smallest=smallest)


def _trust(answers: Answers, sampling: Sampling, settings: EvaluationParams) -> Trust | None:
    if answers.validation is None:
        return None
    return trust.judge(
        answers.test[MODEL],
        answers.validation,
        accuracy=settings.abstain.accuracy if settings.abstain else None,
        best_f1=settings.threshold == "best_f1",
        sampling=sampling,
    )


def _compare(answers: Mapping[str, Predictions], sampling: Sampling) -> dict[str, Comparison]:
    """The model against every other contestant."""
    against: Callable[[Predictions], Comparison] = partial(
        verdict.compare,
        answers[MODEL],
        confidence=sampling.confidence,
        resamples=sampling.resamples,
        seed=sampling.seed,
        groups=sampling.groups,
    )
    return {name: against(other) for name, other in answers.items() if name != MODEL}
