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


def test_the_types_of_pairs_are_padded_like_their_tokens():
    columns = {"input_ids": [[7, 8], [7, 8, 9]], "token_type_ids": [[0, 1], [0, 1, 1]]}
    [(places, given)] = batches.sorted_batches(columns, batch_size=2, pad=5)
    assert (places, given["token_type_ids"].tolist()) == ([1, 0], [[0, 1, 1], [0, 1, 0]])
    assert given["input_ids"].tolist() == [[7, 8, 9], [7, 8, 5]]
