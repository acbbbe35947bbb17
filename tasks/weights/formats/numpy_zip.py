"""numpy's .npz: a zip of arrays, each with a header of its own; objects, which would be pickles, are refused.

Format: `numpy.lib.format`.
"""

import ast
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tasks.errors import CheckpointError
from tasks.weights.formats.arrays import RAW
from tasks.weights.formats.entries import BITS, Checkpoint, TensorEntry, name_fault, refuse, shape_fault
from tasks.weights.formats.zip_members import BROKEN, Member

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIX = ".npy"
MAGIC = b"\x93NUMPY"
LENGTHS: Mapping[tuple[int, int], str] = {(1, 0): "<H", (2, 0): "<I"}  # version -> how the header's is told
LONGEST = 10_000  # bytes of a header; numpy's own limit
OBJECTS = "it holds Python objects, which are pickles: nothing was executed"
DTYPES: Mapping[str, str] = {  # numpy's kind and bytes of an item
    "b1": "BOOL", "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64", "i1": "I8", "i2": "I16", "i4": "I32",
    "i8": "I64", "f2": "F16", "f4": "F32", "f8": "F64",
}  # fmt: skip


@dataclass(frozen=True)
class _Header:
    """What an array's header tells. origin: bytes of the member before the first item."""

    shape: tuple[int, ...]
    dtype: str
    fortran: bool
    swapped: bool
    origin: int


def read(path: Path, members: Mapping[str, Member]) -> Checkpoint:
    """The arrays of a zip whose `members` were checked, named as they were given to `numpy.savez`.

    Raises CheckpointError listing members that are no plain arrays of numbers.
    """
    headers, faults = {}, []
    with zipfile.ZipFile(path) as archive:
        for name, member in members.items():
            try:
                headers[name] = _checked(archive, member)
            except ValueError as error:
                faults.append(f"array {name[:80]!r}: {error}")
    refuse(path, faults)
    entries = [_entry(path, members[name], header) for name, header in headers.items()]
    return Checkpoint(path.parent, {entry.name: entry for entry in entries}, {}, "numpy")


def _checked(archive: zipfile.ZipFile, member: Member) -> _Header:
    if not member.name.endswith(SUFFIX):
        raise ValueError(f"it is no {SUFFIX} file")
    if fault := name_fault(member.name.removesuffix(SUFFIX).replace("/", ".")):  # jax: params/dense/kernel
        raise ValueError(fault)
    header = _header(archive, member)
    needed = math.prod(header.shape) * BITS[header.dtype] // 8
    if member.size - header.origin != needed:
        raise ValueError(
            f"{header.dtype} {header.shape} takes {needed:,} bytes, it holds {member.size - header.origin:,}"
        )
    return header


def _header(archive: zipfile.ZipFile, member: Member) -> _Header:
    """numpy's own parser would do, but for the exceptions that it lets through."""
    with archive.open(member.name) as stream:
        magic, major, minor = struct.unpack("<6s2B", _exactly(stream, 8))
        if magic != MAGIC or (major, minor) not in LENGTHS:
            raise ValueError("it is no array of version 1.0 or 2.0")
        (length,) = struct.unpack(
            LENGTHS[major, minor], _exactly(stream, struct.calcsize(LENGTHS[major, minor]))
        )
        if length > LONGEST:
            raise ValueError(f"its header has {length:,} bytes; {LONGEST:,} are allowed")
        text = _exactly(stream, length).decode("latin-1")
        return _parsed(text, stream.tell())


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ValueError("it is torn in its header")
    return data


def _parsed(text: str, origin: int) -> _Header:
    try:
        fields = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise ValueError("its header is not a plain dict") from None
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header must tell of descr, fortran_order and shape, and nothing else")
    kind, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if not isinstance(kind, str) or kind[1:] not in DTYPES or kind[0] not in "<>|":
        objects = "O" in kind if isinstance(kind, str) else False
        raise ValueError(
            OBJECTS if objects else f"items of type {str(kind)[:80]!r} are no numbers to be held"
        )
    if type(shape) is not tuple or any(type(size) is not int for size in shape) or type(fortran) is not bool:
        raise ValueError("its shape must be a tuple of whole numbers, its fortran_order true or false")
    if fault := shape_fault(shape):
        raise ValueError(fault)
    return _Header(shape, DTYPES[kind[1:]], fortran, kind[0] == ">", origin)


def _entry(path: Path, member: Member, header: _Header) -> TensorEntry:
    name = member.name.removesuffix(SUFFIX)
    plain = member.stored and not header.swapped and not (header.fortran and len(header.shape) > 1)
    start = member.start + header.origin if member.stored else member.start
    decoded = None if plain else partial(_decoded, path, member, header)
    return TensorEntry(name, header.dtype, header.shape, path, start, member.stop, decoded)


def _decoded(path: Path, member: Member, header: _Header) -> "NDArray[Any]":
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive, archive.open(member.name) as stream:
            data = stream.read(member.size)
    except (*BROKEN, KeyError) as error:
        raise CheckpointError(
            f"{path} changed while {member.name!r} was read ({error}): fetch it again"
        ) from None
    if len(data) != member.size:
        raise CheckpointError(f"{path} changed while {member.name!r} was read: fetch it again")
    raw: NDArray[Any] = np.frombuffer(data, RAW[BITS[header.dtype]], offset=header.origin)
    raw = raw.byteswap() if header.swapped else raw
    return raw.reshape(header.shape, order="F" if header.fortran else "C").copy(order="C")
