"""What is hidden from a masked language model: drawn anew for each place, the same for one place."""

import numpy as np
import pytest
import torch

from tasks.model.batches import Ragged, Rows, picked
from tasks.model.masked import Masked

SPECIAL = (0, 2, 3, 4)
LENGTHS = (3, 40, 9, 26)
ROWS = Rows(Ragged.of([[2, *range(10, 8 + length), 3] for length in LENGTHS]), None, 0)
CPU = torch.device("cpu")


def _masked(rows=ROWS, seed=1):
    return Masked(rows, 4, 61, SPECIAL, seed)


def test_one_place_is_always_hidden_alike_in_any_company():
    one, other = _masked(), _masked()
    alone = one.batch([5], CPU)["input_ids"]
    beside = other.batch([3, 5, 2], CPU)["input_ids"]
    assert torch.equal(beside[1, : alone.shape[1]], alone[0])
    assert torch.equal(one.targets([5]), other.targets([3, 5])[len(other.targets([3])) :])


def test_every_drawing_and_every_seed_hides_something_else():
    drawn = {tuple(_masked().batch([1 + 4 * n], CPU)["input_ids"][0].tolist()) for n in range(20)}
    assert len(drawn) == 20
    assert not torch.equal(
        _masked(seed=2).batch([1], CPU)["input_ids"], _masked().batch([1], CPU)["input_ids"]
    )


def test_what_is_to_be_told_is_what_stood_there():
    masked = _masked()
    places = [1, 2, 3, 9]
    told = masked.targets(places)
    whole = ROWS.batch([place % 4 for place in places], CPU)["input_ids"]
    assert torch.equal(picked(whole[:, :, None], masked.positions(places))[:, 0], told)
    given = masked.batch(places, CPU)
    changed = given["input_ids"] != whole
    assert (changed & (whole == 0)).sum() == 0
    assert changed.sum() <= len(told)


def test_shares_are_those_of_the_paper():
    rows = Rows(Ragged.of([[2, *([30] * 1000), 3]]), None, 0)
    masked = _masked(rows)
    places = range(50)
    ids = masked.batch(places, CPU)["input_ids"]
    assert len(masked.targets(places)) == 50 * 150
    assert (ids == 4).sum().item() / 7500 == pytest.approx(0.8, abs=0.02)
    random = ((ids != 4) & (ids != 30) & (ids != 2) & (ids != 3)).sum().item()
    assert random / 7500 == pytest.approx(0.1, abs=0.02)


def test_special_tokens_are_never_hidden_and_every_row_tells_something():
    masked = _masked()
    for place in range(400):
        row = ROWS.input_ids[place % 4]
        given = masked.batch([place], CPU)["input_ids"][0].numpy()
        assert np.array_equal(given[np.isin(row, SPECIAL)], row[np.isin(row, SPECIAL)])
        assert len(masked.targets([place])) >= 1
