"""The header of a safetensors file, parsed more strictly than the format's own library does.

That one takes duplicate names, extra fields and names with control characters. Format:
https://github.com/huggingface/safetensors#format
"""

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import (
    BITS,
    LONGEST_NAME,
    TensorEntry,
    json_object,
    name_fault,
    refuse,
    shape_fault,
)
from tasks.weights.formats.impostors import refuse_impostors, refuse_text

LONGEST_HEADER = 100_000_000  # bytes; the limit of the format's own library


def read_header(path: Path) -> Mapping[str, TensorEntry]:
    """Every tensor of one safetensors file, in the order of its bytes.

    Raises CheckpointError if the file is no safetensors file, is torn, or its header is anything but an
    exact account of its bytes.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing or not a regular file")
    size = path.stat().st_size
    with path.open("rb") as stream:
        opening = stream.read(512)
        refuse_impostors(path, opening, size)
        refuse_text(path, opening)
        length = struct.unpack("<Q", opening[:8])[0]
        _check_length(path, length, size)
        stream.seek(8)
        header = _parse(path, stream.read(length))
    entries, faults = _account(path, header, 8 + length)
    faults += _gaps(entries, 8 + length, size)
    refuse(path, faults)
    return {entry.name: entry for entry in entries}


def _check_length(path: Path, length: int, size: int) -> None:
    if length > LONGEST_HEADER:
        raise CheckpointError(
            f"{path} is not a safetensors file: its first 8 bytes claim a header of {length:,} bytes, "
            f"more than the {LONGEST_HEADER:,} that are allowed"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path} is torn: its header alone takes {length:,} bytes, the file has {size:,}; fetch it again"
        )


def _parse(path: Path, header: bytes) -> Mapping[str, Any]:
    if not header.startswith(b"{"):
        raise CheckpointError(f"{path} is not a safetensors file: its header does not start with '{{'")
    return json_object(header, f"{path}: the header")


def _account(path: Path, header: Mapping[str, Any], origin: int) -> tuple[list[TensorEntry], list[str]]:
    """Entries in the order of their bytes, and a sentence for each that is not well formed."""
    entries, faults = [], list(_metadata_faults(header))
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        fault = name_fault(name) or _field_fault(fields)
        if fault:
            faults.append(f"tensor {name[:LONGEST_NAME]!r}: {fault}")
            continue
        start, stop = fields["data_offsets"]
        shape = tuple(fields["shape"])
        entries.append(TensorEntry(name, fields["dtype"], shape, path, origin + start, origin + stop))
    return sorted(entries, key=lambda entry: (entry.start, entry.stop)), faults


def _metadata_faults(header: Mapping[str, Any]) -> Iterator[str]:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        yield "__metadata__ must map names to strings"


def _field_fault(fields: Any) -> str | None:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        return "it must have dtype, shape and data_offsets, and nothing else"
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"unknown dtype {dtype[:80]!r}" if isinstance(dtype, str) else "its dtype must be a string"
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        return "its shape and its two data_offsets must be lists of whole numbers"
    if fault := shape_fault(tuple(shape)):
        return fault
    promised, held = math.prod(shape) * BITS[dtype] // 8, offsets[1] - offsets[0]
    if promised != held:
        return f"{dtype} {tuple(shape)} takes {promised:,} bytes, its range holds {held:,}"
    return None


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _gaps(entries: Iterable[TensorEntry], origin: int, size: int) -> list[str]:
    """The ranges must tile the file from `origin` to its end."""
    faults, end = [], origin
    for entry in entries:
        if entry.start > end:
            faults.append(f"{entry.start - end:,} bytes before tensor {entry.name!r} belong to no tensor")
        if entry.start < end:
            faults.append(f"tensor {entry.name!r} overlaps the one before it by {end - entry.start:,} bytes")
        end = max(end, entry.stop)
    if end > size:
        faults.append(f"it is torn: its tensors end at byte {end:,}, the file has {size:,}; fetch it again")
    if end < size:
        faults.append(f"{size - end:,} bytes after the last tensor belong to no tensor")
    return faults
