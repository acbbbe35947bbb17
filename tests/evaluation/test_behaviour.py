from random import Random

import numpy as np
import pytest

from tasks.evaluation import behaviour
from tasks.evaluation.behaviour import Asked, Checked, Reader, Sureness
from tasks.evaluation.figures.metrics import Interval
from tasks.evaluation.perturbations import NAMES, PERTURBATIONS, changed
from tasks.evaluation.predictions import Predictions

LABELS = ("bad", "good")
SURENESS = Sureness(0.95, 200, 1)
ROWS = [("Anna is good",), ("a bad day",), ("GOOD",), ("nothing",)]


def shouting(texts):
    """Says good of a text that has a capital letter, the surer the longer it is."""
    sure = [0.5 + 0.4 * (any(map(str.isupper, text[0])) - 0.5) - len(text[0]) / 1000 for text in texts]
    return np.array([[1 - share, share] for share in sure], dtype=np.float32)


def reads(ask, most=99):
    """A model whose tokens are words, at most so many of them."""
    return Reader(ask, lambda texts: [" ".join(text).split(" ")[:most] for text in texts])


def asked(rows=ROWS, ask=shouting, labels=(1, 0, 1, 0), groups=None):
    ids = tuple(f"row {number}" for number in range(len(rows)))
    return Asked(rows, Predictions("model", ids, np.array(labels), ask(rows)), LABELS, groups)


@pytest.mark.parametrize("name", sorted(PERTURBATIONS))
def test_a_perturbation_is_the_same_whenever_it_is_asked_and_another_seed_may_choose_otherwise(name):
    texts = [("Anna thought that everything was wonderful.",)]
    assert changed(texts[0], name, seed=1) == changed(texts[0], name, seed=1)
    assert changed(texts[0], name, seed=1) != texts[0]
    if name in ("typo", "whitespace"):
        assert len({changed(texts[0], name, seed=seed) for seed in range(9)}) > 1


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lower", "Good DAY", "good day"),
        ("name", "Anna met Annabel and Yusuf", "Ben met Annabel and Anna"),
        ("punctuation", "good?!", "good"),
        ("punctuation", "good", "good."),
        ("typo", "so it is", "so it is"),
        ("typo", "see aab", "see aba"),
        ("upper", "gut!", "GUT!"),
        ("whitespace", "good", "good "),
        ("whitespace", "so good", "so   good "),
    ],
)
def test_what_a_perturbation_changes(name, text, expected):
    assert changed((text,), name, seed=1) == (expected,)


def test_a_name_is_the_same_in_both_texts_of_a_pair():
    first, second = changed(("Maria sleeps", "is Maria awake"), "name", seed=1)
    assert (first, second) == ("Mary sleeps", "is Mary awake")
    swap = PERTURBATIONS["name"].change
    assert swap("Eve met Adam", Random(1), ("Adam", "Eve")) == "Adam met Eve"
    assert swap("Eve met Adam", Random(1), ()) == "Eve met Adam"


def test_an_answer_that_follows_the_capitals_fails_where_they_go():
    found = behaviour.invariance(asked(), "lower", reads(shouting), names=NAMES, sureness=SURENESS)
    assert (found.rows, found.passed.value) == (2, 0.0), "only rows that lower case changes are asked"
    assert (found.robustness.other, found.robustness.score) == (1.0, 0.0)
    assert [(one.text, one.wanted, one.said) for one in found.worst] == [
        ("anna is good", "good", "bad"), ("good", "good", "bad")
    ]  # fmt: skip
    assert found.worst[0].figure == pytest.approx(0.4, abs=1e-6)


def test_a_change_that_no_answer_minds_is_passed_by_every_row():
    found = behaviour.invariance(asked(), "whitespace", reads(shouting), names=NAMES, sureness=SURENESS)
    assert (found.rows, found.passed.value, found.worst) == (4, 1.0, ())
    assert found.passed.low == pytest.approx(0.51, abs=0.01), "Wilson's interval of 4 of 4"
    assert (found.robustness.difference, found.robustness.p_value) == (0, 1)


def test_a_perturbation_that_no_row_has_room_for_is_no_pass():
    rows = asked([("42",), ("7",)], labels=(0, 0))
    found = behaviour.invariance(rows, "name", reads(shouting), names=NAMES, sureness=SURENESS)
    assert (found.rows, found.passed, found.robustness) == (0, None, None)


def test_a_phrase_must_not_make_its_label_less_likely():
    def ask(texts):
        share = np.array([0.9 - 0.5 * text[-1].endswith("x awful") for text in texts], dtype=np.float32)
        return np.stack([share, 1 - share], axis=1)

    rows = asked([("a x",), ("b y",), ("c",)], ask, labels=(0, 0, 0))
    found = behaviour.direction(rows, "awful", "bad", reads(ask), tolerance=0.1, sureness=SURENESS)
    assert (found.rows, found.passed.value) == (3, pytest.approx(2 / 3))
    assert [(one.text, one.wanted, one.said) for one in found.worst] == [
        ("a x awful", "bad 0.900", "bad 0.400")
    ]
    forgiven = behaviour.direction(rows, "awful", "bad", reads(ask), tolerance=0.6, sureness=SURENESS)
    assert forgiven.passed.value == 1


def test_rows_are_drawn_by_seed_with_their_groups_and_stay_in_order():
    drawn = behaviour.sample(asked(groups=np.array([3, 1, 3, 2])), rows=3, seed=1)
    places = [ROWS.index(text) for text in drawn.texts]
    assert places == sorted(places)
    assert len(places) == 3
    assert drawn.groups.tolist() == [[3, 1, 3, 2][place] for place in places]
    assert drawn.plain.ids == tuple(f"row {place}" for place in places)
    assert len(behaviour.sample(asked(), rows=9, seed=1).texts) == 4


def test_near_duplicates_lose_their_score_together():
    rows = asked(groups=np.array([7, 1, 7, 7]))
    found = behaviour.invariance(rows, "lower", reads(shouting), names=NAMES, sureness=SURENESS)
    assert (found.rows, found.robustness.groups) == (2, 1)


def test_a_phrase_that_is_cut_off_again_is_no_pass():
    rows, reader = asked([("a b c",), ("d e",)], labels=(0, 0)), reads(shouting, most=3)
    found = behaviour.direction(rows, "AWFUL", "bad", reader, tolerance=0.1, sureness=SURENESS)
    assert (found.rows, found.passed.value) == (1, 0.0)
    assert [one.text for one in found.worst] == ["d e AWFUL"]
    full = asked([("a b c",)], labels=(0,))
    none = behaviour.direction(full, "AWFUL", "bad", reader, tolerance=0.1, sureness=SURENESS)
    assert (none.name, none.rows, none.passed, none.worst) == ("AWFUL → bad", 0, None, ())


def test_every_test_is_told_under_a_name_of_its_own():
    names = ["Это ужасно. → плохо", "awful! → bad", "awful? → bad", "awful. → bad", "awful! → bad"]
    checked = [Checked(name, "direction", "", 1, Interval(1, 0, 1), None, ()) for name in names]
    assert behaviour.keys(checked) == [
        "Это ужасно. - плохо", "awful- - bad", "awful- - bad 2", "awful. - bad", "awful- - bad 3"
    ]  # fmt: skip


def test_a_change_behind_the_cut_is_no_pass():
    rows, reader = asked([("a b c Anna",), ("Anna",)], labels=(0, 0)), reads(shouting, most=3)
    found = behaviour.invariance(rows, "lower", reader, names=NAMES, sureness=SURENESS)
    assert (found.rows, found.passed.value) == (1, 0.0)


def test_plain_texts_must_be_known():
    expected = [(("GREAT",), "good"), (("great",), "good"), (("dull",), "bad")]
    found = behaviour.functionality(expected, LABELS, "label", reads(shouting), sureness=SURENESS)
    assert (found.rows, found.passed.value) == (3, pytest.approx(2 / 3))
    assert [(one.text, one.wanted, one.said) for one in found.worst] == [("great", "good", "bad")]


def test_of_several_labels_none_may_come_or_go():
    def ask(texts):
        return np.array([[0.9, 0.4 + 0.2 * text[0].isupper()] for text in texts], dtype=np.float32)

    rows = [("a day",), ("a night",)]
    plain = Predictions("model", ("1", "2"), np.array([[1, 0], [1, 1]]), ask(rows), "labels")
    found = behaviour.invariance(
        Asked(rows, plain, LABELS),
        "upper",
        reads(ask),
        names=(),
        sureness=SURENESS,
    )
    assert found.passed.value == 0
    assert (found.worst[0].wanted, found.worst[0].said) == ("bad", "bad, good")
    assert found.robustness.measure == "F1 of a row's labels"
