"""Behavioural tests: what an answer must not mind, where it must not fall, what it must know.

After Ribeiro et al. 2020 (Beyond Accuracy: Behavioral Testing of NLP Models with CheckList): invariance,
directional expectation, minimum functionality. Robustness is what the score loses under an invariance.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from tasks.evaluation import decisions
from tasks.evaluation.figures.metrics import Interval
from tasks.evaluation.gate import verdict
from tasks.evaluation.gate.pairing import Comparison
from tasks.evaluation.perturbations import PERTURBATIONS, changed
from tasks.evaluation.predictions import Array, Predictions

KINDS = ("label", "pair", "labels")  # of row: those with a probability for each label
SHOWN = 3  # failures of a test

Texts = tuple[str, ...]  # of one row: one, or two


@dataclass(frozen=True)
class Reader:
    """A model. answers: probabilities (rows, classes). tokens: what it takes of each row, cut as it cuts."""

    answers: Callable[[Sequence[Texts]], Array]
    tokens: Callable[[Sequence[Texts]], Sequence[Sequence[int]]]

    def told_apart(self, texts: Sequence[Texts], others: Sequence[Texts]) -> Array:
        """Numbers of the rows whose tokens differ: another text may read the same, or be cut off."""
        pairs = zip(self.tokens(texts), self.tokens(others), strict=True)
        return np.flatnonzero([list(one) != list(other) for one, other in pairs])


@dataclass(frozen=True)
class Failure:
    text: str  # as it was asked
    wanted: str
    said: str
    figure: float  # how far it fell: in probability


@dataclass(frozen=True)
class Checked:
    """One test. passed: share of its rows, with a Wilson interval. robustness: the score of its rows as they
    are asked, against them as they are; of an invariance alone. worst: the failures that fell furthest."""

    name: str
    type: Literal["invariance", "direction", "minimum functionality"]
    told: str
    rows: int
    passed: Interval | None  # none without rows
    robustness: Comparison | None
    worst: tuple[Failure, ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """The test rows that are asked again, with what the model says of them as they are. groups: (rows,)
    int64, equal for near-duplicates; None where no two are."""

    texts: Sequence[Texts]
    plain: Predictions
    labels: Sequence[str]
    groups: Array | None = None

    def only(self, places: Array) -> "Asked":
        found = self.plain
        kept = tuple(found.ids[place] for place in places)
        rows = replace(found, ids=kept, actual=found.actual[places], answer=found.answer[places], logits=None)
        groups = None if self.groups is None else self.groups[places]
        return Asked([self.texts[place] for place in places], rows, self.labels, groups)


@dataclass(frozen=True)
class Sureness:
    """Of what intervals of differences are made."""

    confidence: float
    resamples: int
    seed: int


def sample(asked: Asked, *, rows: int, seed: int) -> Asked:
    """At most `rows` of them, drawn by `seed`, in their order."""
    drawn = np.random.default_rng(seed).permutation(len(asked.texts))[:rows]
    return asked.only(np.sort(drawn))


def invariance(
    asked: Asked, perturbation: str, reader: Reader, *, names: Sequence[str], sureness: Sureness
) -> Checked:
    """The rows whose tokens the perturbation changes must be answered as before."""
    given = [changed(texts, perturbation, seed=sureness.seed, names=names) for texts in asked.texts]
    places = reader.told_apart(asked.texts, given)
    told = PERTURBATIONS[perturbation].told
    if not len(places):
        return Checked(perturbation, "invariance", told, 0, None, None, ())
    rows, new = asked.only(places), [given[place] for place in places]
    after = replace(rows.plain, contestant=perturbation, answer=reader.answers(new))
    robustness = verdict.compare(
        after,
        rows.plain,
        confidence=sureness.confidence,
        resamples=sureness.resamples,
        seed=sureness.seed,
        groups=rows.groups,
    )
    before_says, after_says = _said(rows.plain), _said(after)
    good = (before_says == after_says).all(axis=1)
    fell = np.where(before_says, rows.plain.answer - after.answer, 0).max(axis=1)
    wanted, said = (_named(says, asked.labels) for says in (before_says, after_says))
    return _checked(
        perturbation, "invariance", told, good, new, wanted, said, fell, sureness, robustness=robustness
    )


def direction(
    asked: Asked, phrase: str, label: str, reader: Reader, *, tolerance: float, sureness: Sureness
) -> Checked:
    """With `phrase` behind the text, the probability of `label` must not fall by more than `tolerance`.
    Only rows count that have room for the phrase."""
    name = f"{phrase} → {label}"
    told = f"behind a text, {label} does not become less likely by more than {tolerance:g}"
    given = [(*texts[:-1], f"{texts[-1]} {phrase}") for texts in asked.texts]
    places = reader.told_apart(asked.texts, given)
    if not len(places):
        return Checked(name, "direction", told, 0, None, None, ())
    rows, new = asked.only(places), [given[place] for place in places]
    column = list(asked.labels).index(label)
    before, after = rows.plain.answer[:, column], reader.answers(new)[:, column]
    fell = (before - after).astype(np.float64)
    wanted, said = ([f"{label} {share:.3f}" for share in shares] for shares in (before, after))
    return _checked(name, "direction", told, fell <= tolerance, new, wanted, said, fell, sureness)


def functionality(
    expected: Sequence[tuple[Texts, str]],
    labels: Sequence[str],
    kind: str,
    reader: Reader,
    *,
    sureness: Sureness,
) -> Checked:
    """Plain texts that the model must know: texts -> label."""
    new = [texts for texts, _ in expected]
    answers = reader.answers(new)
    places = [list(labels).index(label) for _, label in expected]
    says = _said(Predictions("", (), np.empty(0), answers, kind))
    good = says[np.arange(len(new)), places]
    missing = answers.max(axis=1) - answers[np.arange(len(new)), places]
    told = "plain texts of which the label is known"
    name, wanted = "expected", [label for _, label in expected]
    return _checked(
        name, "minimum functionality", told, good, new, wanted, _named(says, labels), missing, sureness
    )


def keys(found: Sequence[Checked]) -> list[str]:
    """A name of each test that MLflow takes; what would be called the same is numbered."""
    taken: list[str] = []
    for one in found:
        name = re.sub(r"[^\w ./-]+", "-", one.name)
        again = (f"{name} {number}" for number in count(2))
        taken.append(next(key for key in chain([name], again) if key not in taken))
    return taken


def _checked(
    name: str,
    type: Literal["invariance", "direction", "minimum functionality"],
    told: str,
    good: Array,
    texts: Sequence[Texts],
    wanted: Sequence[str],
    said: Sequence[str],
    fell: Array,
    sureness: Sureness,
    *,
    robustness: Comparison | None = None,
) -> Checked:
    failed = sorted(np.flatnonzero(~good).tolist(), key=lambda row: (-fell[row], row))[:SHOWN]
    worst = [Failure(" / ".join(texts[row]), wanted[row], said[row], float(fell[row])) for row in failed]
    passed = _share(int(good.sum()), len(good), sureness.confidence)
    return Checked(name, type, told, len(good), passed, robustness, tuple(worst))


def _said(found: Predictions) -> Array:
    """Whether each label is said: (rows, classes) bool."""
    if found.kind == "labels":
        return np.asarray(found.answer >= decisions.HALF)
    return np.asarray(np.arange(found.answer.shape[1]) == found.chosen[:, None])


def _named(says: Array, labels: Sequence[str]) -> list[str]:
    return [", ".join(name for name, holds in zip(labels, row, strict=True) if holds) or "—" for row in says]


def _share(good: int, rows: int, confidence: float) -> Interval:
    found = binomtest(good, rows).proportion_ci(confidence, method="wilson")
    return Interval(good / rows, float(found.low), float(found.high))
