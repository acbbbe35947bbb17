"""The figures of preparation are there, and what they are made from is what it says."""

import json

import polars as pl
import pytest

from benchmarks import brute_force, corpus, duplicates, preparation, record, splitting

KEYS = {
    "recall",
    "precision",
    "speedup_vs_datasketch",
    "speedup_vs_datasketch_tutorial",
    "leaked_test_rows",
    "moved_rows",
    "gone_rows",
    "gone_rows_sklearn",
    "rows_per_second",
    "peak_rss_mb",
}


@pytest.mark.e2e
def test_a_quick_run_writes_every_figure(tmp_path, capsys):
    preparation.main(["--quick", "--into", str(tmp_path)])
    assert (tmp_path / "preparation.json").read_bytes() == (tmp_path / "preparation-quick.json").read_bytes()
    found = json.loads((tmp_path / "preparation.json").read_text(encoding="utf-8"))
    assert set(found["figures"]) >= KEYS
    assert found["figures"]["precision"] == 1.0
    assert found["figures"]["recall"] >= 0.99
    assert found["figures"]["leaked_test_rows"] == found["figures"]["moved_rows"] == 0
    assert found["figures"]["leaked_test_rows_sklearn"] > 0
    assert found["quick"] is True
    assert found["versions"]["datasketch"] == "2.0.0"
    assert "speedup_vs_datasketch_tutorial" in capsys.readouterr().out


def test_a_row_that_left_is_gone_and_one_in_another_split_has_moved():
    texts = [corpus.Text(text, "a") for text in ("a b c", "a b c", "d e f", "g h i", "j k l")]
    before = {0: "test", 1: "test", 2: "train", 3: "validation"}
    after = {0: "test", 1: "train", 2: "train", 4: "test"}
    assert splitting._outcome(texts, before, after) == splitting.Outcome(leaked=1, moved=1, gone=1, tested=2)


@pytest.mark.parametrize(
    ("there", "quick", "written"),
    [
        (None, False, ["preparation.json"]),
        (None, True, ["preparation-quick.json", "preparation.json"]),
        ({"quick": True}, True, ["preparation-quick.json", "preparation.json"]),
        ({"quick": True}, False, ["preparation.json"]),
        ({"quick": False}, True, ["preparation-quick.json"]),
        ({"quick": False}, False, ["preparation.json"]),
    ],
)
def test_a_quick_run_does_not_overwrite_a_full_one(tmp_path, there, quick, written):
    if there:
        (tmp_path / "preparation.json").write_text(json.dumps(there), encoding="utf-8")
    assert [path.name for path in record.targets(tmp_path, "preparation", quick=quick)] == written


def test_the_corpus_is_the_same_every_time_and_has_its_copies():
    one, again = corpus.real(400), corpus.real(400)
    assert one == again
    assert len({text.label for text in one}) == 3
    keys = duplicates.signatures.keys(pl.Series([text.text for text in one])).to_list()
    left, _ = brute_force.pairs(brute_force.shingle_matrix(keys, 3), 0.5)
    assert len(left) >= 400 * corpus.COPIES / 2


def test_more_than_the_packages_hold_is_refused():
    with pytest.raises(ValueError, match="need 85000 originals; there are"):
        corpus.real(100_000)


@pytest.mark.parametrize(
    ("one", "other", "similar"),
    [
        ("a b c d", "a b c d", True),
        ("a b c d e f", "a b c d e x", False),
        ("a b", "a b", True),
        ("a", "b", False),
    ],
)
def test_brute_force_knows_what_is_similar(one, other, similar):
    left, right = brute_force.pairs(brute_force.shingle_matrix([one, other], 3), 0.8)
    assert list(zip(left, right, strict=True)) == ([(0, 1)] if similar else [])


def test_brute_force_takes_a_pair_exactly_at_the_threshold():
    one, other = "a b c d e f g h i j k", "a b c d e f g h i j"  # 9 and 8 runs, 8 of them shared
    matrix = brute_force.shingle_matrix([one, other], 3)
    assert [len(brute_force.pairs(matrix, limit)[0]) for limit in (8 / 9, 0.9)] == [1, 0]


@pytest.mark.parametrize(
    "contestant", [duplicates.ours, duplicates.datasketch, duplicates.datasketch_on_our_shingles]
)
def test_every_contestant_finds_planted_copies_and_nothing_else(contestant):
    texts = pl.Series([text.text for text in corpus.real(1000)])
    judged = duplicates._judged(contestant(texts), duplicates._truth(texts))
    assert judged["precision"] == 1.0
    assert judged["recall"] > 0.9


def test_a_fresh_process_gets_its_own_number_of_threads():
    assert record.alone(pl.thread_pool_size, threads=1) == 1
