from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.artifacts import SPLITS
from tasks.text import contamination, ledger, signatures

LONG = "the quick brown fox jumps over the lazy dog and runs away into the dark green forest at night"
TRAIN, VALIDATION, TEST = range(3)
slow = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def entries(texts, splits, salt="s"):
    keys = signatures.hashed(signatures.keys(pl.Series(texts)))
    rows = {"salt": [salt] * len(texts), "key": keys, "split": [SPLITS[split] for split in splits]}
    return pl.DataFrame(rows | {"content": [0] * len(texts)}, schema=ledger.SCHEMA)


def test_the_first_of_exact_duplicates_stays(decided):
    found = decided(("Same words.", "a"), ("other words", "a"), ("same WORDS", "a"))
    assert found.reasons == ["", "", "exact_duplicate"]
    assert (found.fates.other[2], found.fates.similarity[2]) == (0, 1.0)


def test_a_near_duplicate_names_its_leader_and_how_near_it_is(decided):
    found = decided((LONG, "a"), ("something else altogether", "a"), (LONG + " again", "a"))
    assert found.reasons == ["", "", "near_duplicate"]
    assert found.fates.other[2] == 0
    assert found.fates.similarity[2] == pytest.approx(17 / 18)


def test_clusters_are_whole_chains_though_a_row_goes_only_if_it_is_itself_near(decided):
    words = [f"w{n}" for n in range(40)]
    found = decided(*[(" ".join(words[start : start + 30]), "a") for start in (0, 3, 6)])
    assert found.reasons == ["", "near_duplicate", ""]
    assert len(set(found.clusters)) == len(set(found.splits)) == 1


def test_duplicates_with_different_labels_are_all_set_aside(decided):
    found = decided(("same words", "a"), ("Same words!", "b"), ("same words", "a"), ("other", "a"))
    assert found.reasons == [*["conflicting_labels"] * 3, ""]
    assert found.fates.other[:3].tolist() == [1, 0, 1]


def test_near_duplicates_with_different_labels_are_set_aside_too(decided):
    assert decided((LONG, "a"), (LONG + " again", "b")).reasons == ["conflicting_labels"] * 2


def test_the_majority_may_decide(decided):
    rows = [("same words", "b"), (LONG, "a"), (LONG + " x", "b"), ("same words", "a"), (LONG, "a")]
    found = decided(*rows, conflicts="majority")
    assert found.reasons == [
        "conflicting_labels",
        "",
        "minority_label",
        "conflicting_labels",
        "exact_duplicate",
    ]


def test_conflicts_may_keep_the_first(decided):
    rows = [("same words", "a"), ("same words", "b"), (LONG, "b"), (LONG + " x", "a")]
    assert decided(*rows, conflicts="keep").reasons == ["", "exact_duplicate", "", "near_duplicate"]


def test_a_prompt_may_have_several_answers_but_only_in_one_split(decided):
    rows = [
        {"prompt": text, "completion": said} for text, said in [(LONG, "x"), (LONG, "y"), (LONG + " a", "x")]
    ]
    found = decided(*rows, kind="completion")
    assert found.reasons == ["", "", "near_duplicate"]
    assert len(set(found.splits)) == 1


def test_a_second_row_with_an_id_is_set_aside(decided):
    rows = [{"text": f"text {n}", "label": "a", "id": name} for n, name in enumerate("xyx")]
    assert decided(*rows, layout={"id": "id"}).reasons == ["", "", "duplicate_id"]


def test_a_subset_takes_so_many(decided):
    rows = [(f"text number {n}", "ab"[n % 2]) for n in range(40)]
    found = decided(*rows, limits={"train": 5, "validation": None, "test": 0})
    counts = Counter(split for split, reason in zip(found.splits, found.reasons, strict=True) if not reason)
    assert counts == {TRAIN: 5, VALIDATION: 4}
    assert found.reasons.count("outside_subset") == 40 - 9


def test_the_ledger_is_obeyed_and_new_duplicates_inherit(decided):
    rows = [(LONG, "a"), (LONG + " again", "a"), ("quite different words", "a")]
    for split in (TRAIN, VALIDATION, TEST):
        found = decided(*rows, entries=entries([LONG], [split]))
        assert found.splits[:2] == [split, split]
        assert found.reasons == ["", "near_duplicate", ""]


def test_a_known_row_leads_a_new_one_that_stands_before_it(decided):
    found = decided((LONG + " again", "a"), (LONG, "a"), entries=entries([LONG], [TRAIN]))
    assert found.reasons == ["near_duplicate", ""]


def chain():
    words = [f"w{n}" for n in range(40)]
    return [" ".join(words[start : start + 30]) for start in (0, 3, 6)]


def test_a_new_row_between_two_splits_is_held_out_and_the_old_ones_stay(decided):
    one, between, other = chain()
    known = entries([one, other], [TRAIN, TEST])
    found = decided((one, "a"), (between, "a"), (other, "a"), entries=known)
    assert found.reasons == ["", "bridges_splits", ""]
    assert [found.splits[0], found.splits[2]] == [TRAIN, TEST]


def test_old_rows_found_near_across_splits_leave_train_and_never_the_test_set(decided):
    known = entries([LONG, LONG + " again"], [TRAIN, TEST])
    found = decided((LONG, "a"), (LONG + " again", "a"), entries=known)
    assert found.reasons == ["straddles_splits", ""]
    assert found.fates.other[0] == 1


def test_another_salt_is_another_ledger(decided):
    known = entries([LONG], [TEST], salt="other")
    rows = [(LONG, "a"), *[(f"text number {n}", "a") for n in range(9)]]
    assert decided(*rows, entries=known).splits == decided(*rows).splits


def fixed(*rows):
    return [{"text": text, "label": label, "part": part} for text, label, part in rows]


def test_the_tables_own_splits_are_respected_and_cleaned_from_train(decided):
    rows = fixed(
        (LONG, "a", "train"),
        (LONG + " again", "a", "test"),
        ("words of their own", "b", "train"),
        ("words of their own", "b", "dev"),
        ("and others", "b", "test"),
    )
    found = decided(*rows, layout={"split": "part"})
    assert found.reasons == ["straddles_splits", "", "straddles_splits", "", ""]
    assert [found.splits[place] for place in found.kept] == [TEST, VALIDATION, TEST]


def test_a_split_that_the_table_does_not_name_takes_its_share_from_train(decided):
    rows = [(f"text number {n}", "a", "test" if n < 5 else "train") for n in range(45)]
    found = decided(*fixed(*rows), layout={"split": "part"})
    assert found.splits[:5] == [TEST] * 5
    assert Counter(found.splits) == {TEST: 5, VALIDATION: 5, TRAIN: 35}


def test_what_an_evaluation_elsewhere_holds_leaves_train_and_no_other_split(decided, tmp_path):
    thirteen = "one two three four five six seven eight nine ten eleven twelve thirteen"
    rows = [
        (LONG, "a"),
        (f"so {thirteen} and so on and on", "a"),
        ("Short one!", "a"),
        ("mine alone", "a"),
        ("tested", "a"),
    ]
    theirs = contamination.collect(
        [
            contamination.Evaluation("one", pl.Series([LONG + " again", "short one", "theirs"])),
            contamination.Evaluation("two", pl.Series([f"{thirteen} in another frame", "tested"])),
        ],
        tmp_path / "theirs",
        shingle=3,
        rows=6,
    )
    found = decided(
        *rows,
        entries=entries([text for text, _ in rows], [TRAIN, TRAIN, TRAIN, TRAIN, TEST]),
        grams=theirs.file,
        signed=lambda own: signatures.join([own, theirs.signed], tmp_path / "joined"),
    )
    assert found.reasons == [*["contaminates_evaluation"] * 3, "", ""]
    told = contamination.found(theirs, found.decided.foreign, found.gathered.grams)
    assert told == (("one", 3, 2), ("two", 2, 2))


def test_a_table_with_train_and_test_alone_keeps_its_train_rows_out_of_test(decided):
    rows = [(f"text number {n}", "a", "test" if n < 20 else "train") for n in range(100)]
    before = entries([text for text, _, _ in rows], [TEST if n % 3 else TRAIN for n in range(100)])
    found = decided(*fixed(*rows), layout={"split": "part"}, entries=before)
    assert found.splits[:20] == [TEST] * 20
    assert TEST not in found.splits[20:]


def test_a_fixed_train_row_that_a_chain_ties_to_test_leaves_rather_than_moves(decided):
    one, between, other = chain()
    rows = fixed((one, "a", "test"), (between, "a", "train"), (other, "a", "train"))
    found = decided(*rows, layout={"split": "part"})
    assert found.reasons == ["", "straddles_splits", "straddles_splits"]


def test_the_same_prompt_in_two_fixed_splits_stays_in_the_test_set_alone(decided):
    rows = [
        {"prompt": LONG, "completion": said, "part": part}
        for said, part in (("x", "train"), ("y", "test"), ("z", "validation"))
    ]
    found = decided(*rows, kind="completion", layout={"split": "part"})
    assert found.reasons == ["straddles_splits", "", "straddles_splits"]
    assert found.splits[1] == TEST


def test_rows_of_one_premise_share_a_split_and_are_no_duplicates(decided):
    rows = [
        {"text": f"premise {n // 3} of {n // 3}", "pair": f"hypothesis {n % 3}", "label": "ab"[n % 2]}
        for n in range(90)
    ]
    found = decided(*rows, kind="pair")
    assert set(found.reasons) == {""}
    assert all(len(set(found.splits[n : n + 3])) == 1 for n in range(0, 90, 3))
    assert len(set(found.splits)) == 3


def test_a_premise_stays_whole_though_one_of_its_rows_is_set_aside(decided):
    rows = [
        {"text": f"premise {n // 6}", "pair": f"hypothesis {n}", "label": said}
        for n in range(120)
        for said in ("ab" if n % 6 in (2, 4) else "a")
    ]
    found = decided(*rows, kind="pair")
    assert found.reasons.count("conflicting_labels") == 80
    stays = [n for n, reason in enumerate(found.reasons) if not reason]
    where = {(rows[n]["text"], found.splits[n]) for n in stays}
    assert len(where) == len({premise for premise, _ in where}) == 20


def test_a_word_that_changes_sides_makes_another_pair(decided):
    rows = [
        {"text": "the dog ran", "pair": "up to the hill", "label": "a"},
        {"text": "the dog ran up", "pair": "to the hill", "label": "b"},
    ]
    assert decided(*rows, kind="pair").reasons == ["", ""]


def remembered(case, salt="s"):
    done = case.decided
    rows = {"salt": [salt] * len(done.keys), "key": done.keys, "content": done.content}
    rows["split"] = [SPLITS[split] for split in done.splits]
    return pl.DataFrame(rows).filter(pl.Series(done.splits) >= 0).select(list(ledger.SCHEMA))


@pytest.mark.parametrize("policy", ["quarantine", "majority"])
def test_an_appended_contradiction_takes_no_old_row_away(decided, policy):
    old = [(LONG, "a"), ("other words", "b")]
    known = remembered(decided(*old))
    found = decided((LONG.upper(), "b"), *old, (LONG + " x", "b"), entries=known, conflicts=policy)
    assert found.reasons == ["conflicting_labels", "", "", "conflicting_labels"]


def test_an_old_row_leads_a_variant_of_itself_that_now_stands_before_it(decided):
    known = remembered(decided((LONG, "a")))
    assert decided((LONG.upper(), "a"), (LONG, "a"), entries=known).reasons == ["exact_duplicate", ""]


def test_tags_contradict_only_on_the_same_words(decided):
    def tagged(words, last="O"):
        return {"tokens": words, "tags": ["O"] * (len(words) - 1) + [last]}

    words = LONG.split()
    found = decided(tagged(words), tagged([*words, "today"]), kind="tags")
    assert found.reasons == ["", ""]
    assert decided(tagged(words), tagged(words, "B"), kind="tags").reasons == ["conflicting_labels"] * 2


def test_a_prompt_with_thousands_of_answers_makes_no_pairs_of_them(decided):
    rows = [{"prompt": "Summarise:", "completion": f"answer {n}"} for n in range(3000)]
    found = decided(*rows, kind="completion")
    assert set(found.reasons) == {""}
    assert len(set(found.splits)) == 1


def test_a_near_duplicate_of_a_text_that_an_evaluation_holds_leaves_train_too(decided, tmp_path):
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda"
    theirs = contamination.collect(
        [contamination.Evaluation("one", pl.Series([words + " mu"]))], tmp_path / "theirs", shingle=3, rows=6
    )
    rows = [(words + " nu", "a"), (words + " mu", "a")]
    found = decided(
        *rows,
        entries=entries([text for text, _ in rows], [TRAIN, TRAIN]),
        grams=theirs.file,
        signed=lambda own: signatures.join([own, theirs.signed], tmp_path / "joined"),
    )
    assert found.kept == []


def test_the_premise_of_a_pair_is_looked_for_in_evaluations(decided, tmp_path):
    theirs = contamination.collect(
        [contamination.Evaluation("one", pl.Series(["a premise"]))], tmp_path / "theirs", shingle=3, rows=6
    )
    rows = [{"text": "A premise.", "pair": f"hypothesis {n}", "label": "a"} for n in range(2)]
    found = decided(
        *rows,
        kind="pair",
        entries=entries([f"a premise \u241e hypothesis {n}" for n in range(2)], [TRAIN, TRAIN]),
        grams=theirs.file,
        signed=lambda own: signatures.join([own, theirs.signed], tmp_path / "joined"),
    )
    assert found.reasons == ["contaminates_evaluation"] * 2
    assert contamination.found(theirs, found.decided.foreign, found.gathered.grams) == (("one", 1, 1),)


TEXTS = st.lists(
    st.tuples(
        st.sampled_from([LONG, LONG + " x", LONG + " x y", *chain(), "yes", "Yes!", "no", "", "@a"]),
        st.sampled_from("ab"),
    ),
    min_size=1,
    max_size=12,
)


@slow
@given(rows=TEXTS, conflicts=st.sampled_from(["quarantine", "majority", "keep"]), size=st.integers(1, 5))
def test_the_size_of_shards_decides_nothing(decided, rows, conflicts, size):
    one, other = (decided(*rows, conflicts=conflicts, shard_rows=n) for n in (1000, size))
    for name in ("reasons", "splits", "clusters"):
        assert getattr(one, name) == getattr(other, name)
    assert np.array_equal(one.fates.other, other.fates.other)


@slow
@given(rows=TEXTS, generator=st.randoms(use_true_random=False))
def test_clusters_conflicts_and_splits_do_not_depend_on_order(decided, rows, generator):
    order = generator.sample(range(len(rows)), len(rows))
    one, other = decided(*rows), decided(*[rows[place] for place in order])
    for name in ("clusters", "splits"):
        assert [getattr(one, name)[place] for place in order] == getattr(other, name)
    torn = [reason == "conflicting_labels" for reason in one.reasons]
    assert [torn[place] for place in order] == [reason == "conflicting_labels" for reason in other.reasons]


@slow
@given(old=TEXTS, new=TEXTS)
def test_appended_rows_move_no_old_row(decided, old, new):
    before = decided(*old, conflicts="keep")
    known = pl.DataFrame(
        {
            "salt": ["s"] * len(before.decided.keys),
            "key": before.decided.keys,
            "split": [SPLITS[split] for split in before.decided.splits],
            "content": before.decided.content,
        },
        schema=ledger.SCHEMA,
    )
    after = decided(*old, *new, conflicts="keep", entries=known)
    assert after.splits[: len(old)] == before.splits
    assert [place for place in after.kept if place < len(old)] == before.kept
