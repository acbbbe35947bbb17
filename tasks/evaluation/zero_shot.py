"""Labels read off their names, by a model that was trained on something else: a text belongs to the label
whose name, in a sentence, is most like it (Yin et al. 2019; templates as in Radford et al. 2021).
"""

from collections.abc import Sequence

import numpy as np

from tasks.evaluation import calibration
from tasks.evaluation.asking.predict import softmax
from tasks.evaluation.figures.metrics import log_loss
from tasks.evaluation.predictions import Array, Labels, Probabilities

TEMPLATES = ("{}", "This is {}.", "It is about {}.", "The text is {}.", "I feel {}.")
SCALE = 20.0  # of cosines, before a temperature is chosen: sentence-transformers' own


def sentences(names: Sequence[str]) -> list[str]:
    """All labels in the first template, then in the second, …"""
    return [template.format(name.replace("_", " ")) for template in TEMPLATES for name in names]


def answer(train: Array, labels: Labels, test: Array, sentences: Array) -> Probabilities:
    """(rows, labels) for the features `test` (rows, width). `sentences` are features too, as named above.

    The template and the scale are those with the least log loss on training rows; nothing else is learned.
    """
    choices = [_scores(train, vectors) for vectors in np.split(sentences, len(TEMPLATES))]
    heats = [calibration.temperature("label", labels, scores) for scores in choices]
    losses = [log_loss(labels, softmax(scores / heat)) for scores, heat in zip(choices, heats, strict=True)]
    best = int(np.argmin(losses))
    return softmax(_scores(test, np.split(sentences, len(TEMPLATES))[best]) / heats[best])


def _scores(rows: Array, vectors: Array) -> Array:
    """Scaled cosines: (rows, labels)."""
    return np.asarray(SCALE * _unit(rows) @ _unit(vectors).T)


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))
