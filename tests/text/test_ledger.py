import numpy as np
import polars as pl
import pytest

from tasks.errors import ArtifactError
from tasks.text import ledger

KEYS = np.array([7, 5, 9], dtype=np.uint64)


def write(path, keys, splits, salt="s", raw=None):
    keys = np.array(keys, dtype=np.uint64)
    raw = keys if raw is None else np.array(raw, dtype=np.uint64)
    ledger.write(path, ledger.read(path), keys, raw, np.array(splits, dtype=np.int8), keys + 100, salt=salt)
    return ledger.read(path)


def known(entries, keys, salt="s", raw=None):
    keys = np.array(keys, dtype=np.uint64)
    return ledger.known(entries, keys, keys if raw is None else np.array(raw, dtype=np.uint64), salt=salt)


def test_what_is_written_is_known_again_under_its_salt_alone(tmp_path):
    entries = write(tmp_path / "ledger.parquet", KEYS, [0, 2, 1])
    found = known(entries, [9, 8, 5, 7])
    assert found.splits.tolist() == [1, -1, 2, 0]
    assert found.content.tolist() == [109, 0, 105, 107]
    assert known(entries, [9, 8, 5, 7], salt="t").splits.tolist() == [-1] * 4


def test_a_text_is_found_under_its_raw_key_when_cleaning_has_changed(tmp_path):
    entries = write(tmp_path / "ledger.parquet", [7], [2], raw=[70])
    assert known(entries, [8, 8], raw=[70, 71]).splits.tolist() == [2, -1]


def test_a_forgotten_text_leaves_by_its_key_and_by_its_content(tmp_path):
    entries = write(tmp_path / "ledger.parquet", KEYS, [0, 2, 1], raw=[70, 50, 90])
    left = ledger.without(entries, np.array([7], dtype=np.uint64), np.array([105], dtype=np.uint64))
    assert set(left["key"]) == {70, 9, 90}


def test_it_grows_and_forgets_nothing(tmp_path):
    path = tmp_path / "ledger.parquet"
    write(path, KEYS, [0, 2, 1])
    write(path, [1, 5], [0, 2])
    entries = write(path, [7], [2], salt="t")
    assert len(entries) == 5
    assert known(entries, KEYS).splits.tolist() == [0, 2, 1]


def test_texts_without_a_split_are_not_remembered(tmp_path):
    assert len(write(tmp_path / "ledger.parquet", KEYS, [0, -2, -1])) == 1


def test_the_same_entries_are_the_same_bytes_in_any_order(tmp_path):
    write(tmp_path / "one.parquet", KEYS, [0, 2, 1])
    write(tmp_path / "other.parquet", KEYS[::-1], [1, 2, 0])
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "other.parquet").read_bytes()


def test_no_file_is_an_empty_ledger(tmp_path):
    assert known(ledger.read(tmp_path / "none.parquet"), KEYS).splits.tolist() == [-1] * 3


def _nonsense(path):
    path.write_bytes(b"nonsense")


def _other_table(path):
    pl.DataFrame({"a": [1]}).write_parquet(path)


def _other_split(path):
    pl.DataFrame(
        {"salt": ["s"], "key": [1], "split": ["exam"], "content": [1]}, schema=ledger.SCHEMA
    ).write_parquet(path)


@pytest.mark.parametrize("spoil", [_nonsense, _other_table, _other_split])
def test_a_file_that_is_no_ledger_is_refused_with_the_way_back(tmp_path, spoil):
    spoil(tmp_path / "ledger.parquet")
    with pytest.raises(ArtifactError, match="dvc checkout"):
        ledger.read(tmp_path / "ledger.parquet")
