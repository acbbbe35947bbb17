"""Mean, spread and range of a tensor's values, read piece by piece, so that its size costs no memory."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import CheckpointError
from tasks.weights import values
from tasks.weights.formats import TensorEntry
from tasks.weights.formats.entries import BITS, FLOATING

ITEMS = 2**18  # that are read at once
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Measures:
    """Mean, deviation and range of the finite values, None where there are none."""

    size: int = 0
    finite: int = 0
    zeros: int = 0
    mean: float | None = None
    squares: float = 0.0  # sum of squared distances from the mean
    minimum: float | None = None
    maximum: float | None = None

    @property
    def not_finite(self) -> int:
        return self.size - self.finite

    @property
    def deviation(self) -> float | None:
        """Of the values themselves, not of a sample: numpy's `std`."""
        return math.sqrt(self.squares / self.finite) if self.finite else None


def measure(pieces: Iterable[Numbers]) -> Measures:
    """What all `pieces` come to, whatever their sizes."""
    total = Measures()
    for piece in pieces:
        total = joined(total, _of(piece))
    return total


def joined(one: Measures, other: Measures) -> Measures:
    """Both together. Method: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm, 1979."""
    finite = one.finite + other.finite
    mean, squares = one.mean if one.mean is not None else other.mean, one.squares + other.squares
    if one.mean is not None and other.mean is not None:
        distance, share = other.mean - one.mean, other.finite / finite
        mean = one.mean + distance * share
        squares += distance * distance * one.finite * share
    lowest = [value for value in (one.minimum, other.minimum) if value is not None]
    highest = [value for value in (one.maximum, other.maximum) if value is not None]
    return Measures(
        one.size + other.size, finite, one.zeros + other.zeros, mean, squares,
        min(lowest, default=None), max(highest, default=None),
    )  # fmt: skip


def _of(piece: Numbers) -> Measures:
    finite = piece[np.isfinite(piece)]
    if not finite.size:
        return Measures(piece.size)
    with np.errstate(over="ignore"):  # of values near the largest float64; the deviation is infinite then
        mean = float(finite.mean())
        squares = float(np.square(finite - mean).sum())
    zeros = piece.size - int(np.count_nonzero(piece))
    return Measures(
        piece.size, finite.size, zeros, mean, squares, float(finite.min()), float(finite.max())
    )  # fmt: skip


def pieces(entry: TensorEntry) -> Iterator[Numbers]:
    """Its values from first to last, (up to ITEMS,) at a time; of complex ones the absolute values.

    Raises CheckpointError where the file became shorter since it was opened.
    """
    if entry.decoded:
        whole = entry.decoded().reshape(-1)
        for start in range(0, entry.size, ITEMS):
            yield numbers(whole[start : start + ITEMS], entry.dtype)
        return
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        for start in range(0, entry.size, ITEMS):
            wanted = min(ITEMS, entry.size - start)
            raw = np.fromfile(stream, values.raw_type(entry.dtype), wanted)
            if raw.size < wanted:
                raise CheckpointError(
                    f"{entry.file} became shorter while {entry.name} was read: fetch it again"
                )
            yield numbers(raw, entry.dtype)


def numbers(raw: NDArray[Any], dtype: str) -> Numbers:
    """The values of raw items of any `dtype` as float64."""
    if dtype.startswith("F8"):
        return np.take(_eight_bits(dtype), raw)
    if dtype in FLOATING:
        found = values.numbers(raw, dtype)
    elif dtype == "C64":
        found = np.abs(raw.view("<c8"))
    else:
        found = raw.view(f"<i{BITS[dtype] // 8}") if dtype.startswith("I") else raw
    return found.astype(np.float64)


def _eight_bits(dtype: str) -> Numbers:
    """The 256 values (256,) of an eight-bit float. Formats: OCP 8-bit Floating Point, OCP Microscaling."""
    codes = np.arange(256)
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (codes.astype("<u2") << 8).view("<f2").astype(np.float64)
    if dtype == "F8_E8M0":
        return np.where(codes == 255, np.nan, 2.0 ** (codes - 127))
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    return np.where(codes & 127 == 127, np.nan, np.where(codes < 128, size, -size))
