"""What fine-tuning must be worth more than: answers that need no fine-tuning.

A baseline learns from training inputs and their labels and answers test inputs whose labels it never sees.
Its regularisation is fixed, with its reason.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tasks.errors import ParamsError, did_you_mean
from tasks.evaluation.predictions import Labels, Probabilities

Array = NDArray[Any]

ITERATIONS = 2000  # L-BFGS stops at its tolerance long before; the default of 100 does not reach it


@dataclass(frozen=True)
class Inputs:
    """What a baseline may look at: texts (rows,), and the pretrained model's features (rows, width), made
    only when asked for."""

    texts: Sequence[str]
    features: Callable[[], Array]


@dataclass(frozen=True)
class Baseline:
    """`answer(train, labels, test, classes)` -> (test rows, classes); the description goes to the report."""

    answer: Callable[[Inputs, Labels, Inputs, int], Probabilities]
    description: str


def known(names: Iterable[str]) -> tuple[str, ...]:
    """`names`, if BASELINES has them all. Raises ParamsError that lists every one it does not have."""
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        faults = (
            f"evaluation.baselines: no baseline {name!r}; {did_you_mean(name, BASELINES)}" for name in unknown
        )
        raise ParamsError("\n".join(faults))
    return tuple(names)


def majority(train: Inputs, labels: Labels, test: Inputs, classes: int) -> Probabilities:
    """The classes' shares in training, for every row: (rows, classes)."""
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return np.tile(shares.astype(np.float32), (len(test.texts), 1))


def tfidf(train: Inputs, labels: Labels, test: Inputs, classes: int) -> Probabilities:
    """Logistic regression on sublinear TF-IDF of words and word pairs: (rows, classes).

    C = 1: accuracy on 4,800 training and 1,200 other default tweets was .693, .715, .709, .706 and .691 for
    C of 0.3, 1, 3, 10 and 30; a baseline must be the strongest of its kind. Words seen once are left
    out, unless nothing else is there.
    """
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=60_000)
    vectorizer.set_params(min_df=_minimum(vectorizer.build_analyzer(), train.texts))
    regression = LogisticRegression(C=1.0, max_iter=ITERATIONS)
    return _fit(make_pipeline(vectorizer, regression), train.texts, labels, test.texts, classes)


def frozen(train: Inputs, labels: Labels, test: Inputs, classes: int) -> Probabilities:
    """Logistic regression on standardised features of the model as it came: (rows, classes).

    C = 0.01: on the rows named above, accuracy was .724, .723, .711, .699 and .701 for C of 0.01, 0.03, 0.1,
    0.3 and 1.
    """
    regression = LogisticRegression(C=0.01, max_iter=ITERATIONS)
    pipeline = make_pipeline(StandardScaler(), regression)
    return _fit(pipeline, train.features(), labels, test.features(), classes)


def _fit(pipeline: Any, train: Any, labels: Labels, test: Any, classes: int) -> Probabilities:
    """Probabilities in label order; a class that training never shows gets 0."""
    answers = np.zeros((len(test), classes), dtype=np.float32)
    seen = np.unique(labels)
    answers[:, seen] = 1.0 if len(seen) == 1 else pipeline.fit(train, labels).predict_proba(test)
    return answers


def _minimum(analyze: Callable[[str], list[str]], texts: Sequence[str]) -> int:
    """2, or 1 where no word stands in two texts."""
    seen: set[str] = set()
    for text in texts:
        words = set(analyze(text))
        if seen & words:
            return 2
        seen |= words
    return 1


BASELINES: Mapping[str, Baseline] = {
    "majority": Baseline(majority, "the classes' shares in training, for every row"),
    "tfidf": Baseline(tfidf, "logistic regression on words and word pairs, nothing pretrained"),
    "frozen": Baseline(frozen, "logistic regression on the pretrained model's mean-pooled features"),
}
