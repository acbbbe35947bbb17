"""Ragged rows of token ids as padded tensors, with as little padding as the order allows."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = Sequence[Sequence[int]]
Places = Sequence[int]  # of rows in their table
CACHED = 4096  # tokens of a batch on a CPU: of 16,384, the states between two layers are read from memory


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths, one behind the other: row r is `values[offsets[r] : offsets[r + 1]]`."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[Any]) -> "Ragged":
        held = [np.asarray(row, dtype=np.int64) for row in rows]
        values = np.concatenate(held) if held else np.zeros(0, dtype=np.int64)
        return cls(values, _offsets([len(row) for row in held]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> NDArray[Any]:
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def sizes(self, places: Places) -> NDArray[np.int64]:
        """Lengths of these rows alone."""
        at = np.asarray(places, dtype=np.int64)
        found: NDArray[np.int64] = self.offsets[at + 1] - self.offsets[at]
        return found

    def only(self, places: Places) -> "Ragged":
        return Ragged.of([self[int(place)] for place in places])

    def flat(self, places: Places) -> Tensor:
        """The values of these rows, one behind the other, int64."""
        return torch.from_numpy(np.concatenate([self[place] for place in places]).astype(np.int64))

    def padded(self, places: Places, *, pad: int, left: bool = False) -> tuple[Tensor, Tensor]:
        """Values and mask, both (batch, longest) int64; padding stands behind a row, or `left` of it."""
        rows = [self[place] for place in places]
        longest = max(len(row) for row in rows)
        values = np.full((len(rows), longest), pad, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for number, row in enumerate(rows):
            start = longest - len(row) if left else 0
            values[number, start : start + len(row)] = row
            mask[number, start : start + len(row)] = 1
        return torch.from_numpy(values), torch.from_numpy(mask)


@dataclass(frozen=True, eq=False)
class Rows:
    """Ragged token ids and what a model needs besides; `pad` stands behind a row's end.

    token_types: which text of a pair each token belongs to. read: the positions whose last hidden states the
    head reads; None: the first alone, or, where `mean`, the mean of all. decoder_ids: what the decoder of an
    encoder-decoder is given; then `read` counts there.
    """

    input_ids: Ragged
    token_types: Ragged | None
    pad: int
    read: Ragged | None = None
    decoder_ids: Ragged | None = None
    mean: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, those of a decoder included."""
        own = self.input_ids.lengths
        both = own if self.decoder_ids is None else own + self.decoder_ids.lengths
        return list(map(int, both))

    @property
    def counts(self) -> list[int]:
        """States of each row that the head reads."""
        return [1] * len(self) if self.read is None else list(map(int, self.read.lengths))

    def batch(self, places: Places, device: torch.device) -> dict[str, Tensor]:
        """What a transformers model takes: input_ids, attention_mask and, where there are any,
        token_type_ids, decoder_input_ids and decoder_attention_mask; each (batch, longest) int64."""
        ids, mask = self.input_ids.padded(places, pad=self.pad)
        given = {"input_ids": ids, "attention_mask": mask}
        if self.token_types is not None:
            given["token_type_ids"], _ = self.token_types.padded(places, pad=0)
        if self.decoder_ids is not None:
            given["decoder_input_ids"], given["decoder_attention_mask"] = self.decoder_ids.padded(
                places, pad=self.pad
            )
        return {name: value.to(device) for name, value in given.items()}

    def size(self, places: Places) -> tuple[int, int]:
        """Tokens of these rows, and positions that are computed for them at once, padding included."""
        stacks = (self.input_ids, self.decoder_ids)
        sizes = [stack.sizes(places) for stack in stacks if stack is not None]
        return sum(int(one.sum()) for one in sizes), sum(len(one) * int(one.max()) for one in sizes)

    def only(self, places: Places) -> "Rows":
        """These rows alone, in this order."""
        types, read, decoder = (
            None if one is None else one.only(places)
            for one in (self.token_types, self.read, self.decoder_ids)
        )
        return Rows(self.input_ids.only(places), types, self.pad, read, decoder, self.mean)

    @property
    def first(self) -> bool:
        """Whether the head reads the first token alone."""
        return self.read is None and not self.mean

    def positions(self, places: Places) -> list[NDArray[np.int64]]:
        """Those that the head reads, of each row."""
        if self.read is None:
            return [np.zeros(1, dtype=np.int64)] * len(places)
        return [self.read[place] for place in places]

    def longest_first(self, size: int, *, tokens: int | None = None) -> list[list[int]]:
        """Places in batches of `size`, or of fewer, one at least, that have no more than so many tokens:
        padding is least, and memory trouble shows at once."""
        lengths, found, start = self.lengths, list[list[int]](), 0
        order = sorted(range(len(self)), key=lambda place: (-lengths[place], place))
        while start < len(order):
            longest = max(1, lengths[order[start]])
            count = size if tokens is None else max(1, min(size, tokens // longest))
            found.append(order[start : start + count])
            start += count
        return found


def last_tokens(input_ids: Ragged, pad: int) -> Ragged:
    """The position of each row's last token but `pad`, as a decoder's stock classifier reads: where the end
    of a text is what it takes for padding, that is passed over. 0 in a row of nothing else."""
    places = (np.flatnonzero(row != pad) for row in map(input_ids.__getitem__, range(len(input_ids))))
    last = [int(found[-1]) if len(found) else 0 for found in places]
    return Ragged(np.array(last, dtype=np.int64), np.arange(len(input_ids) + 1, dtype=np.int64))


def sorted_batches(
    columns: Mapping[str, Tokens], *, batch_size: int, pad: int, tokens: int | None = None
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """For prediction: longest rows first.

    columns: input_ids and, for pairs, token_type_ids, ragged. tokens: of a batch, at most; None: any number.
    Yields places of rows, and what a transformers model takes of them, each (batch, tokens).
    """
    types = columns.get("token_type_ids")
    rows = Rows(Ragged.of(columns["input_ids"]), None if types is None else Ragged.of(types), pad)
    for places in rows.longest_first(batch_size, tokens=tokens):
        yield places, rows.batch(places, torch.device("cpu"))


def suited(model: Any, size: int) -> Callable[[Mapping[str, Tokens]], Iterator[Any]]:
    """`sorted_batches` of `size` rows, of fewer long ones on a CPU, whose caches should hold their states."""
    tokens = CACHED if model.device.type == "cpu" else None
    return partial(sorted_batches, batch_size=size, pad=model.config.pad_token_id or 0, tokens=tokens)


def picked(states: Tensor, positions: Sequence[NDArray[np.int64]]) -> Tensor:
    """Those of padded `states` (batch, tokens, width) at each row's positions, row by row: (read, width)."""
    numbers = np.repeat(np.arange(len(positions)), [len(row) for row in positions])
    found: Tensor = states[torch.from_numpy(numbers), torch.from_numpy(np.concatenate(positions))]
    return found


def picked_flat(states: Tensor, firsts: Tensor, positions: Sequence[NDArray[np.int64]]) -> Tensor:
    """As `picked`, of `states` (tokens, width) that lie end to end, row r from `firsts[r]` on."""
    begins = torch.repeat_interleave(firsts, torch.tensor([len(row) for row in positions]))
    return states.index_select(0, begins + torch.from_numpy(np.concatenate(positions)))


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
