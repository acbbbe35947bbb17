import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.text import dedup
from tasks.text.sources import Document

LONG = "the quick brown fox jumps over the lazy dog and runs away into the dark green forest at night"


def documents(*rows):
    return [Document(f"{n}", text, label, f"t:{n}") for n, (text, label) in enumerate(rows)]


def deduplicate(*rows, threshold=0.8, shingle=3, conflicts="quarantine"):
    return dedup.deduplicate(documents(*rows), threshold=threshold, shingle=shingle, conflicts=conflicts)


def ids(items):
    return [item.id for item in items]


def jaccard(one, other, size=3):
    sets = [
        {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}
        for words in (one.split(), other.split())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize(
    "text",
    [
        "RT @you: Great  news!",
        "rt @a RT @b: great news",
        "great news http://t.co/abc",
        "GREAT #news…",
        "@me great news \ufffd",
        "ｇｒｅａｔ news",
    ],
)
def test_what_makes_no_other_text(text):
    assert dedup.key(text) == "great news"


@pytest.mark.parametrize(
    ("one", "other"), [("great 😀", "great 😡"), ("a 5", "a 6"), ("@me", "@you"), ("...", "?!")]
)
def test_what_makes_another_text(one, other):
    assert dedup.key(one) != dedup.key(other)


def test_the_first_of_exact_duplicates_stays():
    found = deduplicate(("Same words.", "a"), ("other words", "a"), ("same WORDS", "a"))
    assert ids(found.kept) == ["0", "1"]
    assert [(d.id, d.reason, d.detail) for d in found.drops] == [("2", "exact_duplicate", "of 0")]


def test_a_near_duplicate_names_its_leader_and_how_near_it_is():
    found = deduplicate((LONG, "a"), ("something else altogether", "a"), (LONG + " again", "a"))
    expected = jaccard(LONG, LONG + " again")
    assert ids(found.kept) == ["0", "1"]
    assert [(d.id, d.reason, d.detail) for d in found.drops] == [
        ("2", "near_duplicate", f"{expected:.3f} similar to 0")
    ]


def test_a_row_goes_only_if_it_is_itself_near_a_row_that_stays_but_clusters_are_whole_chains():
    words = [f"w{n}" for n in range(40)]
    chain = [" ".join(words[start : start + 30]) for start in (0, 3, 6)]
    assert jaccard(chain[0], chain[1]) >= 0.8 > jaccard(chain[0], chain[2])
    found = deduplicate(*[(text, "a") for text in chain])
    assert ids(found.kept) == ["0", "2"]
    assert len(set(found.clusters.values())) == 1


def test_duplicates_with_different_labels_are_all_set_aside():
    found = deduplicate(("same words", "a"), ("Same words!", "b"), ("same words", "a"), ("other", "a"))
    assert ids(found.kept) == ["3"]
    assert [(q.id, q.reason) for q in found.quarantined] == [(n, "conflicting_labels") for n in "012"]
    assert found.quarantined[0].detail == "labelled a, but 1 (1.000 similar) is labelled b"


def test_near_duplicates_with_different_labels_are_set_aside_too():
    found = deduplicate((LONG, "a"), (LONG + " again", "b"))
    assert (found.kept, found.drops) == ((), ())
    assert ids(found.quarantined) == ["0", "1"]


def test_conflicts_may_keep_the_first():
    found = deduplicate(
        ("same words", "a"), ("same words", "b"), (LONG, "b"), (LONG + " x", "a"), conflicts="keep"
    )
    assert ids(found.kept) == ["0", "2"]
    assert found.quarantined == ()


def test_texts_shorter_than_a_shingle_are_compared_whole():
    found = deduplicate(("yes", "a"), ("no", "a"), ("yes no", "a"), ("no yes", "a"), shingle=5)
    assert len(found.kept) == 4


def test_one_text_and_none():
    assert ids(deduplicate(("alone", "a")).kept) == ["0"]
    assert deduplicate().kept == ()


def test_a_lone_surrogate_does_not_stop_the_comparison():
    assert len(deduplicate(("a \ud800 b", "a"), ("c d", "a")).kept) == 2


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9])
def test_every_pair_near_enough_is_found_and_no_other(threshold):
    generator = random.Random(7)
    base = [" ".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(12)]
    keys = sorted({_edited(text, generator, times) for text in base for times in (0, 1, 2, 3, 5)})
    expected = {
        (i, j): jaccard(keys[i], keys[j])
        for i, j in combinations(range(len(keys)), 2)
        if jaccard(keys[i], keys[j]) >= threshold
    }
    found = {(p.left, p.right): p.similarity for p in dedup.near_pairs(keys, threshold=threshold, shingle=3)}
    assert found.keys() <= expected.keys()
    assert found == {pair: pytest.approx(expected[pair]) for pair in found}
    assert len(found) >= 0.9 * len(expected) > 0


def _edited(text, generator, times):
    words = text.split()
    for _ in range(times):
        words[generator.randrange(len(words))] = "edit"
    return " ".join(words)


@pytest.mark.parametrize(("threshold", "rows"), [(0.95, 16), (0.8, 8), (0.7, 4), (0.5, 2), (0.01, 1)])
def test_bands_are_as_selective_as_the_threshold_allows(threshold, rows):
    assert dedup.rows_per_band(threshold) == rows


TEXTS = st.lists(
    st.tuples(
        st.sampled_from([LONG, LONG + " x", LONG + " x y", "yes", "Yes!", "no", "", "@a"]),
        st.sampled_from("ab"),
    ),
    max_size=12,
)


@given(TEXTS, st.sampled_from(["quarantine", "keep"]))
def test_every_document_stays_or_leaves_once(rows, conflicts):
    found = deduplicate(*rows, conflicts=conflicts)
    left = sorted(ids((*found.kept, *found.drops, *found.quarantined)))
    assert left == sorted(str(n) for n in range(len(rows)))
    assert found.clusters.keys() == set(left)


@given(TEXTS, st.randoms(use_true_random=False))
def test_clusters_and_conflicts_do_not_depend_on_order(rows, generator):
    before = documents(*rows)
    after = generator.sample(before, len(before))
    one, other = (
        dedup.deduplicate(order, threshold=0.8, shingle=3, conflicts="quarantine")
        for order in (before, after)
    )
    assert one.clusters == other.clusters
    assert sorted(ids(one.quarantined)) == sorted(ids(other.quarantined))


@given(TEXTS, TEXTS)
def test_rows_added_at_the_end_leave_earlier_decisions_alone(old, new):
    before = deduplicate(*old, conflicts="keep")
    after = deduplicate(*old, *new, conflicts="keep")
    assert ids(after.kept)[: len(before.kept)] == ids(before.kept)
