"""Rows of a table that learn while all others stay as they are, as those of new tokens do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.errors import TrainingError


@dataclass(frozen=True)
class NewRows:
    """`ids` (rows,) int64 of `table` (all rows, width), which the model knows as `name`."""

    name: str
    table: nn.Parameter
    ids: Tensor

    @property
    def size(self) -> int:
        return self.ids.numel() * self.table.shape[1]


@contextmanager
def only(rows: NewRows | None) -> Iterator[None]:
    """Meanwhile no other row of the table gets a gradient. The table must require one.

    Adam leaves a row without gradient and decay as it is, to the bit: its step is 0 / (0 + epsilon).
    """
    if rows is None:
        yield
        return
    handle = rows.table.register_hook(lambda gradient: _kept(gradient, rows.ids))
    try:
        yield
    finally:
        handle.remove()


def forget_others(rows: NewRows | None, optimizer: torch.optim.Optimizer) -> None:
    """What the optimizer remembers of the table's other rows, from a phase in which all learned, would go on
    moving them."""
    if rows is None:
        return
    for kept in optimizer.state.get(rows.table, {}).values():
        if isinstance(kept, Tensor) and kept.shape == rows.table.shape:
            kept.copy_(_kept(kept, rows.ids))


def refuse_cached(rows: NewRows | None, phase: str) -> None:
    """To be asked after a step. Raises TrainingError where what was computed did not depend on the table:
    then it was computed once, before the rows changed."""
    if rows is not None and rows.table.grad is None:
        raise TrainingError(
            f"phase {phase}: no gradient reaches the new rows of {rows.name}: features that were computed "
            "once cannot serve while they learn"
        )


def _kept(gradient: Tensor, ids: Tensor) -> Tensor:
    result = torch.zeros_like(gradient)
    result[ids] = gradient[ids]
    return result
