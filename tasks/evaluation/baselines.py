"""What fine-tuning must be worth more than: answers that need no fine-tuning.

A baseline learns from training inputs and what is true of them and answers test inputs of which it is never
told. Its regularisation is fixed, with its reason. BASELINES, at the foot, has those of each kind of row.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tasks.errors import ParamsError, did_you_mean
from tasks.evaluation import zero_shot
from tasks.evaluation.figures import answering
from tasks.evaluation.judging import Auto
from tasks.evaluation.predictions import Array, Labels, Probabilities, ragged, texts_of

SENTENCE = re.compile(r"(?<=[.!?])\s+")
ITERATIONS = 2000  # L-BFGS stops at its tolerance long before; the default of 100 does not reach it


@dataclass(frozen=True)
class Inputs:
    """What a baseline may look at: texts (rows,); the pretrained model's features (rows, width), made only
    when asked for; the tokens that have an answer of their own, ragged; the pretrained model's answers, made
    only when asked for; the names of the labels, and the features of any sentences; what the pretrained model
    says that is asked in words, made only when asked for."""

    texts: Sequence[str]
    features: Callable[[], Array]
    tokens: Sequence[Sequence[int]] = ()
    pretrained: Callable[[], Array] | None = None
    labels: Sequence[str] = ()
    embed: Callable[[Sequence[str]], Array] | None = None
    prompted: Callable[[], Array] | None = None


@dataclass(frozen=True)
class Baseline:
    """`answer(train, actual, test, classes)` -> answers to the test rows, as `predictions.FORMS` says; the
    description goes to the report. usual: it competes without being named."""

    answer: Callable[[Inputs, Array, Inputs, int], Array]
    description: str
    usual: bool = True


def chosen(kind: str, names: Sequence[str] | Auto) -> dict[str, Baseline]:
    """The baselines of these names, for rows of `kind`; all usual ones where `names` is auto.

    Raises ParamsError that lists every one that there is not.
    """
    known = BASELINES[kind]
    wanted = tuple(name for name, one in known.items() if one.usual) if names == "auto" else tuple(names)
    if unknown := [name for name in wanted if name not in known]:
        faults = (
            f"evaluation.baselines: no baseline {name!r} for rows of kind {kind}; {did_you_mean(name, known)}"
            for name in unknown
        )
        raise ParamsError("\n".join(faults))
    return {name: known[name] for name in wanted}


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
    regression = LogisticRegression(C=1.0, max_iter=ITERATIONS)
    return _fit(make_pipeline(_words(train.texts), regression), train.texts, labels, test.texts, classes)


def frozen(train: Inputs, labels: Labels, test: Inputs, classes: int) -> Probabilities:
    """Logistic regression on standardised features of the model as it came: (rows, classes).

    C = 0.01: on the rows named above, accuracy was .724, .723, .711, .699 and .701 for C of 0.01, 0.03, 0.1,
    0.3 and 1.
    """
    regression = LogisticRegression(C=0.01, max_iter=ITERATIONS)
    pipeline = make_pipeline(StandardScaler(), regression)
    return _fit(pipeline, train.features(), labels, test.features(), classes)


def named(train: Inputs, labels: Labels, test: Inputs, classes: int) -> Probabilities:
    """The label whose name is most like the text, by the model as it came: (rows, classes)."""
    assert train.embed is not None
    told = train.embed(zero_shot.sentences(train.labels))
    return zero_shot.answer(train.features(), labels, test.features(), told)


def prompted(train: Inputs, labels: Labels, test: Inputs, classes: int) -> Probabilities:
    """What the model as it came goes on with behind a prompt, as `k_shot` says: (rows, classes)."""
    assert test.prompted is not None
    return test.prompted()


def shares(train: Inputs, labels: Array, test: Inputs, classes: int) -> Probabilities:
    """How often each label holds in training, for every row: (rows, classes)."""
    return np.tile(labels.mean(axis=0, dtype=np.float32), (len(test.texts), 1))


def tfidf_each(train: Inputs, labels: Array, test: Inputs, classes: int) -> Probabilities:
    """`tfidf` for each label by itself, yes or no: (rows, classes)."""
    vectorizer = _words(train.texts)
    seen, asked = vectorizer.fit_transform(train.texts), vectorizer.transform(test.texts)
    return _fit_each(LogisticRegression(C=1.0, max_iter=ITERATIONS), seen, labels, asked)


def frozen_each(train: Inputs, labels: Array, test: Inputs, classes: int) -> Probabilities:
    """`frozen` for each label by itself, yes or no: (rows, classes)."""
    scaler = StandardScaler()
    seen, asked = scaler.fit_transform(train.features()), scaler.transform(test.features())
    return _fit_each(LogisticRegression(C=0.01, max_iter=ITERATIONS), seen, labels, asked)


def mean(train: Inputs, scores: Array, test: Inputs, classes: int) -> Array:
    """The mean of training, for every row: (rows,)."""
    return np.full(len(test.texts), scores.mean(dtype=np.float64), dtype=np.float32)


def tfidf_score(train: Inputs, scores: Array, test: Inputs, classes: int) -> Array:
    """Ridge regression on the words of `tfidf`: (rows,).

    alpha = 1: on the rows named there, with -1, 0 and 1 for the three labels, r2 was .23, .34, .41, .40 and
    .32 for alpha of 0.1, 0.3, 1, 3 and 10.
    """
    pipeline = make_pipeline(_words(train.texts), Ridge(alpha=1.0))
    return np.asarray(pipeline.fit(train.texts, scores).predict(test.texts), dtype=np.float32)


def frozen_score(train: Inputs, scores: Array, test: Inputs, classes: int) -> Array:
    """Ridge regression on standardised features of the model as it came: (rows,).

    alpha is the best for training rows left out one at a time, which costs no further fit (Golub et al.
    1979).
    """
    pipeline = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13)))
    fitted = pipeline.fit(train.features(), scores.astype(np.float64))
    return np.asarray(fitted.predict(test.features()), dtype=np.float32)


def commonest(train: Inputs, tags: Array, test: Inputs, classes: int) -> Array:
    """The commonest tag of training, for every word: ragged (rows,)."""
    best = int(np.bincount(np.concatenate(tags), minlength=classes).argmax())
    return ragged(np.full(len(row), best) for row in test.tokens)


def lookup(train: Inputs, tags: Array, test: Inputs, classes: int) -> Array:
    """The commonest tag of each word's first token, and of all for tokens that training does not show."""
    counts: dict[int, Array] = {}
    for row, numbers in zip(train.tokens, tags, strict=True):
        for token, number in zip(row, numbers, strict=True):
            counts.setdefault(token, np.zeros(classes, dtype=np.int64))[number] += 1
    best = {token: int(count.argmax()) for token, count in counts.items()}
    other = int(np.sum(list(counts.values()), axis=0).argmax())
    return ragged([best.get(token, other) for token in row] for row in test.tokens)


def pretrained(train: Inputs, actual: Array, test: Inputs, classes: int) -> Array:
    """What the model says before any training, as `predictions.FORMS` says."""
    assert test.pretrained is not None
    return test.pretrained()


def silence(train: Inputs, actual: Array, test: Inputs, classes: int) -> Array:
    """No answer, to every question: (rows,)."""
    return texts_of("" for _ in test.texts)


def closest(train: Inputs, actual: Array, test: Inputs, classes: int) -> Array:
    """The sentence that shares most words with the question, the first of equals: (rows,)."""
    return texts_of(_closest(*shown.split("\n", 1)) for shown in test.texts)


def copied(train: Inputs, actual: Array, test: Inputs, classes: int) -> Array:
    """Each text as it is: (rows,)."""
    return texts_of(test.texts)


def unigram(train: Inputs, actual: Array, test: Inputs, classes: int) -> Array:
    """Each token as likely as it is common in training, all counted once more: (rows, 2)."""
    counts = np.bincount(
        np.concatenate([np.array(row, dtype=np.int64) for row in train.tokens]), minlength=classes
    )
    costs = np.log(counts.sum() + len(counts)) - np.log(counts + 1)
    rows = [np.asarray(row, dtype=np.int64) for row in test.tokens]
    return np.array([[costs[row].sum(), (row == counts.argmax()).sum()] for row in rows], dtype=np.float64)


def _closest(question: str, text: str) -> str:
    asked = set(answering.words(question))
    sentences = [part for part in SENTENCE.split(text) if part] or [""]
    return max(sentences, key=lambda one: len(asked & set(answering.words(one))))


def _words(texts: Sequence[str]) -> TfidfVectorizer:
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=60_000)
    return vectorizer.set_params(min_df=_minimum(vectorizer.build_analyzer(), texts))


def _fit_each(regression: Any, train: Any, labels: Array, test: Any) -> Probabilities:
    """The probability of each label; of one that all or no training rows have, 1 or 0."""
    answers = np.empty((test.shape[0], labels.shape[1]), dtype=np.float32)
    for place, held in enumerate(labels.T):
        varied = held.min() != held.max()
        answers[:, place] = regression.fit(train, held).predict_proba(test)[:, 1] if varied else held[0]
    return answers


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


ONE: Mapping[str, Baseline] = {
    "majority": Baseline(majority, "the classes' shares in training, for every row"),
    "tfidf": Baseline(tfidf, "logistic regression on words and word pairs, nothing pretrained"),
    "frozen": Baseline(frozen, "logistic regression on the pretrained model's mean-pooled features"),
}
NAMED = Baseline(named, "the label whose name, in a sentence, is most like the text; nothing trained")
PROMPTED = Baseline(
    prompted, "the pretrained model, asked in words; how is chosen on validation rows", usual=False
)
LANGUAGE: Mapping[str, Baseline] = {
    "unigram": Baseline(unigram, "each token as likely as it is common in training"),
    "pretrained": Baseline(pretrained, "the pretrained model as it came"),
}
WRITTEN: Mapping[str, Baseline] = {
    "copied": Baseline(copied, "each text as it is"),
    "pretrained": Baseline(pretrained, "the pretrained model as it came"),
}
BASELINES: Mapping[str, Mapping[str, Baseline]] = {
    "text": LANGUAGE,
    "completion": LANGUAGE,
    "chat": LANGUAGE,
    "translation": WRITTEN,
    "prefix-remainder": WRITTEN,
    "answer": {
        "silence": Baseline(silence, "no answer, to every question"),
        "closest": Baseline(closest, "the sentence that shares most words with the question"),
    },
    "label": {**ONE, "zero_shot": NAMED, "k_shot": PROMPTED},
    "pair": ONE,
    "labels": {
        "shares": Baseline(shares, "how often each label holds in training, for every row"),
        "tfidf": Baseline(
            tfidf_each, "a logistic regression a label on words and word pairs, nothing pretrained"
        ),
        "frozen": Baseline(
            frozen_each, "a logistic regression a label on the pretrained model's mean-pooled features"
        ),
    },
    "score": {
        "mean": Baseline(mean, "the mean score of training, for every row"),
        "tfidf": Baseline(tfidf_score, "ridge regression on words and word pairs, nothing pretrained"),
        "frozen": Baseline(frozen_score, "ridge regression on the pretrained model's mean-pooled features"),
    },
    "tags": {
        "majority": Baseline(commonest, "the commonest tag of training, for every word"),
        "lookup": Baseline(lookup, "the commonest tag of each word's first token"),
    },
}
