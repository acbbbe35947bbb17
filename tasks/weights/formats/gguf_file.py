"""GGUF, the format of llama.cpp: metadata, a table of tensors, then their bytes, many of them quantised.

The header is read here: gguf's own reader takes seconds for a vocabulary, and does not end on a list that
claims more items than the file has bytes. Unpacking quantised blocks is gguf's work. Format:
docs/gguf.md of github.com/ggml-org/ggml.
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tasks.errors import CheckpointError
from tasks.weights.formats.arrays import read_raw
from tasks.weights.formats.entries import BITS, Checkpoint, TensorEntry, name_fault, refuse, shape_fault
from tasks.weights.formats.header import LONGEST_HEADER

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, where general.alignment says nothing else
SCALARS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4
SMALLEST_STRING = 8  # bytes: its length
SMALLEST_VALUE = SMALLEST_STRING + 4 + 1  # name, type, one byte
SMALLEST_TENSOR = SMALLEST_STRING + 4 + 4 + 8  # name, count of dimensions, type, offset
Row = tuple[str, tuple[int, ...], int, int]
PLAIN: Mapping[int, str] = {
    0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16",
}  # fmt: skip


def read(path: Path) -> Checkpoint:
    """The tensors of a GGUF file in row-major order, and its metadata as config.

    Quantised tensors are F32 and `decoded`. Raises CheckpointError where the header is not an exact account
    of the file, or gguf, which unpacks quantised tensors, is not installed.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = _Header(stream, min(size, LONGEST_HEADER))
        try:
            metadata, rows = header.metadata_and_tensors()
        except (ValueError, struct.error) as error:
            raise CheckpointError(
                f"{path} is a torn or malformed GGUF file: {error}; fetch it again"
            ) from None
        end = stream.tell()
    origin = end + -end % _alignment(path, metadata)
    entries, faults = _entries(path, rows, origin)
    refuse(path, faults + list(_range_faults(entries, origin, size, _alignment(path, metadata))))
    return Checkpoint(path.parent, {entry.name: entry for entry in entries}, metadata, "gguf")


class _Header:
    """Reads one value after another; none may reach beyond `limit`. Raises ValueError naming what does."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.limit = stream, limit

    def metadata_and_tensors(self) -> tuple[dict[str, Any], list[Row]]:
        magic, version = self.numbers("4sI")
        if magic != MAGIC or version not in VERSIONS:
            raise ValueError(f"version {version} is not one of {VERSIONS}, or its bytes are big-endian")
        tensors, values = self.numbers("QQ")
        if tensors * SMALLEST_TENSOR + values * SMALLEST_VALUE > self.room():
            raise ValueError(f"its header claims {values:,} values and {tensors:,} tensors, beyond its end")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            name = self.text()
            if name in metadata:
                raise ValueError(f"{name[:80]!r} stands in it twice")
            metadata[name] = self.value(*self.numbers("I"))
        return metadata, [self.tensor() for _ in range(tensors)]

    def room(self) -> int:
        """Bytes that are left."""
        return self.limit - self.stream.tell()

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{kinds}", self.take(struct.calcsize(f"<{kinds}")))

    def take(self, count: int) -> bytes:
        if count > self.room():
            raise ValueError(f"its header claims bytes beyond {self.limit:,}")
        return self.stream.read(count)

    def text(self) -> str:
        (length,) = self.numbers("Q")
        return self.take(length).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.items(*self.numbers("IQ"))
        if kind not in SCALARS:
            raise ValueError(f"unknown type {kind} of a value")
        return self.numbers(SCALARS[kind])[0]

    def items(self, kind: int, count: int) -> list[Any]:
        smallest = SMALLEST_STRING if kind == STRING else struct.calcsize(SCALARS.get(kind, "B"))
        if count * smallest > self.room():
            raise ValueError(f"a list claims {count:,} items, more than the header has room for")
        if kind in SCALARS:
            return list(self.numbers(f"{count}{SCALARS[kind]}"))
        if kind != STRING:
            raise ValueError(f"a list of type {kind}")
        return [self.text() for _ in range(count)]

    def tensor(self) -> Row:
        """Name, shape with the slowest dimension first, type, offset."""
        name, (count,) = self.text(), self.numbers("I")
        if count > MOST_DIMENSIONS:
            raise ValueError(f"tensor {name[:80]!r} claims {count:,} dimensions")
        shape = self.numbers(f"{count}Q")[::-1]
        return name, shape, *self.numbers("IQ")


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    found = metadata.get("general.alignment", ALIGNMENT)
    if type(found) is not int or not 8 <= found <= 2**16 or found & (found - 1):
        raise CheckpointError(
            f"{path} is not usable: general.alignment {found!r} is no power of two from 8 to 65,536"
        )
    return found


def _entries(path: Path, rows: list[Row], origin: int) -> tuple[list[TensorEntry], list[str]]:
    """Entries in the order of their bytes, and a sentence for each that is not well formed."""
    entries, faults, seen = [], [], set()
    for name, shape, kind, offset in rows:
        try:
            if (
                fault := name_fault(name)
                or shape_fault(shape)
                or ("it stands twice" if name in seen else None)
            ):
                raise ValueError(fault)
            entries.append(_entry(path, name, shape, kind, origin + offset))
        except ValueError as error:
            faults.append(f"tensor {name[:80]!r}: {error}")
        seen.add(name)
    return sorted(entries, key=lambda entry: (entry.start, entry.stop)), faults


def _entry(path: Path, name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorEntry:
    if kind in PLAIN:
        stop = start + math.prod(shape) * BITS[PLAIN[kind]] // 8
        return TensorEntry(name, PLAIN[kind], shape, path, start, stop)
    items, width = _block(path, kind)
    if not shape or shape[-1] % items:
        raise ValueError(f"rows of {shape} are not made of blocks of {items} items")
    stop = start + math.prod(shape) // items * width
    unpack = partial(_unpacked, path, start, stop, kind=kind, shape=shape)
    return TensorEntry(name, "F32", shape, path, start, stop, unpack)


def _range_faults(entries: list[TensorEntry], origin: int, size: int, alignment: int) -> Iterator[str]:
    """The ranges must fill the file from `origin` to its end, but for padding."""
    end = origin
    for entry in entries:
        if entry.start % alignment:
            yield f"tensor {entry.name!r} does not start at a multiple of {alignment}"
        if not 0 <= entry.start - end < alignment:
            yield f"tensor {entry.name!r} starts at byte {entry.start:,}, the one before it ends at {end:,}"
        end = max(end, entry.stop)
    if end > size:
        yield f"it is torn: its tensors end at byte {end:,}, the file has {size:,}; fetch it again"
    elif entries and size - end >= alignment:
        yield f"{size - end:,} bytes after the last tensor belong to no tensor"


def _block(path: Path, kind: int) -> tuple[int, int]:
    """Items and bytes of one block of a quantised type that gguf unpacks."""
    quants = _quants(path)
    try:
        found = quants.GGMLQuantizationType(kind)
        items, width = quants.GGML_QUANT_SIZES[found]
        _unpack_blocks(path, kind)(bytes(width))
    except (ValueError, KeyError, NotImplementedError):
        raise ValueError(f"its type {kind} is not one that the gguf package unpacks") from None
    return items, width


def _quants(path: Path) -> Any:
    try:
        from gguf import quants
    except ImportError:
        raise CheckpointError(
            f"{path} holds quantised tensors: `pip install gguf`, which unpacks them"
        ) from None
    return quants


def _unpack_blocks(path: Path, kind: int) -> Callable[[Any], "NDArray[Any]"]:
    import numpy as np

    quants = _quants(path)
    return lambda raw: quants.dequantize(
        np.frombuffer(raw, np.uint8)[None], quants.GGMLQuantizationType(kind)
    )[0]


def _unpacked(path: Path, start: int, stop: int, *, kind: int, shape: tuple[int, ...]) -> "NDArray[Any]":
    if start == stop:  # gguf does not unpack nothing
        return read_raw(path, start, stop, "U32").reshape(shape)
    values = _unpack_blocks(path, kind)(read_raw(path, start, stop, "U8"))
    return values.astype("<f4", copy=False).view("<u4").reshape(shape)
