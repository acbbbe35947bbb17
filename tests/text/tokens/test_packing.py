import sys
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tasks.errors import ParamsError
from tasks.text.tokens import packing

ROWS = some.lists(some.lists(some.integers(0, 2**31 - 1), max_size=40), max_size=12)


@pytest.fixture(scope="module", autouse=True)
def _installed():
    pytest.importorskip("trl")


def pack(rows, strategy, length=8):
    table = pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))})
    return packing.pack(table, strategy=strategy, length=length)


@given(ROWS, some.integers(1, 16))
@settings(max_examples=25)
def test_wrapped_keeps_every_token_in_its_order(rows, length):
    packed = pack(rows, "wrapped", length)["input_ids"].to_pylist()
    assert [token for row in packed for token in row] == [token for row in rows for token in row]
    assert all(len(row) == length for row in packed[:-1])


@given(ROWS, some.integers(1, 16))
@settings(max_examples=25)
def test_bfd_split_keeps_every_token_and_says_where_texts_begin(rows, length):
    packed = pack(rows, "bfd_split", length).to_pylist()
    parts = []
    for row in packed:
        assert len(row["input_ids"]) == sum(row["seq_lengths"]) <= length
        ends = [sum(row["seq_lengths"][:n]) for n in range(len(row["seq_lengths"]) + 1)]
        parts += [tuple(row["input_ids"][a:b]) for a, b in pairwise(ends)]
    cut = [tuple(row[n : n + length]) for row in rows for n in range(0, len(row), length)]
    assert sorted(parts) == sorted(cut)


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
def test_a_slice_of_a_table_packs_as_its_own_rows(strategy):
    rows = [[n] * (n % 11) for n in range(40)]
    table = pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}).slice(13, 20)
    found = packing.pack(table, strategy=strategy, length=8)
    assert found.equals(pack(rows[13:33], strategy))
    assert found.schema == packing.schema(strategy)


def test_other_kinds_are_not_packed():
    with pytest.raises(ParamsError, match="wrapped is for rows of kind text; these are of kind label"):
        packing.check("wrapped", "label")
    packing.check("none", "label")


def test_without_trl_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ParamsError, match=r"pip install 'regraft\[packing\]'"):
        packing.check("bfd_split", "text")
