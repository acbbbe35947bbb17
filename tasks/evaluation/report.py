"""The evaluation as one page of HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from tasks import pages
from tasks.evaluation.metrics import METRICS, Interval, per_class
from tasks.evaluation.pictures import INK
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.verdict import Comparison, p_text, sentence

MISTAKES = 10
CHARACTERS = 400  # of a text shown


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Mistake:
    id: str
    text: str
    actual: str
    predicted: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the page says, as plain values."""

    labels: Sequence[str]
    figures: Mapping[str, Mapping[str, Interval]]  # contestant -> metric -> value with interval
    descriptions: Mapping[str, str]  # contestant -> what it is
    comparisons: Mapping[str, Comparison]  # contestant -> the model against it
    confidence: float
    answers: Predictions  # the model's
    texts: Mapping[str, str]  # row id -> text
    pictures: Sequence[Picture]
    sources: Mapping[str, str]  # term -> path and licence
    rows: Mapping[str, int]  # split -> rows used
    subset: Mapping[str, int | None]  # split -> declared limit
    test: str  # digest of the test rows


def render(facts: Facts) -> str:
    """The page. Every text is escaped; the pictures alone are taken as they are."""
    alpha = 1 - facts.confidence
    return pages.render(
        Path(__file__).with_name("report.jinja"),
        facts=facts,
        alpha=alpha,
        confidence=f"{100 * facts.confidence:g} %",
        rows=len(facts.answers.ids),
        headline=headline(facts.comparisons, alpha=alpha),
        metrics={name: METRICS[name].higher_is_better for name in next(iter(facts.figures.values()))},
        classes=_classes(facts.answers, facts.labels),
        mistakes=mistakes(facts.answers, facts.texts, facts.labels),
        subset=subset_sentence(facts.subset),
        p_text=p_text,
        inline=_inline,
    )


def headline(comparisons: Mapping[str, Comparison], *, alpha: float) -> list[str]:
    """What the evaluation comes to, in sentences: first what the model beats, then all that it does not."""
    beaten = [name for name, found in comparisons.items() if found.better(alpha)]
    rest = [name for name in comparisons if name not in beaten]
    first = (
        [f"The fine-tuned model beats {_and(beaten)} by a paired test at p ≤ {alpha:g}."] if beaten else []
    )
    hardest = min(comparisons, key=lambda name: comparisons[name].difference, default=None)
    if hardest is not None and not rest:
        return [*first, f"The nearest is {hardest}: {sentence(hardest, comparisons[hardest])}."]
    return first + [_without_gain(name, comparisons[name], alpha) for name in rest]


def mistakes(answers: Predictions, texts: Mapping[str, str], labels: Sequence[str]) -> list[Mistake]:
    """The wrong rows of highest confidence, at most ten, by id where confidence is equal."""
    confidence, chosen = answers.probabilities.max(axis=1), answers.chosen
    wrong = sorted(np.flatnonzero(~answers.correct), key=lambda row: (-confidence[row], answers.ids[row]))
    return [
        Mistake(
            id=answers.ids[row],
            text=_cut(texts[answers.ids[row]]),
            actual=labels[answers.labels[row]],
            predicted=labels[chosen[row]],
            confidence=float(confidence[row]),
        )
        for row in wrong[:MISTAKES]
    ]


def subset_sentence(subset: Mapping[str, int | None]) -> str:
    """Whether the figures stand for all of the data or for a declared part of it."""
    limits = [f"{count:,} {split}" for split, count in subset.items() if count is not None]
    if not limits:
        return "All rows that preparation kept were used."
    return f"These figures come from a declared subset: at most {_and(limits)} rows, chosen by hash."


def _classes(answers: Predictions, labels: Sequence[str]) -> list[tuple[str, int, float, float, float]]:
    """Label, test rows, precision, recall and F1 of each class."""
    table = per_class(answers.labels, answers.chosen, len(labels))
    return list(zip(labels, *(table[key] for key in ("rows", "precision", "recall", "f1")), strict=True))


def _without_gain(name: str, found: Comparison, alpha: float) -> str:
    if found.worse(alpha):
        return f"It is worse than {name}: {sentence(name, found)}."
    return f"It brings no measurable gain over {name}: {sentence(name, found)}."


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"


def _inline(svg: str) -> Markup:
    """A picture that follows the page's text colour; matplotlib has escaped its texts."""
    return Markup(svg.replace(INK, "currentColor"))
