"""Figures for rows with a tag a word. Numpy only.

A metric takes counts of each row, as `counted` makes them, so that rows can be drawn again without looking at
their words again.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.evaluation.figures.metrics import Metric
from tasks.evaluation.predictions import Array

OUTSIDE = "O"
ALONE, FIRST, INSIDE, LAST = "SU", "B", "I", "EL"  # IOB1, IOB2, IOBES and BILOU together
WORDS, SPANS, HITS, TAGS = 0, 1, 2, 3  # columns of what `counted` gives; behind these the tags'


def counted(actual: Array, predicted: Array, names: Sequence[str]) -> tuple[Array, Array]:
    """Ragged tag numbers (rows,) -> counts of each row, (rows, 3 + tags) and (rows, 3 + 2 tags) int64.

    What is true: words, spans, 0, words of each tag. What is said: words right, spans, spans that are true,
    words of each tag, words of each tag that are right.
    """
    given = np.zeros((len(actual), TAGS + len(names)), dtype=np.int64)
    said = np.zeros((len(actual), TAGS + 2 * len(names)), dtype=np.int64)
    for row, (true, told) in enumerate(zip(actual, predicted, strict=True)):
        ours, theirs = (spans([names[tag] for tag in tags]) for tags in (told, true))
        given[row, :TAGS] = len(true), len(theirs), 0
        said[row, :TAGS] = (told == true).sum(), len(ours), len(ours & theirs)
        given[row, TAGS:] = np.bincount(true, minlength=len(names))
        each = [np.bincount(tags, minlength=len(names)) for tags in (told, told[told == true])]
        said[row, TAGS:] = np.concatenate(each)
    return given, said


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first word, word behind the last, type) of each entity, as conlleval finds them (CoNLL-2003).

    `I-` where nothing of its type is open begins one; a tag without a prefix, unless it is `O`, is one by
    itself.
    """
    found, begin, kind, before = set(), -1, "", OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, now = _parted(tag)
        opens = prefix in ALONE + FIRST or (
            prefix in INSIDE + LAST and (before in OUTSIDE + ALONE + LAST or now != kind)
        )
        if begin >= 0 and (opens or prefix == OUTSIDE):
            found.add((begin, place, kind))
            begin = -1
        begin, kind, before = (place if opens else begin), now, prefix
    return found


def right(actual: Array, predicted: Array) -> Array:
    """Share of each row's words that are tagged rightly, (rows,); 1 for a row without words."""
    return np.array([(a == b).mean() if len(a) else 1.0 for a, b in zip(actual, predicted, strict=True)])


def token_accuracy(given: Array, said: Array) -> float:
    return float(said[:, WORDS].sum() / max(1, given[:, WORDS].sum()))


def entity_precision(given: Array, said: Array) -> float:
    return float(said[:, HITS].sum() / max(1, said[:, SPANS].sum()))


def entity_recall(given: Array, said: Array) -> float:
    return float(said[:, HITS].sum() / max(1, given[:, SPANS].sum()))


def entity_f1(given: Array, said: Array) -> float:
    """Of spans with the right borders and the right type (Tjong Kim Sang & De Meulder 2003); 1 where there is
    none and none is said."""
    either = given[:, SPANS].sum() + said[:, SPANS].sum()
    return float(2 * said[:, HITS].sum() / either) if either else 1.0


def macro_f1(given: Array, said: Array) -> float:
    """Mean F1 of the tags that occur or are said, each word by itself."""
    tags = given.shape[1] - TAGS
    true, (told, hits) = given[:, TAGS:].sum(axis=0), said[:, TAGS:].sum(axis=0).reshape(2, tags)
    either = true + told > 0
    return float(np.mean(2 * hits[either] / (true + told)[either])) if either.any() else 1.0


def _parted(tag: str) -> tuple[str, str]:
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefixed = tag[1:2] == "-" and tag[0] in ALONE + FIRST + INSIDE + LAST
    return (tag[0], tag[2:]) if prefixed else (ALONE[0], tag)


METRICS: Mapping[str, Metric] = {
    "token_accuracy": Metric(token_accuracy, higher_is_better=True, anywhere=True),
    "entity_precision": Metric(entity_precision, higher_is_better=True, anywhere=True),
    "entity_recall": Metric(entity_recall, higher_is_better=True, anywhere=True),
    "entity_f1": Metric(entity_f1, higher_is_better=True, anywhere=True),
    "macro_f1": Metric(macro_f1, higher_is_better=True),
}
