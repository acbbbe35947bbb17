import random
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.text import dedup, signatures
from tasks.text.dedup import Pairs


def jaccard(one, other, size=3):
    sets = [
        {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}
        for words in (one.split(), other.split())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def measured(folder, keys, threshold):
    texts = pl.Series(keys, dtype=pl.String)
    signed = signatures.sign(texts, folder, shingle=3, rows=signatures.rows_per_band(threshold))
    found = dedup.measured_pairs(signed, np.arange(len(keys)), threshold=threshold)
    return {(i, j): s for i, j, s in zip(*(column.tolist() for column in found), strict=True)}


def edited(text, generator, times):
    words = text.split()
    for _ in range(times):
        words[generator.randrange(len(words))] = "edit"
    return " ".join(words)


def corpus(count):
    generator = random.Random(7)
    base = [" ".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(count)]
    return sorted({edited(text, generator, times) for text in base for times in (0, 1, 2, 3, 5)})


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9])
def test_every_pair_near_enough_is_found_and_every_similarity_is_exact(tmp_path, threshold):
    keys = corpus(12)
    exact = {(i, j): jaccard(keys[i], keys[j]) for i, j in combinations(range(len(keys)), 2)}
    wanted = {pair for pair, similarity in exact.items() if similarity >= threshold}
    found = measured(tmp_path, keys, threshold)
    assert found == {pair: pytest.approx(exact[pair]) for pair in found}
    assert len(wanted & found.keys()) >= 0.95 * len(wanted) > 0


def test_measuring_in_small_parts_changes_nothing(tmp_path, monkeypatch):
    keys = corpus(6)
    before = measured(tmp_path, keys, 0.5)
    monkeypatch.setattr(dedup, "ELEMENTS", 100)
    assert measured(tmp_path, keys, 0.5) == before


def test_a_crowd_is_compared_with_its_leaders_and_none_of_it_is_lost(tmp_path, monkeypatch):
    words = [f"w{n}" for n in range(40)]
    crowd = [" ".join([*words, f"end{n}"]) for n in range(60)]
    every = measured(tmp_path, crowd, 0.8)
    monkeypatch.setattr(dedup, "CROWD", 10)
    few = measured(tmp_path, crowd, 0.8)
    assert len(every) == 60 * 59 // 2
    assert few.items() <= every.items()
    assert len(few) < len(every) / 5
    assert {right for left, right in few if left == 0} == set(range(1, 60))


@pytest.mark.parametrize("keys", [[], ["alone"]])
def test_one_text_and_none_have_no_pairs(tmp_path, keys):
    assert measured(tmp_path, keys, 0.8) == {}


def pairs(*entries):
    left, right, similarity = zip(*entries, strict=True) if entries else ((), (), ())
    return Pairs(np.array(left, int), np.array(right, int), np.array(similarity, float))


NONE = np.zeros(4, dtype=bool)


def test_a_unit_goes_only_if_it_is_itself_near_a_unit_that_stays():
    found = dedup.leaders(4, pairs((0, 1, 0.9), (1, 2, 0.9), (2, 3, 0.8)), gone=NONE)
    assert found.leader.tolist() == [-1, 0, -1, 2]
    assert found.similarity[[1, 3]].tolist() == [0.9, 0.8]


def test_the_most_similar_leader_counts_and_of_equals_the_first():
    near = pairs((0, 3, 0.8), (1, 3, 0.9), (2, 3, 0.9))
    assert dedup.leaders(4, near, gone=NONE).leader.tolist() == [-1, -1, -1, 1]


def test_what_is_gone_neither_stays_nor_leads():
    gone = np.array([True, False, False, False])
    found = dedup.leaders(4, pairs((0, 1, 0.9), (1, 2, 0.9)), gone=gone)
    assert found.leader.tolist() == [-1, -1, 1, -1]


def units(*rows, order=None):
    keys, answers = (np.array(column, dtype=np.uint64) for column in zip(*rows, strict=True))
    return dedup.units(keys, answers, np.arange(len(rows)) if order is None else np.array(order))


def test_rows_of_one_key_and_answer_are_one_unit_in_the_order_of_leading():
    found = units((5, 1), (5, 2), (7, 1), (5, 1), order=[3, 2, 1, 0])
    assert found.unit.tolist() == [0, 2, 1, 0]
    assert found.first.tolist() == [3, 2, 1]
    assert found.text.tolist() == [0, 1, 0]
    assert found.size.tolist() == [2, 1, 1]


def test_pairs_of_texts_become_pairs_of_units():
    found = dedup.between_units(units((5, 1), (5, 2), (7, 1)), pairs((0, 1, 0.9)), across=True, within=True)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == [
        (0, 1, 1.0),
        (0, 2, 0.9),
        (1, 2, 0.9),
    ]


def test_where_several_answers_are_right_only_equal_ones_are_paired():
    found = dedup.between_units(units((5, 1), (5, 2), (7, 1)), pairs((0, 1, 0.9)), across=False, within=False)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == [(0, 2, 0.9)]


def contradictions(rows, near, policy, standing=None):
    found = dedup.between_units(rows, near, across=True, within=True)
    standing = np.array([3] * len(rows.first) if standing is None else standing, dtype=np.int8)
    return dedup.conflicts(rows, found, standing, policy)


@pytest.mark.parametrize("policy", ["quarantine", "majority"])
def test_whoever_was_there_first_is_spared(policy):
    rows = units((5, 1), (5, 2), (5, 2), (9, 1))
    found = contradictions(rows, pairs(), policy, standing=[0, 3, 3])
    assert found.reason.tolist() == ["", "conflicting_labels", ""]


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        ("quarantine", ["conflicting_labels", "conflicting_labels", ""]),
        ("majority", ["", "minority_label", ""]),
        ("keep", ["", "", ""]),
    ],
)
def test_a_contradiction_is_handled_as_declared(policy, reasons):
    rows = units((5, 1), (5, 1), (5, 2), (9, 1))
    found = contradictions(rows, pairs(), policy)
    assert found.reason.tolist() == reasons
    assert found.rival.tolist() == [1, 0, -1]


def test_a_tie_has_no_majority():
    rows = units((5, 1), (5, 2))
    found = contradictions(rows, pairs(), "majority")
    assert found.reason.tolist() == ["conflicting_labels"] * 2


def test_the_rival_is_the_most_similar_one_with_another_answer():
    rows = units((1, 1), (2, 2), (3, 2), (4, 1))
    near = pairs((0, 1, 0.8), (0, 2, 0.9), (0, 3, 1.0))
    found = contradictions(rows, near, "quarantine")
    assert found.rival.tolist() == [2, 0, 0, -1]
    assert found.similarity[:3].tolist() == [0.9, 0.8, 0.9]


EDGES = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 7), st.floats(0.8, 1)).filter(lambda edge: edge[0] < edge[1]),
    unique_by=lambda edge: edge[:2],
    max_size=20,
)


@given(EDGES)
def test_whoever_leaves_is_near_one_that_stays_and_no_two_that_stay_are_near(edges):
    found = dedup.leaders(8, pairs(*edges), gone=np.zeros(8, dtype=bool))
    near = {edge[:2]: edge[2] for edge in edges}
    for unit, leader in enumerate(found.leader.tolist()):
        assert leader < 0 or (found.leader[leader] < 0 and near[leader, unit] == found.similarity[unit])
    stays = set(np.flatnonzero(found.leader < 0).tolist())
    assert not [pair for pair in near if set(pair) <= stays]
