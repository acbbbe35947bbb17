"""Ragged rows of token ids as padded tensors, with as little padding as the order allows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Rows:
    """Ragged token ids and, for pairs, which text each token belongs to; `pad` stands behind a row's end."""

    input_ids: Tokens
    token_types: Tokens | None
    pad: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.input_ids]

    def batch(self, places: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """What a transformers model takes: input_ids, attention_mask and, for pairs, token_type_ids; each
        (batch, longest) int64 on `device`."""
        ids, mask = pad_rows([self.input_ids[place] for place in places], pad=self.pad)
        given = {"input_ids": ids, "attention_mask": mask}
        if self.token_types is not None:
            given["token_type_ids"], _ = pad_rows([self.token_types[place] for place in places], pad=0)
        return {name: value.to(device) for name, value in given.items()}

    def longest_first(self, size: int) -> list[list[int]]:
        """Places in batches of `size`: padding is least, and memory trouble shows at once."""
        order = sorted(range(len(self)), key=lambda place: (-len(self.input_ids[place]), place))
        return [order[start : start + size] for start in range(0, len(order), size)]


def pad_rows(rows: Tokens, *, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (batch, longest) int64."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        mask[place, : len(row)] = 1
    return ids, mask


def sorted_batches(
    columns: Mapping[str, Tokens], *, batch_size: int, pad: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """For prediction: longest rows first.

    columns: input_ids and, for pairs, token_type_ids, ragged.
    Yields places of rows, and what a transformers model takes of them, each (batch, tokens).
    """
    rows = Rows(columns["input_ids"], columns.get("token_type_ids"), pad)
    for places in rows.longest_first(batch_size):
        yield places, rows.batch(places, torch.device("cpu"))
