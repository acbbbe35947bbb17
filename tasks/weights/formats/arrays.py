"""Raw items of a tensor whose bytes are not stored as they are needed, for the readers' `decoded`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

RAW: Mapping[int, str] = {8: "<u1", 16: "<u2", 32: "<u4", 64: "<u8"}


def read_raw(path: Path, start: int, stop: int, dtype: str) -> "NDArray[Any]":
    """`path[start:stop]` as a row of unsigned integers as wide as an item of `dtype`.

    Raises CheckpointError where the file became shorter since it was opened.
    """
    import numpy as np

    width = BITS[dtype] // 8
    raw: NDArray[Any] = np.fromfile(path, RAW[width * 8], (stop - start) // width, offset=start)
    if raw.nbytes < stop - start:
        raise CheckpointError(f"{path} became shorter while it was read: fetch it again")
    return raw


def permuted(
    path: Path, start: int, stop: int, *, dtype: str, shape: tuple[int, ...], order: Sequence[int]
) -> "NDArray[Any]":
    """Raw items in `shape`, C-contiguous, of bytes whose axes lie in `order`, the slowest first."""
    stored = read_raw(path, start, stop, dtype).reshape([shape[axis] for axis in order])
    back = sorted(range(len(order)), key=order.__getitem__)
    return stored.transpose(back).copy(order="C")
