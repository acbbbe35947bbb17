"""Labels by prompting: the model as it came goes on behind k demonstrations and a text (Brown et al. 2020).

How it is asked is chosen on validation rows: a small model's accuracy hangs on the template, on which
demonstrations there are and on their order (Zhao et al. 2021; Lu et al. 2022). Test rows choose nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tasks.evaluation import calibration
from tasks.evaluation.asking.predict import softmax
from tasks.evaluation.asking.prompted import Prompt, Scored
from tasks.evaluation.figures.metrics import log_loss
from tasks.evaluation.predictions import Array, Labels, Probabilities

NAME = "k_shot"
Score = Callable[[Prompt, Sequence[str]], Scored]


@dataclass(frozen=True)
class Rows:
    """Texts (rows,) and what their labels are."""

    texts: Sequence[str]
    labels: Labels


@dataclass(frozen=True)
class Candidate:
    """A way to ask. demonstrations: numbers of rows of the encoded train split, from 0, as they are shown."""

    template: str
    demonstrations: tuple[int, ...]

    def prompt(self, train: Rows, labels: Sequence[str]) -> Prompt:
        shown = [(train.texts[row], int(train.labels[row])) for row in self.demonstrations]
        return Prompt(self.template, labels, shown)


@dataclass(frozen=True)
class Tried:
    """What a candidate came to on validation rows. by_length: its likelihoods are divided by the characters
    of the label's name. temperature: the likeliest; log_loss is that at it. cut: rows with too long a
    prompt."""

    candidate: Candidate
    by_length: bool
    accuracy: float
    log_loss: float
    temperature: float
    cut: int


@dataclass(frozen=True, eq=False)
class Found:
    """probabilities (rows, labels) of the test rows; all that was tried on so many validation rows; the test
    rows with too long a prompt."""

    probabilities: Probabilities
    tried: Sequence[Tried]
    chosen: Tried
    rows: int
    cut: int

    def record(self) -> dict[str, Any]:
        """As plain values."""
        told = {"rows": self.rows, "cut": self.cut, "chosen": asdict(self.chosen)}
        return told | {"tried": [asdict(one) for one in self.tried]}


def answer(
    score: Score, train: Rows, validation: Rows, test: Sequence[str], labels: Sequence[str],
    candidates: Iterable[Candidate],
) -> Found:  # fmt: skip
    """By the candidate and the reading that has most validation rows right; of equals the least log loss,
    then the first."""
    tried: list[Tried] = []
    for one in candidates:
        scored = score(one.prompt(train, labels), validation.texts)
        tried += _readings(one, scored, validation.labels, labels)
    best = max(tried, key=lambda one: (one.accuracy, -one.log_loss))
    scored = score(best.candidate.prompt(train, labels), test)
    heated = _read(scored.likelihoods, labels, best.by_length) / best.temperature
    return Found(softmax(heated), tried, best, len(validation.texts), scored.cut)


def candidates(
    labels: Labels, *, templates: Sequence[str], shots: Sequence[int], draws: int, seed: int
) -> Iterator[Candidate]:
    """Every template with every draw of each number of demonstrations; of none there is one draw. labels: of
    the training rows."""
    drawn = [
        demonstrations(labels, count, np.random.default_rng([seed, count, draw]))
        for count in dict.fromkeys(shots)
        for draw in range(draws if count else 1)
    ]
    return (Candidate(template, rows) for rows in drawn for template in templates)


def demonstrations(labels: Labels, count: int, chance: np.random.Generator) -> tuple[int, ...]:
    """Numbers of `count` rows, in rounds of one a label that has rows left; all rows where there are not so
    many."""
    pools = [chance.permutation(np.flatnonzero(labels == label)).tolist() for label in np.unique(labels)]
    found: list[int] = []
    while len(found) < count and any(pools):
        places = [place for place in chance.permutation(len(pools)) if pools[place]]
        found += [pools[place].pop() for place in places[: count - len(found)]]
    return tuple(found)


def some(rows: Rows, count: int, seed: int) -> Rows:
    """At most `count` of the rows, in their order."""
    if len(rows.texts) <= count:
        return rows
    kept = np.sort(np.random.default_rng(seed).choice(len(rows.texts), count, replace=False))
    return Rows([rows.texts[row] for row in kept], rows.labels[kept])


def _readings(one: Candidate, scored: Scored, actual: Labels, labels: Sequence[str]) -> Iterator[Tried]:
    for by_length in (False, True):
        scores = _read(scored.likelihoods, labels, by_length)
        heat = calibration.temperature("label", actual, scores)
        right = float((scores.argmax(axis=1) == actual).mean())
        lost = round(log_loss(actual, softmax(scores / heat)), calibration.DIGITS)
        yield Tried(one, by_length, right, lost, heat, scored.cut)


def _read(likelihoods: Array, labels: Sequence[str], by_length: bool) -> Array:
    return likelihoods / [len(label) for label in labels] if by_length else likelihoods
