"""Keras' .h5, as TensorFlow's models in transformers were saved: groups in groups, a dataset a tensor.

h5py finds the datasets; their bytes are read here, and only those that lie in the file itself as they are.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import SHOWN, Checkpoint, TensorEntry, name_fault, refuse, shape_fault

MAGIC = b"\x89HDF\r\n\x1a\n"
DEEPEST = 32  # groups in groups
MOST = 1_000_000  # links
DTYPES: Mapping[str, str] = {  # numpy's kind and bytes of an item, little-endian
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<u4": "U32", "<i4": "I32",
    "<u8": "U64", "<i8": "I64", "<f2": "F16", "<f4": "F32", "<f8": "F64",
}  # fmt: skip
BROKEN = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError)
REMEDY = "write it again with model.save_weights(path), or every tensor of it with numpy.savez"
OWN = re.compile(r"\.(index|data-\d{5}-of-\d{5})")  # the files of TensorFlow's own checkpoints


def refuse_tensorflow(path: Path) -> None:
    """Raises CheckpointError for a file of TensorFlow's own checkpoints, which only it reads."""
    if OWN.fullmatch(path.suffix):
        raise CheckpointError(
            f"{path} is a part of a checkpoint in TensorFlow's own format: read it there with "
            "tf.train.load_checkpoint, give every tensor to numpy.savez, and convert that .npz"
        )


def read(path: Path) -> Checkpoint:
    """The datasets of an HDF5 file; names are paths with dots: `dense.dense.kernel:0`.

    Raises CheckpointError where h5py is not installed, and listing datasets that are compressed, cut into
    chunks, in another file, or no numbers, and links.
    """
    h5py = _library(path)
    entries, faults = {}, []
    try:
        with h5py.File(path, "r", locking=False) as file:
            for name, found in _members(h5py, file):
                fault = found if isinstance(found, str) else _fault(name, found, path.stat().st_size)
                if fault:
                    faults.append(f"{name[:80]!r}: {fault}")
                else:
                    entries[name] = _entry(path, name, found)
                if len(faults) > SHOWN:
                    break
    except BROKEN as error:
        raise CheckpointError(
            f"{path} is a torn or malformed HDF5 file ({str(error)[:200]}): fetch it again"
        ) from None
    refuse(path, faults, REMEDY)
    return Checkpoint(path.parent, entries, {}, "keras")


def _library(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise CheckpointError(f"{path} is an HDF5 file: `pip install h5py`, which reads them") from None
    return h5py


def _members(h5py: Any, file: Any) -> Iterator[tuple[str, Any]]:
    """Every dataset, and for what is none of its own the reason; each group is looked at once."""
    seen, waiting, left = set(), [("", file, DEEPEST)], MOST
    while waiting:
        prefix, group, depth = waiting.pop()
        place = h5py.h5o.get_info(group.id).addr
        if place in seen or not depth:
            yield prefix or "/", "it holds itself, or is more groups deep than any model"
            continue
        seen.add(place)
        for name in group:
            full, left = f"{prefix}.{name.replace('/', '.')}".removeprefix("."), left - 1
            if left < 0:
                raise ValueError(f"it holds more than {MOST:,} links")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield full, "it is a link to something else, and was not followed"
            elif isinstance(member := group[name], h5py.Group):
                waiting.append((full, member, depth - 1))
            else:
                yield full, member if isinstance(member, h5py.Dataset) else "it is no dataset"


def _fault(name: str, data: Any, size: int) -> str | None:
    if fault := name_fault(name):
        return fault
    if data.shape is None or data.dtype.str not in DTYPES:
        return f"items of type {data.dtype.str!r:.80} are no little-endian numbers to be held"
    if fault := shape_fault(data.shape):
        return fault
    if data.is_virtual or data.external:
        return "its bytes are in another file, which was not opened"
    if data.chunks or (data.size and data.id.get_offset() is None):
        return "its bytes do not lie in the file as they are: it is compressed or cut into chunks"
    if data.size and data.id.get_offset() + data.nbytes > size:
        return f"it is torn: its bytes end at {data.id.get_offset() + data.nbytes:,}, the file has {size:,}"
    return None


def _entry(path: Path, name: str, data: Any) -> TensorEntry:
    start = data.id.get_offset() if data.size else 0
    shape = tuple(map(int, data.shape))
    return TensorEntry(name, DTYPES[data.dtype.str], shape, path, start, start + data.nbytes)
