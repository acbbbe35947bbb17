import numpy as np
import pytest

from tasks.evaluation import tagging
from tasks.evaluation.predictions import ragged
from tasks.evaluation.tagging import METRICS, spans


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("I-PER I-PER O I-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),  # IOB1
        ("I-PER B-PER I-LOC", {(0, 1, "PER"), (1, 2, "PER"), (2, 3, "LOC")}),
        ("S-PER B-LOC I-LOC E-LOC S-LOC", {(0, 1, "PER"), (1, 4, "LOC"), (4, 5, "LOC")}),  # IOBES
        ("U-PER B-LOC L-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),  # BILOU
        ("B-PER E-PER I-PER", {(0, 2, "PER"), (2, 3, "PER")}),
        ("NOUN NOUN O VERB", {(0, 1, "NOUN"), (1, 2, "NOUN"), (3, 4, "VERB")}),  # no spans: words
    ],
)
def test_entities_are_found_as_conlleval_finds_them(tags, expected):
    assert spans(tags.split()) == expected


NAMES = ("B-LOC", "B-PER", "I-PER", "O")
TRUE = ["B-PER I-PER O B-LOC", "O O", "B-LOC"]
SAID = ["B-PER O O B-LOC", "B-LOC O", "B-LOC"]


def _numbers(rows):
    return ragged([NAMES.index(tag) for tag in row.split()] for row in rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_accuracy", 5 / 7),
        ("entity_precision", 2 / 4),
        ("entity_recall", 2 / 3),
        ("entity_f1", 4 / 7),
        ("macro_f1", np.mean([2 * 2 / 5, 1, 0, 2 * 2 / 6])),
    ],
)
def test_metrics_by_hand(name, expected):
    given, said = tagging.counted(_numbers(TRUE), _numbers(SAID), NAMES)
    assert METRICS[name](given, said) == pytest.approx(expected)
    assert METRICS[name](*tagging.counted(_numbers(TRUE), _numbers(TRUE), NAMES)) == 1.0


def test_rows_are_compared_by_their_share_of_right_words():
    assert tagging.right(_numbers([*TRUE, ""]), _numbers([*SAID, ""])).tolist() == [0.75, 0.5, 1.0, 1.0]


def test_where_nothing_is_an_entity_and_none_is_said_all_is_right():
    assert METRICS["entity_f1"](*tagging.counted(_numbers(["O O"]), _numbers(["O O"]), NAMES)) == 1.0
