from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.text import signatures

TEXTS = st.lists(st.text(alphabet="ab é\U0001f600", max_size=12), max_size=8)


def key(text):
    return signatures.keys(pl.Series([text]))[0]


@pytest.mark.parametrize(
    "text",
    [
        "RT @you: Great  news!",
        "rt @a RT @b: great news",
        "great news http://t.co/abc",
        "GREAT #news…",
        "@me great news \ufffd",
        "ｇｒｅａｔ news",
        " great\tnews\n",
    ],
)
def test_what_makes_no_other_text(text):
    assert key(text) == "great news"


@pytest.mark.parametrize(
    ("one", "other"), [("great 😀", "great 😡"), ("a 5", "a 6"), ("@me", "@you"), ("...", "?!")]
)
def test_what_makes_another_text(one, other):
    assert key(one) != key(other)


@given(TEXTS)
def test_a_key_depends_on_its_own_text_alone(texts):
    together = signatures.keys(pl.Series(texts, dtype=pl.String)).to_list()
    assert together == [key(text) for text in texts]


def sets(keys, size=3):
    hashes, offsets = signatures.shingles(pl.Series(keys, dtype=pl.String), size)
    return [hashes[start:stop].tolist() for start, stop in pairwise(offsets)]


def test_shingles_are_runs_of_words_each_once_and_sorted():
    one, other, repeated, short, empty = sets(["a b c d", "b c d", "a a a a a", "a b", ""])
    assert len(one) == 2
    assert set(other) < set(one)
    assert (len(repeated), len(short), len(empty)) == (1, 1, 1)
    assert one == sorted(one)


@given(st.lists(st.text(alphabet="ab ", max_size=12), min_size=1, max_size=8), st.integers(1, 4))
def test_shingles_of_a_key_do_not_depend_on_its_neighbours(keys, size):
    assert sets(keys, size) == [sets([key], size)[0] for key in keys]


def test_hashes_are_the_same_for_ever():
    assert signatures.hashed(pl.Series(["great news"])).tolist() == [1476302257915690694]
    assert sets(["great news"]) == [[2179919150319]]


def test_texts_with_the_same_shingles_have_the_same_bands(tmp_path):
    texts = pl.Series(["one two three four", "five six seven eight", "One, two, three, four!"])
    signed = signatures.sign(texts, tmp_path, shingle=3, rows=8)
    assert signed.bands.shape == (3, 16)
    assert (signed.bands[0] == signed.bands[2]).all()
    assert (signed.bands[0] != signed.bands[1]).any()


def test_parts_are_joined_in_their_order(tmp_path):
    texts = pl.Series([f"text number {n} of many" for n in range(9)])
    whole = signatures.sign(texts, tmp_path / "whole", shingle=2, rows=8)
    parts = [
        signatures.sign(part, tmp_path / name, shingle=2, rows=8)
        for name, part in (("a", texts[:4]), ("b", texts[4:4]), ("c", texts[4:]))
    ]
    joined = signatures.join(parts, tmp_path / "joined")
    for name in ("keys", "counts", "bands", "shingles"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name)), name


@pytest.mark.parametrize(
    ("threshold", "rows"), [(0.95, 8), (0.9, 8), (0.8, 5), (0.7, 4), (0.5, 2), (0.01, 1)]
)
def test_bands_are_as_selective_as_the_threshold_allows(threshold, rows):
    assert signatures.rows_per_band(threshold) == rows


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", [signatures.BANDS, signatures.SHINGLES])
def test_a_full_disk_is_told_as_such(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        signatures.sign(pl.Series([f"text number {n}" for n in range(999)]), tmp_path, shingle=3, rows=6)
