from hypothesis import given
from hypothesis import strategies as st

from tasks.training.order import epoch_order, parts

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 5))
def test_every_row_is_seen_once_an_epoch(lengths, batch_size, seed):
    batches = epoch_order(lengths, batch_size=batch_size, seed=(seed,))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_the_order_is_a_function_of_the_seed():
    lengths = list(range(1, 200))
    assert epoch_order(lengths, batch_size=8, seed=(1, 2)) == epoch_order(lengths, batch_size=8, seed=(1, 2))
    assert epoch_order(lengths, batch_size=8, seed=(1, 2)) != epoch_order(lengths, batch_size=8, seed=(1, 3))


def test_neighbours_in_a_batch_are_of_like_length():
    lengths = [(7 * place) % 101 for place in range(800)]
    batches = epoch_order(lengths, batch_size=16, seed=(0,))
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)


def test_a_budget_of_tokens_is_kept_with_its_padding_and_every_row_appears_once():
    lengths = [(7 * n) % 23 + 1 for n in range(300)]
    batches = epoch_order(lengths, batch_size=8, seed=(1,), batch_tokens=64)
    assert sorted(row for batch in batches for row in batch) == list(range(300))
    assert all(max(lengths[row] for row in batch) * len(batch) <= 64 for batch in batches)
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    assert sum(lengths) / padded > 0.9
    assert len({len(batch) for batch in batches}) > 3


def test_a_row_longer_than_the_budget_stands_alone():
    batches = epoch_order([3, 100, 3], batch_size=8, seed=(1,), batch_tokens=10)
    assert sorted(map(sorted, batches)) == [[0, 2], [1]]


def test_parts_are_nearly_equal_and_lose_no_row():
    assert parts(list(range(7)), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert parts([4], 8) == [[4]]
