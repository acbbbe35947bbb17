"""Carry out a plan: bytes that do not change are copied from file to file, the rest is made tensor by tensor.

The output depends on the plan, the source's bytes and the metadata alone, so equal input gives an equal
digest. In memory is at most one tensor, of those that are transposed or initialised.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tasks import files
from tasks.errors import ArtifactError, CheckpointError
from tasks.weights.formats import CONFIG, SINGLE, TensorEntry
from tasks.weights.formats.entries import BITS
from tasks.weights.rules import KEEP, NORMAL, Move, Plan

ALIGNMENT = 4096  # bytes; page-aligned data can share extents with its source on file systems that know how
CHUNK = 8 * 2**20  # bytes per read where the kernel does not copy by itself
RAW: Mapping[int, str] = {8: "<u1", 16: "<u2", 32: "<u4", 64: "<u8"}
# The kernel cannot copy between these two files; reading and writing still can.
UNABLE = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def write(plan: Plan, directory: Path, config: Mapping[str, Any], *, metadata: Mapping[str, str]) -> Path:
    """Write config.json and model.safetensors into `directory`; returns the latter.

    metadata: strings for the file's header, beside `format`.
    Raises ArtifactError where the disk is too small, CheckpointError where the source changes meanwhile.
    """
    directory.mkdir(parents=True, exist_ok=True)
    layout = arrange(plan)
    header = _header(layout, {"format": "pt", **metadata})
    _require_space(directory, len(header) + sum(map(_bytes, layout)))
    files.write_text(directory / CONFIG, files.canonical_json(config))
    target = directory / SINGLE
    with target.open("wb", buffering=0) as sink:
        _write_all(sink, header)
        for group in _runs(layout):
            _place(group, plan, sink)
        os.fsync(sink.fileno())
    return target


def arrange(plan: Plan) -> list[Move]:
    """Moves in the order of the output's bytes.

    Widest dtype first, which keeps every tensor aligned to its own items; then as the source has them, so
    that neighbours are copied in one piece; then what is initialised.
    """

    def key(move: Move) -> tuple[int, bool, str, int]:
        source = move.source
        return (
            -BITS[move.dtype],
            source is None,
            source.file.name if source else "",
            source.start if source else 0,
        )

    return sorted(plan.moves, key=key)


def initial(move: Move, *, seed: int, deviation: float) -> NDArray[Any]:
    """The values of an initialised tensor, shape `move.shape`, as the raw items of its dtype.

    Each tensor has a stream of its own, keyed by seed and name (numpy's PCG64), so that a rule added to the
    table changes no other tensor.
    """
    if move.rule.op is not NORMAL:
        return np.zeros(move.shape, RAW[BITS[move.dtype]])
    key = int.from_bytes(hashlib.sha256(move.target.encode()).digest()[:8], "big")
    values = np.random.default_rng([seed, key]).normal(0.0, deviation, move.shape)
    return _as_raw(values, move.dtype)


def array(entry: TensorEntry) -> NDArray[Any]:
    """A tensor's raw items in its shape, read from its file; bfloat16 has no type of its own in numpy."""
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        raw: NDArray[Any] = np.fromfile(stream, RAW[BITS[entry.dtype]], entry.size)
    if raw.size < entry.size:
        raise CheckpointError(f"{entry.file} became shorter while {entry.name} was read: fetch it again")
    return raw.reshape(entry.shape)


def _as_raw(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":  # the upper half of a float32, rounded to the nearest even
        bits = values.astype("<f4").view("<u4")
        upper: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        return upper
    width = BITS[dtype] // 8
    return values.astype(f"<f{width}").view(f"<u{width}")


def _header(layout: list[Move], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces (as the format allows) until the data starts at a page."""
    fields: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for move in layout:
        start, end = end, end + _bytes(move)
        fields[move.target] = {"dtype": move.dtype, "shape": list(move.shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes(move: Move) -> int:
    return math.prod(move.shape) * BITS[move.dtype] // 8


def _require_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ArtifactError(
            f"no room for the converted checkpoint: it takes {needed / 1e6:,.0f} MB, the disk of {directory} "
            f"has {free / 1e6:,.0f} MB left; free some, or put the project on another disk"
        )


def _runs(layout: list[Move]) -> Iterator[list[Move]]:
    """Neighbours in the source that stay neighbours, as one group; any other move alone."""
    group: list[Move] = []
    for move in layout:
        if group and not _adjoins(group[-1], move):
            yield group
            group = []
        group.append(move)
    if group:
        yield group


def _adjoins(former: Move, move: Move) -> bool:
    one, two = former.source, move.source
    if one is None or two is None or not former.rule.op is move.rule.op is KEEP:
        return False
    return one.file == two.file and one.stop == two.start


def _place(group: list[Move], plan: Plan, sink: BinaryIO) -> None:
    first, last = group[0], group[-1]
    if first.source is None:
        _write_all(sink, initial(first, seed=plan.seed, deviation=plan.deviation).tobytes())
    elif first.rule.op is KEEP and last.source is not None:
        _copy(first.source.file, first.source.start, last.source.stop, sink)
    elif first.rule.op.forward is not None:
        _write_all(sink, np.ascontiguousarray(first.rule.op.forward(array(first.source))).tobytes())


def _copy(path: Path, start: int, stop: int, sink: BinaryIO) -> None:
    """Append `path[start:stop]` to `sink`, inside the kernel where it can."""
    with path.open("rb", buffering=0) as source:
        while start < stop:
            done = _copy_some(source, start, stop - start, sink)
            if not done:
                raise CheckpointError(f"{path} became shorter while it was read: fetch it again")
            start += done


def _copy_some(source: BinaryIO, start: int, count: int, sink: BinaryIO) -> int:
    if hasattr(os, "copy_file_range"):  # Linux
        try:
            if done := os.copy_file_range(source.fileno(), sink.fileno(), count, start):
                return done
        except OSError as error:
            if error.errno not in UNABLE:
                raise
    source.seek(start)
    data = source.read(min(count, CHUNK))
    _write_all(sink, data)
    return len(data)


def _write_all(sink: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[sink.write(view) :]
