"""PyTorch checkpoints in a zip (.pt, .pth, .bin, .ckpt), without running what is in them.

Layout, as `torch.serialization` writes it since 1.6: <root>/data.pkl describes the tensors, <root>/data/<key>
holds the items of one storage, uncompressed, <root>/byteorder says how.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from tasks.errors import CheckpointError
from tasks.weights.formats import inert
from tasks.weights.formats.arrays import permuted
from tasks.weights.formats.entries import BITS, Checkpoint, TensorEntry, name_fault, refuse, shape_fault
from tasks.weights.formats.state_dict import chosen, settings
from tasks.weights.formats.torch_names import Storage, Tensor
from tasks.weights.formats.zip_members import Member, read_member

PICKLE = "data.pkl"
MOST_SHARED = 16  # times the file's size that its tensors may take; tied tensors share their bytes


def read(path: Path, members: Mapping[str, Member], key: str | None = None) -> Checkpoint:
    """The tensors of a zip whose `members` were checked.

    key: of the dict of tensors, where the file holds several.
    Raises CheckpointError naming each member, name or tensor that is not what torch writes of plain weights.
    """
    root = _root(path, members)
    value = inert.load(path, read_member(path, members[root + PICKLE], most=inert.LONGEST))
    tensors = chosen(path, value, key)
    records = {name.removeprefix(f"{root}data/"): m for name, m in members.items() if name.startswith(root)}
    faults = list(_storage_faults({tensor.storage for tensor in tensors.values()}, records))
    refuse(path, faults)
    refuse(path, [f"tensor {name[:80]!r}: {x}" for name, t in tensors.items() if (x := _fault(name, t))])
    entries = {name: _entry(path, name, tensor, records) for name, tensor in tensors.items()}
    _refuse_bomb(path, entries)
    return Checkpoint(path.parent, entries, settings(value), "torch")


def _root(path: Path, members: Mapping[str, Member]) -> str:
    """What every member's name begins with, its slash included."""
    roots = [name.removesuffix(PICKLE) for name in members if name.split("/")[-1] == PICKLE]
    if len(roots) != 1:
        raise CheckpointError(f"{path} is not usable: it holds {len(roots)} pickles named {PICKLE}, not one")
    refuse(path, list(_member_faults(path, roots[0], members)))
    return roots[0]


def _member_faults(path: Path, root: str, members: Mapping[str, Member]) -> Iterator[str]:
    for name, member in members.items():
        if not member.stored:
            yield f"member {name!r} is compressed; torch.save() never does that: save the file again with it"
    if f"{root}constants.pkl" in members:
        yield "it is a TorchScript program: save the state_dict() of its module instead"
    order = members.get(f"{root}byteorder")
    if order and order.stored and (found := read_member(path, order, most=64)) != b"little":
        yield f"its byte order is {found[:20]!r}: save it again on a little-endian machine"


def _storage_faults(storages: set[Storage], records: Mapping[str, Member]) -> Iterator[str]:
    seen: dict[str, Storage] = {}
    for storage in sorted(storages, key=lambda storage: (storage.key, storage.items)):
        needed = storage.items * BITS[storage.dtype] // 8 if storage.dtype else storage.items
        record = records.get(storage.key)
        if seen.setdefault(storage.key, storage) != storage:
            yield f"storage {storage.key[:80]!r} is declared in two ways"
        elif record is None:
            yield f"storage {storage.key[:80]!r} is missing"
        elif record.size != needed:
            yield f"storage {storage.key!r} takes {needed:,} bytes, its record holds {record.size:,}"


def _fault(name: str, tensor: Tensor) -> str | None:
    """Why a tensor cannot be taken, if it cannot; its storage is known to be there."""
    if fault := name_fault(name) or shape_fault(tensor.shape):
        return fault
    if tensor.offset < 0 or min(tensor.strides, default=0) < 0:
        return f"offset {tensor.offset} and strides {tensor.strides} must not be negative"
    if _order(tensor) is None:
        return f"strides {tensor.strides} repeat or skip items of its storage: save it with .contiguous()"
    width, storage = BITS[tensor.dtype] // 8, tensor.storage
    held = storage.items * (BITS[storage.dtype] // 8 if storage.dtype else 1)
    if (end := (tensor.offset + math.prod(tensor.shape)) * width) > held:
        return f"it ends at byte {end:,} of a storage of {held:,}"
    return None


def _order(tensor: Tensor) -> list[int] | None:
    """Its axes from the slowest to the fastest; None unless they fill a piece of the storage exactly."""
    axes = range(len(tensor.shape))
    if 0 in tensor.shape:
        return list(axes)
    order = sorted(axes, key=lambda axis: (-tensor.strides[axis] if tensor.shape[axis] > 1 else 0, axis))
    step = 1
    for axis in reversed(order):
        if tensor.shape[axis] > 1 and tensor.strides[axis] != step:
            return None
        step *= tensor.shape[axis]
    return order


def _entry(path: Path, name: str, tensor: Tensor, records: Mapping[str, Member]) -> TensorEntry:
    width = BITS[tensor.dtype] // 8
    start = records[tensor.storage.key].start + tensor.offset * width
    stop = start + math.prod(tensor.shape) * width
    order = [axis for axis in _order(tensor) or () if tensor.shape[axis] > 1]
    decoded = None
    if order != sorted(order) and start < stop:
        rest = [axis for axis in range(len(tensor.shape)) if tensor.shape[axis] <= 1]
        decoded = partial(
            permuted, path, start, stop, dtype=tensor.dtype, shape=tensor.shape, order=rest + order
        )
    return TensorEntry(name, tensor.dtype, tensor.shape, path, start, stop, decoded)


def _refuse_bomb(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    size, taken = path.stat().st_size, sum(entry.nbytes for entry in entries.values())
    if taken > MOST_SHARED * size:
        raise CheckpointError(
            f"{path} is not usable: its tensors share bytes until {size:,} of them are {taken:,}; save it "
            "with .clone() of those that are not tied"
        )
