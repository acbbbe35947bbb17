"""Rows for masked language modelling: other tokens hidden each time, and always the same for one place.

Devlin et al. (2019), section 3.1: 15 % of the tokens are to be told; of these 80 % are masked, 10 % are
replaced by a random token and 10 % stay. They are drawn anew every epoch (Liu et al., 2019, section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.model.batches import Places, Ragged, Rows

SHARE, MASKED, REPLACED = 0.15, 0.8, 0.1


@dataclass(frozen=True, eq=False)
class Masked:
    """Like `rows`, but place p stands for row p % len(rows) under the drawing p // len(rows).

    mask: id of the masking token. words: how many token ids there are. special: ids that are never hidden.
    """

    rows: Rows
    mask: int
    words: int
    special: Sequence[int]
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        return self.rows.lengths

    @property
    def first(self) -> bool:
        """Never is the first token alone read."""
        return False

    @property
    def mean(self) -> bool:
        """Nor the mean of all."""
        return False

    def batch(self, places: Places, device: torch.device) -> dict[str, Tensor]:
        """As `Rows.batch`, with tokens hidden."""
        hidden = Ragged.of([self._hidden(place) for place in places])
        whole = range(len(places))
        given = self.rows.batch([place % len(self) for place in places], device)
        return given | {"input_ids": hidden.padded(whole, pad=self.rows.pad)[0].to(device)}

    def size(self, places: Places) -> tuple[int, int]:
        """As `Rows.size`."""
        return self.rows.size([place % len(self) for place in places])

    def targets(self, places: Places) -> Tensor:
        """The tokens that are to be told, row by row: (read,) int64."""
        told = [self.rows.input_ids[place % len(self)][self._told(place)] for place in places]
        return torch.from_numpy(np.concatenate(told).astype(np.int64))

    def positions(self, places: Places) -> list[NDArray[np.int64]]:
        """Those where a token is to be told, of each row."""
        return [self._told(place) for place in places]

    def longest_first(self, size: int) -> list[list[int]]:
        return self.rows.longest_first(size)

    def _chance(self, place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, place])

    def _told(self, place: int) -> NDArray[np.int64]:
        """At least one of each row that has a token besides special ones."""
        return self._drawn(self._chance(place), place)

    def _drawn(self, chance: np.random.Generator, place: int) -> NDArray[np.int64]:
        row = self.rows.input_ids[place % len(self)]
        free = np.flatnonzero(~np.isin(row, self.special))
        count = min(len(free), max(1, round(SHARE * len(free))))
        return np.sort(chance.choice(free, count, replace=False)) if count else free

    def _hidden(self, place: int) -> NDArray[np.int64]:
        chance = self._chance(place)
        row = self.rows.input_ids[place % len(self)].astype(np.int64)
        positions = self._drawn(chance, place)
        fate, other = chance.random(len(positions)), chance.integers(0, self.words, len(positions))
        row[positions[fate < MASKED]] = self.mask
        replaced = (fate >= MASKED) & (fate < MASKED + REPLACED)
        row[positions[replaced]] = other[replaced]
        return row
