"""Arrays whose items do not lie in the order in which they are read, as those of a transposed matrix do not.

Read row by row, a transposed matrix fetches each line of memory as often as it has items; tile by tile, what
was fetched is still in the processor's cache.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 128  # rows and columns: a tile and its image fit the cache of one core


def pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """All items in order, in C-contiguous pieces; the next one may take the last one's place."""
    if array.ndim != 2 or array.flags.c_contiguous:
        if array.size:
            yield np.ascontiguousarray(array)
        return
    held = np.empty((min(SIZE, len(array)), array.shape[1]), array.dtype)
    for rows in _steps(len(array)):
        band = array[rows]
        for columns in _steps(array.shape[1]):
            held[: len(band), columns] = band[:, columns]
        yield held[: len(band)]


def equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Bit for bit: raw items are integers, so that even what is not a number equals itself."""
    if one.shape != other.shape:
        return False
    if one.ndim != 2 or (one.flags.c_contiguous and other.flags.c_contiguous):
        return bool(np.array_equal(one, other))
    return all(np.array_equal(one[tile], other[tile]) for tile in product(*map(_steps, one.shape)))


def _steps(size: int) -> list[slice]:
    return [slice(start, start + SIZE) for start in range(0, size, SIZE)]
