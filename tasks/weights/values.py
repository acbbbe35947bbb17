"""Raw items and the numbers that they stand for; bfloat16 has no type of its own in numpy."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.weights.formats.arrays import RAW
from tasks.weights.formats.entries import BITS

EXPONENT: Mapping[str, int] = {  # all ones: infinite or not a number
    "BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80_0000, "F64": 0x7FF0_0000_0000_0000,
}  # fmt: skip


def stream(seed: int, name: str) -> np.random.Generator:
    """Random numbers of a tensor's own, whatever else is drawn: numpy's PCG64, keyed by seed and name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, key])


def raw_type(dtype: str) -> str:
    """numpy's unsigned integers that hold one item of `dtype`."""
    return RAW[BITS[dtype]]


def numbers(raw: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The values of raw items of a floating `dtype`, exactly: float32, float64 of F64."""
    if dtype == "BF16":  # the upper half of a float32
        return (raw.astype("<u4") << 16).view("<f4")
    return np.ascontiguousarray(raw).view(f"<f{BITS[dtype] // 8}").astype("<f8" if dtype == "F64" else "<f4")


def items(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as raw items of `dtype`, rounded to the nearest, to even between two."""
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4")
        upper: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        return np.where(np.isnan(values), np.uint16(0x7FC0), upper)  # rounding would carry over its bits
    width = BITS[dtype] // 8
    with np.errstate(over="ignore"):  # what overflows is infinite then, and is looked for
        return values.astype(f"<f{width}").view(f"<u{width}")


def not_finite(raw: NDArray[Any], dtype: str) -> int:
    """How many of the raw items are infinite or not a number; none of a `dtype` without such values."""
    if dtype not in EXPONENT:
        return 0
    exponent = raw.dtype.type(EXPONENT[dtype])
    return int(np.count_nonzero((raw & exponent) == exponent))
