"""Flax's .msgpack: maps in maps whose leaves are arrays, each with shape, dtype and its bytes in a row.

Read here, by offsets: msgpack's own library would have every byte in memory before it tells a name. Format:
`flax/serialization.py` of github.com/google/flax; https://github.com/msgpack/msgpack/blob/master/spec.md
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tasks.errors import CheckpointError
from tasks.weights.formats.arrays import read_raw
from tasks.weights.formats.entries import BITS, Checkpoint, TensorEntry, name_fault, refuse, shape_fault

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIX = ".msgpack"
DEEPEST = 32  # maps in maps
MOST_VALUES = 1_000_000
HEADS: Mapping[
    str, tuple[range, Mapping[int, str]]
] = {  # short form, then where the length or number follows
    "map": (range(0x80, 0x90), {0xDE: "H", 0xDF: "I"}),
    "list": (range(0x90, 0xA0), {0xDC: "H", 0xDD: "I"}),
    "text": (range(0xA0, 0xC0), {0xD9: "B", 0xDA: "H", 0xDB: "I"}),
    "number": (range(0x80), {0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q"}),
    "bytes": (range(0), {0xC4: "B", 0xC5: "H", 0xC6: "I"}),
    "array": (range(0), {0xC7: "B", 0xC8: "H", 0xC9: "I"}),
}
FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}  # bytes of an extension that tells no length
ARRAY, SCALAR = 1, 3  # Flax's types of extension
TRUE = 0xC3
IN_PARTS = "__msgpack_chunked_array__"  # of an array of more than 2**30 bytes
DTYPES: Mapping[str, str] = {  # numpy's name
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32",
    "int32": "I32", "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32",
    "float64": "F64",
}  # fmt: skip
REMEDY = "save the params alone with flax.serialization.to_bytes, as transformers' FlaxPreTrainedModel does"


@dataclass(frozen=True)
class _Array:
    """What an array tells of itself; runs: (start, stop) of its bytes, more than one where it is in parts."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]


def read(path: Path) -> Checkpoint:
    """The arrays of a file that Flax wrote, names joined by dots: `encoder.layer.0.output.dense.kernel`.

    Arrays that Flax cut into parts are `decoded`. Raises CheckpointError where the file is torn, or holds
    anything but arrays.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        try:
            found = list(_Reader(stream, size).arrays())
        except (ValueError, struct.error) as error:
            raise CheckpointError(f"{path} is no file of Flax's params: {error}; {REMEDY}") from None
    faults, entries = [], {}
    for array in found:
        fault = _fault(array) or ("it stands twice" if array.name in entries else None)
        if fault:
            faults.append(f"tensor {array.name[:80]!r}: {fault}")
        else:
            entries[array.name] = _entry(path, array)
    refuse(path, faults)
    return Checkpoint(path.parent, entries, {}, "flax")


def _fault(array: _Array) -> str | None:
    if fault := name_fault(array.name) or shape_fault(array.shape):
        return fault
    if array.dtype not in DTYPES:
        return f"unknown dtype {array.dtype[:80]!r}"
    needed = math.prod(array.shape) * BITS[DTYPES[array.dtype]] // 8
    if (held := sum(stop - start for start, stop in array.runs)) != needed:
        return f"{array.dtype} {array.shape} takes {needed:,} bytes, it holds {held:,}"
    if any((stop - start) % (BITS[DTYPES[array.dtype]] // 8) for start, stop in array.runs):
        return "a part ends inside an item"
    return None


def _entry(path: Path, array: _Array) -> TensorEntry:
    dtype, alone = DTYPES[array.dtype], len(array.runs) == 1
    start, stop = (array.runs[0][0], array.runs[-1][1]) if array.runs else (0, 0)
    decoded = None if alone else partial(_joined, path, array.runs, dtype, array.shape)
    return TensorEntry(array.name, dtype, array.shape, path, start, stop, decoded)


def _joined(
    path: Path, runs: tuple[tuple[int, int], ...], dtype: str, shape: tuple[int, ...]
) -> "NDArray[Any]":
    import numpy as np

    parts = [read_raw(path, start, stop, dtype) for start, stop in (*runs, (0, 0))]  # one at least
    return np.concatenate(parts).reshape(shape)


class _Reader:
    """Reads one value after another; none may reach beyond the end. Raises ValueError naming what does."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size, self.left = stream, size, MOST_VALUES

    def arrays(self) -> Iterator[_Array]:
        yield from self.members("", DEEPEST)
        if rest := self.size - self.stream.tell():
            raise ValueError(f"{rest:,} bytes follow behind its end")

    def members(self, prefix: str, depth: int) -> Iterator[_Array]:
        """What a map holds, in maps of its own or not."""
        if not depth:
            raise ValueError(f"more than {DEEPEST} maps stand in one another")
        for place in range(self.counted("map", prefix)):
            name = self.text()
            if name == IN_PARTS and not place:
                yield self.parts(prefix)
                return
            full = f"{prefix}.{name}" if prefix else name
            if fault := name_fault(full):
                raise ValueError(f"tensor {full[:80]!r}: {fault}")
            yield from self.member(full, depth)

    def member(self, name: str, depth: int) -> Iterator[_Array]:
        (kind,) = self.take(1)
        self.stream.seek(-1, 1)
        if kind in HEADS["map"][0] or kind in HEADS["map"][1]:
            yield from self.members(name, depth - 1)
        else:
            yield self.array(name)

    def array(self, name: str) -> _Array:
        stop = self.extension(name)
        if self.head("list", name) != 3:
            raise ValueError(f"{name} does not tell of shape, dtype and bytes alone")
        shape = tuple(self.head("number", name) for _ in range(self.counted("list", name)))
        dtype, length = self.text(), self.head("bytes", name)
        start = self.stream.tell()
        if start + length != stop:
            raise ValueError(f"{name} holds {length:,} bytes where there is room for {stop - start:,}")
        self.stream.seek(stop)
        return _Array(name, dtype, shape, ((start, stop),))

    def extension(self, name: str) -> int:
        """Where the array that begins here ends."""
        (kind,) = self.take(1)
        if kind not in FIXED and kind not in HEADS["array"][1]:
            raise ValueError(f"{name} is no array")
        length = FIXED[kind] if kind in FIXED else self.number(HEADS["array"][1][kind])
        if self.number("b") not in (ARRAY, SCALAR):
            raise ValueError(f"{name} is no array")
        if length > self.room():
            raise ValueError(f"it is torn: {name} takes {length:,} bytes, {self.room():,} are left")
        return self.stream.tell() + length

    def parts(self, name: str) -> _Array:
        """An array in parts: true, its shape, and the parts, numbered."""
        if self.take(1)[0] != TRUE or self.text() != "shape":
            raise ValueError(f"{name} is in parts and does not tell of its shape first")
        shape = tuple(self.head("number", name) for _ in self.numbered(name))
        if self.text() != "chunks":
            raise ValueError(f"{name} is in parts and lacks them")
        found = [self.array(name) for _ in self.numbered(name)]
        if len({part.dtype for part in found}) != 1:
            raise ValueError(f"{name} is in parts that are not of one dtype")
        return _Array(name, found[0].dtype, shape, tuple(run for part in found for run in part.runs))

    def numbered(self, name: str) -> Iterator[int]:
        for place in range(self.counted("map", name)):
            if self.text() != str(place):
                raise ValueError(f"{name} is in parts that are not numbered from 0 on")
            yield place

    def counted(self, kind: str, name: str) -> int:
        """The items of a map or list, of which each takes a byte at least."""
        count = self.head(kind, name or "it")
        self.left -= count
        if count > self.room() or self.left < 0:
            raise ValueError(f"{name or 'it'} claims {count:,} values, more than there can be")
        return count

    def head(self, kind: str, name: str) -> int:
        """The number, or the length of what follows."""
        short, long = HEADS[kind]
        (byte,) = self.take(1)
        if byte in short:
            return byte - short.start
        if byte not in long:
            raise ValueError(f"{name} is no {kind}, or holds none where one must stand")
        return self.number(long[byte])

    def text(self) -> str:
        return self.take(self.head("text", "a name")).decode("utf-8")

    def number(self, kind: str) -> int:
        found: int = struct.unpack(f">{kind}", self.take(struct.calcsize(kind)))[0]
        return found

    def room(self) -> int:
        """Bytes that are left."""
        return self.size - self.stream.tell()

    def take(self, count: int) -> bytes:
        if count > self.room():
            raise ValueError(f"it is torn: it tells of bytes beyond its {self.size:,}")
        return self.stream.read(count)
