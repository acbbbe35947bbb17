import random

import numpy as np
import pytest

from tasks.drift import measures

WORDS = [f"word{number}" for number in range(60)]


def texts(count, *, words=WORDS, length=10, seed=0):
    chance = random.Random(seed)
    return [" ".join(chance.choices(words, k=chance.randint(length - 4, length + 4))) for _ in range(count)]


def drawn(shares, count, *, seed=0):
    chance = random.Random(seed)
    return chance.choices(list(shares), list(shares.values()), k=count)


ALIKE = {
    "length": lambda: measures.lengths(texts(80, seed=1), texts(200, seed=2)),
    "words": lambda: measures.words(texts(80, seed=1), texts(200, seed=2)),
    "classes": lambda: measures.classes(
        drawn({"a": 3, "b": 1}, 80, seed=1), drawn({"a": 3, "b": 1}, 200, seed=2)
    ),
    "states": lambda: measures.states(
        np.random.default_rng(1).normal(size=(80, 8)), np.random.default_rng(2).normal(size=(200, 8))
    ),
}
SHIFTED = {
    "length": lambda: measures.lengths(texts(80, length=30), texts(200, seed=2)),
    "words": lambda: measures.words(texts(80, words=WORDS[:10]), texts(200, seed=2)),
    "classes": lambda: measures.classes(drawn({"a": 1, "b": 3}, 80), drawn({"a": 3, "b": 1}, 200, seed=2)),
    "states": lambda: measures.states(
        np.random.default_rng(1).normal(1, size=(80, 8)), np.random.default_rng(2).normal(size=(200, 8))
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_rows_of_one_distribution_differ_as_chance_makes_them(name):
    found = ALIKE[name]()
    assert (found.name, found.rows) == (name, (80, 200))
    assert not found.differs
    assert found.excess == 0
    assert found.p_value > measures.LEVEL


@pytest.mark.parametrize("name", SHIFTED)
def test_rows_of_another_distribution_differ_by_more(name):
    found, alike = SHIFTED[name](), ALIKE[name]()
    assert found.differs
    assert found.p_value == 1 / (measures.RESAMPLES + 1)
    assert found.value > 3 * alike.value
    assert 0 < found.excess < found.value <= 1


def test_nothing_in_common_is_one_and_the_same_rows_are_nothing():
    ours, theirs = ["left only"] * 40, ["right alone"] * 50
    assert measures.words(ours, theirs).value == pytest.approx(1)
    assert measures.classes(["a"] * 40, ["b"] * 50).value == pytest.approx(1)
    assert measures.numbers("scores", "points", [1.0] * 40, [5.0] * 50).value == pytest.approx(1)
    assert measures.words(ours * 2, ours).value == 0
    far = measures.states(np.zeros((40, 3)), np.full((50, 3), 9.0))
    assert far.value == pytest.approx(1)
    assert measures.states(np.zeros((40, 3)), np.zeros((50, 3))).value == 0


def test_divergence_is_that_of_the_definition():
    found = measures.classes(["a"] * 30 + ["b"] * 10, ["a"] * 20 + ["b"] * 60)
    p, q = np.array([0.75, 0.25]), np.array([0.25, 0.75])
    middle = (p + q) / 2
    assert found.value == pytest.approx(((p * np.log2(p / middle)) + (q * np.log2(q / middle))).sum() / 2)


def test_energy_is_that_of_the_definition():
    ours, theirs = (
        np.random.default_rng(0).normal(size=(31, 2)),
        np.random.default_rng(1).normal(size=(33, 2)),
    )

    def mean(one, other):
        return np.mean([np.linalg.norm(a - b) for a in one for b in other])

    across = mean(ours, theirs)
    expected = (2 * across - mean(ours, ours) - mean(theirs, theirs)) / (2 * across)
    assert measures.states(ours, theirs).value == pytest.approx(expected)


def test_every_row_is_in_one_part():
    found = measures.lengths(texts(80, length=8), texts(200, length=12))
    assert sum(part.new for part in found.parts) == pytest.approx(1)
    assert sum(part.trained for part in found.parts) == pytest.approx(1)
    assert "median" in found.told


def test_words_that_are_new_and_classes_that_are_new_are_named():
    said = measures.words(["rare words here"] * 40, ["words here"] * 40)
    assert said.told.startswith("33.3 %")
    assert said.parts[0].name == "rare"
    assert measures.classes(["a", "c"] * 20, ["a", "b"] * 20).told.endswith("new: c")


def test_texts_without_words_tell_nothing_of_words():
    assert measures.words(["…"] * 40, ["!"] * 40) is None
    assert measures.words(["…"] * 40, ["a word"] * 40) is None


@pytest.mark.parametrize(("new", "trained", "said"), [(29, 500, True), (30, 30, False), (500, 29, True)])
def test_of_few_rows_nothing_is_said(new, trained, said):
    told = measures.too_few(new, trained)
    assert (told is not None) == said
    assert told is None or f"{new:,} new" in told


def test_the_same_rows_tell_the_same():
    assert ALIKE["words"]() == ALIKE["words"]()
