from hypothesis import given
from hypothesis import strategies as st

from tasks.training.order import epoch_order

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
