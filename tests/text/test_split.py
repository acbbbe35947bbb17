from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.text import split
from tasks.text.split import Row

CLUSTERS = st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=30)


def assign(clusters, *, validation=0.1, test=0.2, salt="s"):
    return split.assign(clusters, validation=validation, test=test, salt=salt)


@given(CLUSTERS)
def test_a_cluster_is_never_cut(clusters):
    splits = assign(clusters)
    assert len({(clusters[row], splits[row]) for row in clusters}) == len(set(clusters.values()))


@given(CLUSTERS, CLUSTERS)
def test_order_does_not_matter_and_new_rows_move_no_old_one(old, new):
    before = assign(old)
    after = assign(dict(reversed((new | old).items())))
    assert {row: after[row] for row in old} == before


def test_the_shares_are_those_asked_for():
    counts = Counter(assign({str(n): str(n) for n in range(20_000)}).values())
    assert counts["test"] / 20_000 == pytest.approx(0.2, abs=0.01)
    assert counts["validation"] / 20_000 == pytest.approx(0.1, abs=0.01)


def test_more_validation_takes_from_train_alone():
    clusters = {str(n): str(n) for n in range(2000)}
    before, after = assign(clusters), assign(clusters, validation=0.2)
    moved = {(before[row], after[row]) for row in clusters if before[row] != after[row]}
    assert moved == {("train", "validation")}


def test_another_salt_is_another_split():
    clusters = {str(n): str(n) for n in range(200)}
    assert assign(clusters) != assign(clusters, salt="t")


def test_the_position_of_a_key_is_the_same_for_ever():
    assert split.position("key", "salt") == pytest.approx(0.19900922869677906)


def test_a_subset_takes_so_many_by_hash_and_explains_the_rest():
    splits = {str(n): "train" if n < 8 else "test" for n in range(12)}
    beyond = split.outside_subset(splits, {"train": 5, "validation": None, "test": None}, salt="s")
    assert len(beyond) == 3
    assert set(beyond.values()) == {"train takes 5 of 8 rows"}
    reordered = dict(reversed(splits.items()))
    assert split.outside_subset(reordered, {"train": 5}, salt="s").keys() == beyond.keys()


def _rows(counts):
    return [
        Row(f"{label}{name}{n}", "text", label, "c", name)
        for (label, name), count in counts.items()
        for n in range(count)
    ]


GOOD = {(label, name): 2 for label in "ab" for name in ("train", "validation", "test")}


def test_classes_in_every_split_pass():
    split.check_classes(_rows(GOOD | {("a", "test"): 1}), ("a", "b"))


def test_every_class_too_small_is_named_with_its_counts():
    with pytest.raises(DataError) as caught:
        split.check_classes(_rows(GOOD | {("a", "train"): 1, ("b", "test"): 0}), ("a", "b"))
    assert "class 'a' has 1 rows left in train and needs 2 (5 in all splits)" in str(caught.value)
    assert "class 'b' has 0 rows left in test and needs 1 (4 in all splits)" in str(caught.value)
    assert "merge it with another, or change preparation.salt" in str(caught.value)


@pytest.mark.parametrize(("labels", "message"), [(("a",), "'a' is the only label"), ((), "no row is left")])
def test_one_class_is_no_classification(labels, message):
    with pytest.raises(DataError, match=message):
        split.check_classes([], labels)


def test_labels_are_ordered_by_value_if_they_are_whole_numbers():
    assert split.order_labels(["10", "9", "9", "1"]) == ("1", "9", "10")
    assert split.order_labels(["b", "10", "9"]) == ("10", "9", "b")
