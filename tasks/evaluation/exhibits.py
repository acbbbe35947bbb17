"""What the page shows of the answers to rows of each kind: pictures, a table of classes, the worst rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.evaluation import judging, pictures
from tasks.evaluation.figures import language, metrics, multilabel
from tasks.evaluation.figures.metrics import Interval, Occurrences, Sampling
from tasks.evaluation.gate.checks import decimal
from tasks.evaluation.pictures import Picture
from tasks.evaluation.predictions import MODEL, Array, Predictions

WORST = 10  # rows shown
CHARACTERS = 400  # of a text shown
NONE = "—"  # where a row has no label, or none is said

Answers = Mapping[str, Predictions]  # by contestant
Pairs = Iterator[tuple[str, str]]
MEASURES = ("precision", "recall", "f1")  # of a class


@dataclass(frozen=True, eq=False)
class Classes:
    """MEASURES of each class and its `rows`, (classes,); ranges: intervals of the MEASURES, (2, classes), low
    and high. counted: what `rows` counts."""

    names: Sequence[str]
    figures: Mapping[str, Array]
    ranges: Mapping[str, Array]
    counted: str = "test rows"

    def __iter__(self) -> Iterator[tuple[str, int, list[Interval]]]:
        """Name, rows, and the MEASURES of each class."""
        for place, name in enumerate(self.names):
            values = [
                Interval(*(float(one) for one in (self.figures[key][place], *self.ranges[key][:, place])))
                for key in MEASURES
            ]
            yield name, int(self.figures["rows"][place]), values

    def picture(self, confidence: float) -> Picture:
        told = f"Lines are {100 * confidence:g} % intervals; in brackets the {self.counted} of a class."
        return Picture("Classes", told, pictures.class_bars(self.figures, self.ranges, self.names))


@dataclass(frozen=True)
class Mistake:
    id: str
    text: str
    actual: str
    predicted: str
    figure: float


@dataclass(frozen=True)
class Worst:
    """The worst rows, under a title, after a sentence; `figure` names the number of each. Without rows,
    `none` says what that means."""

    title: str
    told: str
    figure: str
    rows: Sequence[Mistake]
    none: str = "None: every test row is right. Look for test rows that training has seen."


@dataclass(frozen=True)
class Exhibit:
    """pictures: answers, class names -> what to draw. pairs: answers, class names -> (actual, predicted) for
    DVC's confusion template. worst: answers, texts by row id, class names. classes: answers, class names, how
    intervals are found; none where there are no classes."""

    pictures: Callable[[Answers, Sequence[str]], list[Picture]]
    worst: Callable[[Predictions, Mapping[str, str], Sequence[str]], Worst]
    classes: Callable[[Predictions, Sequence[str], Sampling], Classes] | None = None
    pairs: Callable[[Predictions, Sequence[str]], Pairs] | None = None


def cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"


def _worst_of(answers: Predictions, rows: Iterable[int], badness: Array) -> list[int]:
    """Of `rows` the worst, by id where they are equally bad."""
    return sorted(rows, key=lambda row: (-badness[row], answers.ids[row]))[:WORST]


def _classes(
    answers: Predictions,
    rows: Array,
    count: int,
    names: Sequence[str],
    sampling: Sampling,
    counted: str = "test rows",
) -> Classes:
    """answers: with one label each, in `rows` (answers,) of so many rows, which are drawn whole."""
    given, said = Occurrences(rows, answers.actual), Occurrences(rows, answers.chosen)
    right, classes = said.where(answers.correct), len(names)
    ranges = metrics.class_ranges(given, said, right, sampling, rows=count, classes=classes)
    return Classes(names, metrics.per_class(answers.actual, answers.chosen, classes), ranges, counted)


def _one_pictures(answers: Answers, names: Sequence[str]) -> list[Picture]:
    table = metrics.confusion(answers[MODEL].actual, answers[MODEL].chosen, len(names))
    told = "Test rows of the fine-tuned model; shares are of the actual class."
    return [Picture("Confusion", told, pictures.confusion_matrix(table, names))]


def _one_worst(answers: Predictions, texts: Mapping[str, str], names: Sequence[str]) -> Worst:
    confidence, chosen = answers.answer.max(axis=1), answers.chosen
    rows = [
        Mistake(
            id=answers.ids[row],
            text=cut(texts[answers.ids[row]]),
            actual=names[answers.actual[row]],
            predicted=names[chosen[row]],
            figure=float(confidence[row]),
        )
        for row in _worst_of(answers, np.flatnonzero(~answers.correct), confidence)
    ]
    return Worst("Most confident mistakes", SUREST, "confidence", rows)


def _one_classes(answers: Predictions, names: Sequence[str], sampling: Sampling) -> Classes:
    count = len(answers.ids)
    return _classes(answers, np.arange(count), count, names, sampling)


def _one_pairs(answers: Predictions, names: Sequence[str]) -> Pairs:
    for actual, chosen in zip(answers.actual, answers.chosen, strict=True):
        yield names[actual], names[chosen]


def _many_classes(model: Predictions, names: Sequence[str], sampling: Sampling) -> Classes:
    held, told = model.actual > 0, multilabel.chosen(model.answer)
    given, said, right = (Occurrences(*np.nonzero(which)) for which in (held, told, held & told))
    ranges = metrics.class_ranges(given, said, right, sampling, rows=len(model.ids), classes=len(names))
    return Classes(names, multilabel.per_class(model.actual, model.answer), ranges)


def _many_worst(answers: Predictions, texts: Mapping[str, str], names: Sequence[str]) -> Worst:
    said, given = multilabel.chosen(answers.answer), answers.actual > 0
    sureness = np.where(said == given, 0, np.maximum(answers.answer, 1 - answers.answer)).max(axis=1)
    rows = [
        Mistake(
            id=answers.ids[row],
            text=cut(texts[answers.ids[row]]),
            actual=_listed(given[row], names),
            predicted=_listed(said[row], names),
            figure=float(sureness[row]),
        )
        for row in _worst_of(answers, np.flatnonzero(sureness), sureness)
    ]
    return Worst("Most confident mistakes", SUREST, "confidence", rows)


def _many_pairs(answers: Predictions, names: Sequence[str]) -> Pairs:
    """One for each label that a row has or is said to have."""
    said, given = multilabel.chosen(answers.answer), answers.actual > 0
    for row, place in np.argwhere(said | given).tolist():
        name = names[place]
        yield name if given[row, place] else NONE, name if said[row, place] else NONE


def _listed(held: Array, names: Sequence[str]) -> str:
    return ", ".join(name for name, holds in zip(names, held, strict=True) if holds) or NONE


def _score_pictures(answers: Answers, names: Sequence[str]) -> list[Picture]:
    model = answers[MODEL]
    shown = min(len(model.ids), pictures.POINTS)
    told = f"Each point is a test row (the first {shown:,}); on the dotted line a prediction is right."
    return [Picture("Scores", told, pictures.scatter(model.actual[:shown], model.answer[:shown]))]


def _score_worst(answers: Predictions, texts: Mapping[str, str], names: Sequence[str]) -> Worst:
    errors = answers.answer.astype(np.float64) - answers.actual
    rows = [
        Mistake(
            id=answers.ids[row],
            text=cut(texts[answers.ids[row]]),
            actual=decimal(float(answers.actual[row])),
            predicted=decimal(float(answers.answer[row])),
            figure=float(errors[row]),
        )
        for row in _worst_of(answers, np.flatnonzero(errors), np.abs(errors))
    ]
    told = "Where the prediction is furthest from the score. Some of these may be errors of the scores."
    return Worst("Largest errors", told, "predicted too high by", rows)


def _flat(answers: Predictions) -> Predictions:
    """Each word as if it were a row with one label, its tag; the answers to it are certain."""
    actual, said = (np.concatenate(side).astype(np.int64) for side in (answers.actual, answers.answer))
    width = int(max(actual.max(initial=0), said.max(initial=0))) + 1
    ids = tuple(str(place) for place in range(len(actual)))
    return Predictions(answers.contestant, ids, actual, np.eye(width, dtype=np.float32)[said])


def _tag_classes(answers: Predictions, names: Sequence[str], sampling: Sampling) -> Classes:
    lengths = [len(row) for row in answers.actual]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return _classes(_flat(answers), rows, len(lengths), names, sampling, "words of test rows")


def _tag_pictures(answers: Answers, names: Sequence[str]) -> list[Picture]:
    words = _flat(answers[MODEL])
    told = "Words of test rows under the fine-tuned model; shares are of the actual tag."
    table = metrics.confusion(words.actual, words.chosen, len(names))
    return [Picture("Confusion", told, pictures.confusion_matrix(table, names))]


def _tag_worst(answers: Predictions, texts: Mapping[str, str], names: Sequence[str]) -> Worst:
    wrong = np.array([(a != b).sum() for a, b in zip(answers.actual, answers.answer, strict=True)])
    rows = [
        Mistake(
            id=answers.ids[row],
            text=cut(texts[answers.ids[row]]),
            actual=cut(" ".join(names[tag] for tag in answers.actual[row])),
            predicted=cut(" ".join(names[tag] for tag in answers.answer[row])),
            figure=float(wrong[row]),
        )
        for row in _worst_of(answers, np.flatnonzero(wrong), wrong)
    ]
    return Worst("Rows with most mistakes", "Some of these may be errors of the tags.", "words wrong", rows)


def _language_worst(answers: Predictions, texts: Mapping[str, str], names: Sequence[str]) -> Worst:
    bits = -language.row_score(answers.actual, answers.answer)
    rows = [
        Mistake(answers.ids[row], cut(texts[answers.ids[row]]), "", "", float(bits[row]))
        for row in _worst_of(answers, np.flatnonzero(bits), bits)
    ]
    return Worst("Hardest rows", "What the model foresaw least.", "bits per byte", rows)


def _written_worst(answers: Predictions, texts: Mapping[str, str], names: Sequence[str]) -> Worst:
    judged = judging.find(answers.kind)
    scores = judged.score(answers.actual, answers.answer)
    rows = [
        Mistake(
            id=answers.ids[row],
            text=cut(texts[answers.ids[row]]),
            actual=cut(_said(answers.actual[row])),
            predicted=cut(_said(answers.answer[row])),
            figure=float(scores[row]),
        )
        for row in _worst_of(answers, np.flatnonzero(scores < 1), -scores)
    ]
    told = "What is furthest from the truth. Some of these may be errors of the data."
    return Worst("Worst answers", told, judged.measure, rows)


def _said(told: str | Sequence[str]) -> str:
    return (told if isinstance(told, str) else " / ".join(told)) or NONE


SUREST = "What the model was surest of and had wrong. Some of these may be errors of the labels."
ONE = Exhibit(_one_pictures, _one_worst, _one_classes, _one_pairs)
LANGUAGE = Exhibit(lambda answers, names: [], _language_worst)
WRITTEN = Exhibit(lambda answers, names: [], _written_worst)
EXHIBITS: Mapping[str, Exhibit] = {
    "answer": WRITTEN,
    "translation": WRITTEN,
    "prefix-remainder": WRITTEN,
    "text": LANGUAGE,
    "completion": LANGUAGE,
    "chat": LANGUAGE,
    "label": ONE,
    "pair": ONE,
    "labels": Exhibit(lambda answers, names: [], _many_worst, _many_classes, _many_pairs),
    "score": Exhibit(_score_pictures, _score_worst),
    "tags": Exhibit(
        _tag_pictures,
        _tag_worst,
        _tag_classes,
        lambda found, names: _one_pairs(_flat(found), names),
    ),
}
