"""Figures for texts that should be like another text: BLEU and chrF by sacrebleu, and ROUGE-L.

A metric takes counts of each row, as `counted` makes them, so that rows can be drawn again and a corpus' BLEU
be that of the rows drawn.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from tasks.evaluation.figures.metrics import Metric
from tasks.evaluation.predictions import Array

BLEU_COUNTS = slice(0, 10)  # two lengths, n-grams shared and said of four orders
CHRF_COUNTS = slice(10, 28)  # n-grams said, true and shared of six orders
ROUGE, EXACT = 28, 29


def counted(actual: Array, predicted: Array, names: Sequence[str] = ()) -> tuple[Array, Array]:
    """What should be said (rows,), what is said (rows,) -> nothing of each row, and counts (rows, 30)."""
    said, true = list(map(str, predicted)), [list(map(str, actual))]
    counts = [measure._extract_corpus_statistics(said, true) for measure in _measures()]
    words = [longest_shared(a.split(), b.split()) for a, b in zip(true[0], said, strict=True)]
    same = [a.strip() == b.strip() for a, b in zip(true[0], said, strict=True)]
    told = np.column_stack([*map(np.array, counts), words, same]).astype(np.float64)
    return np.zeros(len(said)), told


def row_score(actual: Array, predicted: Array) -> Array:
    """chrF of each row, (rows,), 0 to 1."""
    _, told = counted(actual, predicted)
    return np.array([chrf(np.zeros(1), row[None]) for row in told]) / 100


def bleu(given: Array, told: Array) -> float:
    """Of the corpus, 0 to 100, over words as WMT splits them (Papineni et al. 2002; Post 2018)."""
    counts = told[:, BLEU_COUNTS].sum(axis=0).astype(int).tolist()
    return float(_measures()[0]._compute_score_from_stats(counts).score)


def chrf(given: Array, told: Array) -> float:
    """Of the corpus, 0 to 100: F2 of characters' n-grams up to six (Popović 2015)."""
    return float(_measures()[1]._compute_score_from_stats(told[:, CHRF_COUNTS].sum(axis=0).tolist()).score)


def rouge_l(given: Array, told: Array) -> float:
    """Mean F1 of the longest common subsequence of words, 0 to 1 (Lin 2004)."""
    return float(told[:, ROUGE].mean())


def exact_match(given: Array, told: Array) -> float:
    return float(told[:, EXACT].mean())


def longest_shared(true: Sequence[str], said: Sequence[str]) -> float:
    """F1 of the words that stand in both in the same order; 1 where both have none."""
    if not true or not said:
        return float(list(true) == list(said))
    before = [0] * (len(said) + 1)
    for word in true:
        now = [0]
        for place, other in enumerate(said):
            now.append(before[place] + 1 if word == other else max(before[place + 1], now[place]))
        before = now
    return 2 * before[-1] / (len(true) + len(said))


@cache
def _measures() -> tuple[Any, Any]:
    # A third of a second, and other rows need it not.
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(), CHRF()


METRICS: Mapping[str, Metric] = {
    "bleu": Metric(bleu, higher_is_better=True, anywhere=True),
    "chrf": Metric(chrf, higher_is_better=True, anywhere=True),
    "rouge_l": Metric(rouge_l, higher_is_better=True, anywhere=True),
    "exact_match": Metric(exact_match, higher_is_better=True, anywhere=True),
}
