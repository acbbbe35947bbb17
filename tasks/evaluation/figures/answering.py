"""Figures for answers that are a part of a text, as SQuAD counts them (Rajpurkar et al. 2016; of questions
without an answer, 2018).
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.evaluation.figures.metrics import Metric
from tasks.evaluation.predictions import Array

ARTICLES = re.compile(r"\b(a|an|the)\b")
UNPUNCTUATED = str.maketrans("", "", string.punctuation)
EXACT, OVERLAP = 0, 1  # columns of what `counted` gives


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
