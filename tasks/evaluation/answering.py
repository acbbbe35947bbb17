"""Figures for answers that are a part of a text, as SQuAD counts them (Rajpurkar et al. 2016; of questions
without an answer, 2018), and the choice of that part.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tasks.evaluation.metrics import Metric
from tasks.evaluation.predictions import Array

LONGEST = 30  # tokens of an answer, as in SQuAD's own baseline
ARTICLES = re.compile(r"\b(a|an|the)\b")
UNPUNCTUATED = str.maketrans("", "", string.punctuation)
EXACT, OVERLAP = 0, 1  # columns of what `counted` gives


class Span(NamedTuple):
    """Characters of a text from `start` up to `stop`, and by how much they are likelier than no answer."""

    start: int
    stop: int
    margin: float


def counted(actual: Array, predicted: Array, names: Sequence[str] = ()) -> tuple[Array, Array]:
    """Lists of true answers (rows,), what is said (rows,) -> answers of each row, (rows,) int64, and whether
    it is said exactly and its F1, (rows, 2) float64."""
    told = [(exact(true, said), overlap(true, said)) for true, said in zip(actual, predicted, strict=True)]
    return np.array([len(true) for true in actual], dtype=np.int64), np.array(told, dtype=np.float64)


def exact(true: Sequence[str], said: str) -> bool:
    """Whether one of the true answers is said; where there is none, whether nothing is."""
    return words(said) in [words(one) for one in true or ("",)]


def overlap(true: Sequence[str], said: str) -> float:
    """F1 of the words, of the true answer that is closest; of no answer and no words, 1."""
    return max(_f1(words(one), words(said)) for one in true or ("",))


def words(text: str) -> list[str]:
    """Without case, punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(UNPUNCTUATED)).split()


def row_score(actual: Array, predicted: Array) -> Array:
    """F1 of each row, (rows,)."""
    return np.array([overlap(true, said) for true, said in zip(actual, predicted, strict=True)])


def exact_match(given: Array, said: Array) -> float:
    return float(said[:, EXACT].mean())


def f1(given: Array, said: Array) -> float:
    return float(said[:, OVERLAP].mean())


def answerable_f1(given: Array, said: Array) -> float:
    """Of the questions that have an answer; 1 where there are none."""
    asked = given > 0
    return float(said[asked, OVERLAP].mean()) if asked.any() else 1.0


def span(starts: Array, ends: Array, offsets: Array) -> Span:
    """The likeliest answer in one window: logits (tokens,) of where it starts and ends, and the characters of
    each token (tokens, 2), -1 outside of the text. Its margin is over the first token, which stands for none
    (Devlin et al. 2019, section 4.3).
    """
    inside = offsets[:, 0] >= 0
    if not inside.any():
        return Span(0, 0, -np.inf)
    places = np.arange(len(starts))
    apart = places[None, :] - places[:, None]
    able = inside[:, None] & inside[None, :] & (apart >= 0) & (apart < LONGEST)
    both = np.where(able, starts[:, None] + ends[None, :], -np.inf)
    first, last = np.unravel_index(int(both.argmax()), both.shape)
    return Span(int(offsets[first, 0]), int(offsets[last, 1]), float(both[first, last] - starts[0] - ends[0]))


def chosen(spans: Sequence[Span], text: str) -> str:
    """The answer of all windows of a text; empty where in every one of them none is likelier."""
    best = max(spans, key=lambda one: one.margin)
    return text[best.start : best.stop] if best.margin > 0 else ""


def _f1(true: Sequence[str], said: Sequence[str]) -> float:
    if not true or not said:
        return float(true == said)
    shared = sum((Counter(true) & Counter(said)).values())
    return 2 * shared / (len(true) + len(said))


METRICS: Mapping[str, Metric] = {
    "exact_match": Metric(exact_match, higher_is_better=True, anywhere=True),
    "f1": Metric(f1, higher_is_better=True, anywhere=True),
    "answerable_f1": Metric(answerable_f1, higher_is_better=True, anywhere=True),
}
