from collections import Counter

import numpy as np
import pytest

from tasks.evaluation import k_shot
from tasks.evaluation.asking.prompted import Scored
from tasks.evaluation.k_shot import Candidate, Rows

LABELS = ("bad", "quite_good")
TRAIN = Rows([f"text {n}" for n in range(10)], np.array([0, 1] * 4 + [1, 1]))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(0, {}), (1, 1), (2, {0: 1, 1: 1}), (4, {0: 2, 1: 2}), (9, {0: 4, 1: 5}), (20, {0: 4, 1: 6})],
)
def test_demonstrations_are_balanced_as_far_as_there_are_rows(wanted, expected):
    rows = k_shot.demonstrations(TRAIN.labels, wanted, np.random.default_rng(1))
    assert len(set(rows)) == len(rows)
    shown = Counter(TRAIN.labels[list(rows)].tolist())
    assert shown == expected or sum(shown.values()) == expected


def test_every_template_meets_every_draw_and_none_is_drawn_for_no_demonstrations():
    asked = {"templates": ("a", "b"), "shots": (0, 3, 3), "draws": 2}
    found = list(k_shot.candidates(TRAIN.labels, **asked, seed=1))
    assert [(one.template, len(one.demonstrations)) for one in found] == [
        ("a", 0), ("b", 0), ("a", 3), ("b", 3), ("a", 3), ("b", 3),
    ]  # fmt: skip
    assert found[2].demonstrations == found[3].demonstrations != found[4].demonstrations
    assert found == list(k_shot.candidates(TRAIN.labels, **asked, seed=1))
    assert found != list(k_shot.candidates(TRAIN.labels, **asked, seed=2))


def test_rows_that_choose_are_no_more_than_asked_for_and_in_their_order():
    kept = k_shot.some(TRAIN, 4, seed=3)
    places = [TRAIN.texts.index(text) for text in kept.texts]
    assert len(places) == 4
    assert places == sorted(places)
    assert kept.labels.tolist() == TRAIN.labels[places].tolist()
    assert k_shot.some(TRAIN, 10, seed=3) is TRAIN


def _answer(likelihoods, texts=("good", "bad", "good", "bad")):
    """likelihoods: template -> text -> ln p of each label."""
    asked = []

    def score(prompt, rows):
        asked.append((prompt, tuple(rows)))
        return Scored(np.array([likelihoods[prompt.template][text] for text in rows]), len(rows))

    validation = Rows(texts, np.array([int(text == "good") for text in texts]))
    ways = [Candidate(template, (3, 0)) for template in likelihoods]
    return k_shot.answer(score, TRAIN, validation, ["bad", "good", "bad"], LABELS, ways), asked


SURE = {"bad": (-1.0, -9.0), "good": (-9.0, -1.0)}
UNSURE = {"bad": (-1.0, -1.1), "good": (-1.1, -1.0)}
WRONG = {"bad": (-9.0, -1.0), "good": (-1.0, -9.0)}
LONG = {"bad": (-4.0, -15.0), "good": (-5.0, -8.0)}  # a name of ten letters is less likely whatever is said


@pytest.mark.parametrize(
    ("likelihoods", "template", "by_length"),
    [
        ({"x": WRONG, "y": SURE}, "y", False),
        ({"x": LONG}, "x", True),
        ({"x": SURE, "y": SURE}, "x", False),
    ],
)
def test_what_has_most_validation_rows_right_answers_the_test_rows(likelihoods, template, by_length):
    found, asked = _answer(likelihoods)
    assert (found.chosen.candidate.template, found.chosen.by_length) == (template, by_length)
    assert found.chosen.accuracy == 1.0
    assert found.probabilities.argmax(axis=1).tolist() == [0, 1, 0]
    assert found.probabilities.sum(axis=1) == pytest.approx(1)
    assert (found.rows, found.cut) == (4, 3)
    assert len(found.tried) == 2 * len(likelihoods)
    assert [rows for _, rows in asked[:-1]] == [("good", "bad", "good", "bad")] * len(likelihoods)
    assert asked[-1][0].template == template
    assert asked[-1][0].shown == [("text 3", 1), ("text 0", 0)]


def test_of_ways_that_are_as_often_right_the_one_that_is_surer_of_it_is_taken():
    odd = {"odd": (-1.0, -3.0)}  # a bad text, or so it seems to both
    found, _ = _answer({"x": UNSURE | odd, "y": SURE | odd}, ("good", "bad", "good", "bad", "odd", "bad"))
    first, other = (one for one in found.tried if not one.by_length)
    assert first.accuracy == other.accuracy
    assert (found.chosen.candidate.template, found.chosen.accuracy) == ("y", first.accuracy)
