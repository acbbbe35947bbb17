import torch

from tasks.model import batches
from tasks.model.batches import Ragged


def test_padding_is_masked_and_ids_are_kept():
    ids, mask = Ragged.of([[7, 8, 9], [5]]).padded([0, 1], pad=1)
    assert ids.tolist() == [[7, 8, 9], [5, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_sorted_batches_cover_every_row_once_longest_first():
    rows = [[1] * length for length in (3, 9, 1, 9, 4)]
    found = list(batches.sorted_batches({"input_ids": rows}, batch_size=2, pad=0))
    assert [places for places, _ in found] == [[1, 3], [4, 0], [2]]
    assert [tuple(given["input_ids"].shape) for _, given in found] == [(2, 9), (2, 4), (1, 1)]
    assert all(given.keys() == {"input_ids", "attention_mask"} for _, given in found)


def test_a_batch_has_as_many_tokens_as_it_may_and_one_row_at_least():
    rows = {"input_ids": [[1] * length for length in (3, 9, 1, 5, 4, 2)]}
    found = batches.sorted_batches(rows, batch_size=3, pad=0, tokens=8)
    assert [places for places, _ in found] == [[1], [3], [4, 0], [5, 2]]


def test_on_a_cpu_long_rows_come_fewer_at_a_time(tiny_bert):
    rows = {"input_ids": [[1] * 128] * 64}
    found = [len(places) for places, _ in batches.suited(tiny_bert(), 64)(rows)]
    assert found == [32, 32]
    assert [len(places) for places, _ in batches.suited(tiny_bert().to("meta"), 64)(rows)] == [64]


def test_the_types_of_pairs_are_padded_like_their_tokens():
    columns = {"input_ids": [[7, 8], [7, 8, 9]], "token_type_ids": [[0, 1], [0, 1, 1]]}
    [(places, given)] = batches.sorted_batches(columns, batch_size=2, pad=5)
    assert (places, given["token_type_ids"].tolist()) == ([1, 0], [[0, 1, 1], [0, 1, 0]])
    assert given["input_ids"].tolist() == [[7, 8, 9], [7, 8, 5]]


def test_what_is_computed_counts_the_padding_of_these_rows_alone():
    rows = batches.Rows(Ragged.of([[1] * 3, [1] * 9, [1]]), None, 0)
    assert rows.size([0, 2]) == (4, 6)
    assert rows.size([1]) == (9, 9)
    decoder = batches.Rows(rows.input_ids, None, 0, decoder_ids=Ragged.of([[1], [1, 2], [1]]))
    assert decoder.size([0, 1]) == (12 + 3, 18 + 4)


def test_some_rows_alone_are_these_rows():
    rows = batches.Rows(
        Ragged.of([[1, 2], [3], [4, 5, 6]]), None, 0, read=Ragged.of([[0], [0], [1, 2]]),
        decoder_ids=Ragged.of([[7], [8], [9]]),
    )  # fmt: skip
    some = rows.only([2, 0])
    assert len(some) == 2
    for ours, theirs in ((some.input_ids, rows.input_ids), (some.read, rows.read)):
        assert [row.tolist() for row in (ours[0], ours[1])] == [theirs[2].tolist(), theirs[0].tolist()]
    assert (some.decoder_ids[0].tolist(), some.token_types) == ([9], None)
