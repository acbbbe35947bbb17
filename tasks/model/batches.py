"""Ragged rows of token ids as padded tensors, with as little padding as the order allows."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int]], *, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (batch, longest) int64."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        mask[place, : len(row)] = 1
    return ids, mask


def sorted_batches(
    input_ids: Sequence[Sequence[int]], *, batch_size: int, pad: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For prediction: longest rows first, so that padding is least and memory trouble shows at once.

    Yields (places of the rows in `input_ids`, ids (batch, tokens), mask (batch, tokens)).
    """
    order = sorted(range(len(input_ids)), key=lambda place: (-len(input_ids[place]), place))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        ids, mask = pad_rows([input_ids[place] for place in places], pad=pad)
        yield places, ids, mask
