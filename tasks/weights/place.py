"""Carry out a plan: bytes that do not change are copied from file to file, the rest is made step by step.

The output depends on the plan, the source's bytes and the metadata alone, so equal input gives an equal
digest. In memory is at most what one step takes and makes, of those that are more than runs of bytes.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tasks import files
from tasks.errors import ArtifactError, CheckpointError
from tasks.weights import layout
from tasks.weights.formats import CONFIG, INDEX, SINGLE, TensorEntry
from tasks.weights.formats.arrays import read_raw
from tasks.weights.layout import Shard
from tasks.weights.ops import joined
from tasks.weights.plan import Move, Plan, Step, Unused, once
from tasks.weights.rules import Drop, Fill, Tie, fill, listed, matches

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 8 * 2**20  # bytes per read where the kernel does not copy by itself
# The kernel cannot copy between these two files; reading and writing still can.
UNABLE = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTSOCK)


def write(
    plan: Plan,
    directory: Path,
    config: Mapping[str, Any],
    *,
    metadata: Mapping[str, str],
    durable: bool = True,
    shard_size: int | None = None,
) -> Path:
    """Write config.json and model.safetensors into `directory`; returns the latter.

    metadata: strings for the header of every file, beside `format`. durable: wait until the disk has it.
    shard_size: bytes of a file; where one does not suffice there are several, and the index, which is
    written last, is returned.
    Raises ArtifactError where the disk is too small, CheckpointError where the source changes meanwhile.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards = layout.shards(plan, metadata, largest=shard_size)
    _require_space(directory, sum(shard.nbytes for shard in shards))
    _refuse_losses(plan)
    files.write_text(directory / CONFIG, files.canonical_json(config))
    for shard in shards:
        _write_shard(shard, plan, directory, durable=durable)
    if len(shards) == 1:
        return directory / SINGLE
    files.write_text(directory / INDEX, files.canonical_json(layout.index(shards)))
    return directory / INDEX


def _write_shard(shard: Shard, plan: Plan, directory: Path, *, durable: bool) -> None:
    with (directory / shard.name).open("wb", buffering=0) as sink:
        _write_all(sink, shard.header)
        for copied, moves in groupby(shard.moves, key=_is_copied):
            if copied:
                _copy_all(list(moves), sink)
            else:
                _make_all(moves, plan, sink)
        if durable:
            os.fsync(sink.fileno())


def initial(move: Move, *, seed: int, deviation: float) -> "NDArray[Any]":
    """The values of an initialised tensor, shape `move.shape`, as the raw items of its dtype.

    Each tensor has a stream of its own, so that a rule added to the table changes no other tensor.
    """
    import numpy as np

    from tasks.weights import values

    op = move.rule.op
    assert isinstance(op, Fill)
    if op.values != "normal":
        return values.items(np.full(move.shape, float(op.values == "ones")), move.dtype)
    drawn = values.stream(seed, move.target).normal(0.0, deviation, move.shape)
    return values.items(drawn, move.dtype)


def array(entry: TensorEntry) -> "NDArray[Any]":
    """A tensor's raw items in its shape, read from its file; bfloat16 has no type of its own in numpy.

    Raises CheckpointError where the file became shorter since it was opened.
    """
    if entry.decoded:
        return entry.decoded()
    return read_raw(entry.file, entry.start, entry.stop, entry.dtype).reshape(entry.shape)


def made(step: Step) -> "list[NDArray[Any]]":
    """What a step makes, as raw items. Raises CheckpointError where values do not allow it."""
    try:
        return step.rule.op.forward([array(entry) for entry in step.sources], step.sources[0].dtype)
    except ValueError as error:
        names = ", ".join(entry.name for entry in step.sources)
        raise CheckpointError(f"{names}: {error} ({step.rule})") from None


def _require_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ArtifactError(
            f"no room for the converted checkpoint: it takes {needed / 1e6:,.0f} MB, the disk of {directory} "
            f"has {free / 1e6:,.0f} MB left; free some, or put the project on another disk"
        )


def _refuse_losses(plan: Plan) -> None:
    """Raises CheckpointError with every tensor that its rule lets go only under a condition that does not
    hold."""
    entries = {entry.name: entry for move in plan.moves for entry in move.step.sources}
    entries |= {unused.source.name: unused.source for unused in plan.unused}
    if faults := [*once(fault for unused in plan.unused for fault in _losses(unused, entries))]:
        raise CheckpointError(listed("what the plan lets go would be missed", faults))


def _losses(unused: Unused, entries: Mapping[str, TensorEntry]) -> Iterator[str]:
    op, entry = unused.rule.op, unused.source
    if isinstance(op, Tie):
        other = fill(op.to, matches(unused.rule.sources[0], entry.name) or {})
        if other not in entries:
            yield f"{entry.name} should be {other} under a second name, which the checkpoint lacks"
        elif not _same(entries[other], entry):
            yield f"{entry.name} {op.refusal.format(other)}"
    elif isinstance(op, Drop) and op.unless and array(entry).any():
        yield f"{entry.name} is not zero, so the model would compute something else: {unused.rule.reason}"


def _same(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors have the same bytes, a few megabytes of them at a time."""
    if one.decoded or other.decoded:
        return one.shape == other.shape and array(one).tobytes() == array(other).tobytes()
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    with one.file.open("rb", buffering=0) as ours, other.file.open("rb", buffering=0) as theirs:
        ours.seek(one.start)
        theirs.seek(other.start)
        sizes = (min(CHUNK, one.nbytes - at) for at in range(0, one.nbytes, CHUNK))
        return all(ours.read(size) == theirs.read(size) for size in sizes)


def _is_copied(move: Move) -> bool:
    return move.step.ranges() is not None


def _copy_all(moves: list[Move], sink: BinaryIO) -> None:
    runs = [run for move in moves for run in (move.step.ranges() or [])[move.part]]
    for run in joined(runs):
        _copy(run.file, run.start, run.stop, sink)


def _make_all(moves: Iterator[Move], plan: Plan, sink: BinaryIO) -> None:
    for step, parts in groupby(moves, key=lambda move: move.step):
        _make(step, parts, plan, sink)  # what it holds is let go before the next step takes as much


def _make(step: Step, parts: Iterator[Move], plan: Plan, sink: BinaryIO) -> None:
    from tasks.weights import tiles  # late: imports numpy

    given = made(step) if step.sources else []
    for move in parts:
        drawn = None if given else initial(move, seed=plan.seed, deviation=plan.deviation)
        for piece in tiles.pieces(given[move.part] if drawn is None else drawn):
            _write_all(sink, piece.data.cast("B"))


def _copy(path: Path, start: int, stop: int, sink: BinaryIO) -> None:
    """Append `path[start:stop]` to `sink`, inside the kernel where it can."""
    with path.open("rb", buffering=0) as source:
        while start < stop:
            done = _copy_some(source, start, stop - start, sink)
            if not done:
                raise CheckpointError(f"{path} became shorter while it was read: fetch it again")
            start += done


def _copy_some(source: BinaryIO, start: int, count: int, sink: BinaryIO) -> int:
    for way in (_by_range, _by_sendfile):
        try:
            if done := way(source, start, count, sink):
                return done
        except OSError as error:
            if error.errno not in UNABLE:
                raise
    source.seek(start)
    data = source.read(min(count, CHUNK))
    _write_all(sink, data)
    return len(data)


def _by_range(source: BinaryIO, start: int, count: int, sink: BinaryIO) -> int:
    """Linux; file systems that share extents copy nothing."""
    if not hasattr(os, "copy_file_range"):
        return 0
    return os.copy_file_range(source.fileno(), sink.fileno(), count, start)


def _by_sendfile(source: BinaryIO, start: int, count: int, sink: BinaryIO) -> int:
    """Between any two files on Linux; to sockets alone elsewhere."""
    return os.sendfile(sink.fileno(), source.fileno(), start, count) if hasattr(os, "sendfile") else 0


def _write_all(sink: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[sink.write(view) :]
