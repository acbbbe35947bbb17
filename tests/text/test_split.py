from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.text import split
from tasks.text.dedup import Pairs
from tasks.text.split import HELD_OUT, TEST, TRAIN, VALIDATION

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
UNKNOWN = -1


def assigned(keys, *, edges=(), known=None, classes=None, groups=(), shares=SHARES, salt="s"):
    ends = [np.array([edge[side] for edge in edges], dtype=np.int64) for side in (0, 1)]
    found = split.assign(
        np.array(keys, dtype=np.uint64),
        Pairs(*ends, np.ones(len(edges))),
        np.array([UNKNOWN] * len(keys) if known is None else known, dtype=np.int8),
        ["x"] * len(keys) if classes is None else classes,
        groups=np.array(groups, dtype=np.uint64),
        shares=shares,
        salt=salt,
    )
    return [part.tolist() for part in found]


def assign(keys, **more):
    return assigned(keys, **more)[0]


def test_the_shares_hold_within_each_class():
    classes = ["a"] * 1000 + ["b"] * 50 + ["c"] * 10
    found = Counter(zip(classes, assign(range(1060), classes=classes), strict=True))
    assert {key: found[key] for key in found if key[1] == TEST} == {("a", 2): 200, ("b", 2): 10, ("c", 2): 2}
    assert {key: found[key] for key in found if key[1] == VALIDATION} == {
        ("a", 1): 100, ("b", 1): 5, ("c", 1): 1,
    }  # fmt: skip


def test_a_small_class_is_in_every_split():
    assert Counter(assign(range(4))) == {TRAIN: 2, VALIDATION: 1, TEST: 1}


def test_classes_too_rare_to_divide_are_divided_together():
    classes = [f"class {n}" for n in range(20)]
    assert Counter(assign(range(20), classes=classes)) == {TRAIN: 14, VALIDATION: 2, TEST: 4}


def test_new_texts_fill_the_shares_that_old_ones_left_open():
    known = [TRAIN] * 50 + [UNKNOWN] * 50
    assert Counter(assign(range(100), known=known)) == {TRAIN: 70, VALIDATION: 10, TEST: 20}
    known = [TEST] * 50 + [UNKNOWN] * 50
    assert Counter(assign(range(100), known=known)) == {TRAIN: 40, VALIDATION: 10, TEST: 50}


def test_another_salt_is_another_split():
    assert assign(range(200)) != assign(range(200), salt="t")


def test_the_position_of_a_key_is_the_same_for_ever():
    assert split.position("key", "salt") == pytest.approx(0.19900922869677906)


def test_a_chain_of_new_texts_between_two_splits_loses_only_one():
    """0 (train) - 1 - 2 - 3 - 4 (test)."""
    edges = [(0, 1), (1, 2), (2, 3), (3, 4)]
    found = assign(range(5), edges=edges, known=[TRAIN, UNKNOWN, UNKNOWN, UNKNOWN, TEST])
    assert found.count(HELD_OUT) == 1
    kept = [edge for edge in edges if HELD_OUT not in (found[edge[0]], found[edge[1]])]
    assert all(found[one] == found[other] for one, other in kept)


GRAPH = st.integers(1, 12).flatmap(
    lambda count: st.tuples(
        st.permutations(range(count)),
        st.lists(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda e: e[0] < e[1]),
            max_size=20,
        ),
        st.lists(
            st.sampled_from([UNKNOWN, UNKNOWN, TRAIN, VALIDATION, TEST]), min_size=count, max_size=count
        ),
        st.just(()) | st.lists(st.integers(0, 4), min_size=count, max_size=count),
    )
)


def bound(edges, groups):
    """All pairs that must not be divided."""
    mates = [(n, m) for m in range(len(groups)) for n in range(m) if groups[n] == groups[m]]
    return [*edges, *mates]


@given(GRAPH)
def test_known_texts_never_move_and_a_new_one_never_stands_beside_another_split(graph):
    keys, edges, known, groups = graph
    found = assign(keys, edges=edges, known=known, groups=groups)
    assert UNKNOWN not in found
    assert all(new == old for new, old in zip(found, known, strict=True) if old != UNKNOWN)
    for one, other in bound(edges, groups):
        both_old = known[one] != UNKNOWN and known[other] != UNKNOWN
        assert both_old or HELD_OUT in (found[one], found[other]) or found[one] == found[other]


@given(GRAPH)
def test_a_cluster_is_all_that_stays_together_and_in_one_split(graph):
    keys, edges, known, groups = graph
    splits, clusters = assigned(keys, edges=edges, known=known, groups=groups)
    for one, other in bound(edges, groups):
        if splits[one] == splits[other] != HELD_OUT:
            assert clusters[one] == clusters[other]
    stays = {(name, split) for name, split in zip(clusters, splits, strict=True) if split != HELD_OUT}
    assert len(stays) == len({name for name, _ in stays})


@given(GRAPH)
def test_nothing_is_held_out_without_two_splits_to_tie(graph):
    keys, edges, _, groups = graph
    assert HELD_OUT not in assign(keys, edges=edges, groups=groups)


@given(GRAPH, st.randoms(use_true_random=False))
def test_the_order_of_the_texts_does_not_matter(graph, generator):
    keys, edges, known, groups = graph
    order = generator.sample(range(len(keys)), len(keys))
    moved = {old: new for new, old in enumerate(order)}
    turned = [tuple(sorted((moved[one], moved[other]))) for one, other in edges]
    found = assign(
        [keys[n] for n in order],
        edges=turned,
        known=[known[n] for n in order],
        groups=[groups[n] for n in order] if groups else (),
    )
    whole = assign(keys, edges=edges, known=known, groups=groups)
    assert found == [whole[n] for n in order]


def test_a_subset_takes_so_many_by_hash_whatever_the_order():
    ids = [f"id{n}" for n in range(12)]
    beyond = split.outside_subset(ids, 5, salt="s")
    assert len(beyond) == 7
    turned = split.outside_subset(ids[::-1], 5, salt="s")
    assert {ids[place] for place in beyond} == {ids[::-1][place] for place in turned}
    assert split.outside_subset(ids, None, salt="s") == split.outside_subset(ids, 12, salt="s") == []


GOOD = {(label, name): 2 for label in "ab" for name in ("train", "validation", "test")}


def test_classes_in_every_split_pass():
    split.check_classes(GOOD | {("a", "test"): 1}, ("a", "b"))


def test_every_class_too_small_is_named_with_its_counts():
    with pytest.raises(DataError) as caught:
        split.check_classes(GOOD | {("a", "train"): 1, ("b", "test"): 0}, ("a", "b"))
    assert "class 'a' has 1 rows left in train and needs 2 (5 in all splits)" in str(caught.value)
    assert "class 'b' has 0 rows left in test and needs 1 (4 in all splits)" in str(caught.value)
    assert "merge it with another, or change preparation.fractions" in str(caught.value)


@pytest.mark.parametrize(("labels", "message"), [(("a",), "'a' is the only label"), ((), "no row is left")])
def test_one_class_is_no_classification(labels, message):
    with pytest.raises(DataError, match=message):
        split.check_classes({}, labels)


def test_labels_are_ordered_by_value_if_they_are_whole_numbers():
    assert split.order_labels(["10", "9", "9", "1"]) == ("1", "9", "10")
    assert split.order_labels(["b", "10", "9"]) == ("10", "9", "b")
