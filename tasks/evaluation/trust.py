"""How far the model's probabilities can be trusted, and what is decided by them: chosen on validation rows,
told of test rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tasks.evaluation import calibration, decisions, judging
from tasks.evaluation import pictures as drawing
from tasks.evaluation.decisions import Decision
from tasks.evaluation.figures.metrics import Interval, Metric, Sampling, measure
from tasks.evaluation.pictures import Picture
from tasks.evaluation.predictions import Array, Predictions, Probabilities

POINTS = 200  # of a curve
Figures = Mapping[str, Interval]


@dataclass(frozen=True, eq=False)
class Trust:
    """before, after: figures of calibration on the test rows at temperature 1 and at the chosen one. decided:
    what the decision comes to on them. probabilities: of the test rows, at the chosen temperature."""

    decision: Decision
    rows: int  # validation rows
    before: Figures
    after: Figures
    decided: Figures
    probabilities: Probabilities


def judge(
    test: Predictions,
    validation: Predictions,
    *,
    accuracy: float | None,
    best_f1: bool,
    sampling: Sampling,
) -> Trust:
    """accuracy: that answered validation rows must reach, or None to answer all. best_f1: whether each label
    has a threshold of its own."""
    heat = calibration.fit(validation)
    before, after = calibration.at(test, 1.0), calibration.at(test, heat)
    decision = _choose(validation, heat, accuracy, best_f1=best_f1)
    figures = calibration.FIGURES[test.kind]
    return Trust(
        decision=decision,
        rows=len(validation.ids),
        before=measure(test.actual, before, figures, sampling),
        after=measure(test.actual, after, figures, sampling),
        decided=_decided(test, after, decision, sampling),
        probabilities=after,
    )


def curve(test: Predictions, found: Trust) -> tuple[Array, Array]:
    """Coverage and accuracy, the surest rows first, at most POINTS of each; none where a row has any number
    of labels."""
    if test.kind == "labels":
        return np.empty(0), np.empty(0)
    both = decisions.coverage_curve(test.correct, found.probabilities.max(axis=1))
    kept = np.unique(np.linspace(0, len(both[0]) - 1, POINTS).round().astype(np.int64))
    return both[0][kept], both[1][kept]


def reliability(test: Predictions, found: Trust) -> dict[str, dict[str, Array]]:
    """`metrics.reliability` as trained and, if that is another one, at the chosen temperature."""
    raw = calibration.at(test, 1.0)
    tables = {"as trained": calibration.reliability(test.kind, test.actual, raw)}
    if found.decision.temperature != 1:
        name = f"temperature {found.decision.temperature:.3g}"
        tables[name] = calibration.reliability(test.kind, test.actual, found.probabilities)
    return tables


def pictures(test: Predictions, found: Trust) -> list[Picture]:
    """How sure and how right, before and after; and what is gained by answering fewer rows."""
    drawn = [
        Picture(
            "Reliability",
            "Below the dotted line the model is surer than it is right.",
            drawing.reliability_diagram(reliability(test, found)),
        )
    ]
    if test.kind != "labels":
        told = "Rows that the model is surest of, and how many of them it has right."
        chosen = found.decided if found.decision.abstain_below is not None else None
        point = (chosen["coverage"].value, chosen["accuracy"].value) if chosen else None
        drawn.append(Picture("Coverage", told, drawing.coverage_curve(*curve(test, found), point)))
    return drawn


def _choose(validation: Predictions, heat: float, accuracy: float | None, *, best_f1: bool) -> Decision:
    probabilities = calibration.at(validation, heat)
    if validation.kind == "labels":
        half = (decisions.HALF,) * probabilities.shape[1]
        chosen = decisions.best_f1(validation.actual, probabilities) if best_f1 else half
        return Decision(heat, None, chosen)
    if accuracy is None:
        return Decision(heat)
    below = decisions.abstain_below(validation.correct, probabilities.max(axis=1), accuracy)
    return Decision(heat, below)


def _decided(
    test: Predictions, probabilities: Probabilities, decision: Decision, sampling: Sampling
) -> Figures:
    if test.kind == "labels":
        held = decisions.held(probabilities, decision.thresholds)
        usual = judging.find(test.kind).metrics
        return measure(test.actual, held, {name: usual[name] for name in F1}, sampling)
    below = 0.0 if decision.abstain_below is None else decision.abstain_below
    selective = partial(decisions.selective_accuracy, below=below)
    figures = {
        "coverage": Metric(lambda actual, said: decisions.coverage(said, below), higher_is_better=True),
        "accuracy": Metric(selective, higher_is_better=True),
    }
    return measure(test.actual, probabilities, figures, sampling)


F1 = ("micro_f1", "macro_f1", "row_f1")
