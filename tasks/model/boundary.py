"""Frozen work done once: hidden states at the border between what is frozen and what learns, kept on disk.

A set of states is a folder: `states.npy`, flat (tokens of all rows, width), never padded, so that batches
can be cut anew each epoch; `manifest.json` with all that they depend on. Its name is the digest of that:
states of other weights, tokens, libraries or another dtype are other states; stale ones are never found.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tasks import files
from tasks.errors import TrainingError

MANIFEST, STATES, SCALES = "manifest.json", "states.npy", "scales.npy"
BYTES = {"float32": 4, "float16": 2, "int8": 1}
SCALE_BYTES = 4
Computed = Iterable[
    tuple[Sequence[int], Mapping[str, Tensor]]
]  # rows, and their states (batch, tokens, width)


@dataclass(frozen=True)
class Cache:
    """Where states are kept, as what, and how many bytes they may take in all."""

    home: Path
    dtype: str  # of BYTES
    maximum: int


@dataclass(frozen=True)
class Wanted:
    """Hidden states to be kept: how many tokens of each row, how wide, and all that they depend on."""

    lengths: Sequence[int]
    width: int
    dtype: str  # of BYTES
    depends: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return files.digest_json({"dtype": self.dtype, "width": self.width, **self.depends})

    @property
    def nbytes(self) -> int:
        """On disk."""
        scale = SCALE_BYTES if self.dtype == "int8" else 0
        return sum(self.lengths) * (self.width * BYTES[self.dtype] + scale)

    def folder(self, home: Path) -> Path:
        return home / self.digest.removeprefix("sha256:")[:16]


@dataclass(frozen=True)
class Boundary:
    """Kept states: `states` (tokens, width), for int8 with `scales` (tokens, 1); row r has those from
    `offsets[r]` to `offsets[r + 1]`."""

    states: NDArray[Any]
    scales: NDArray[np.float32] | None
    offsets: Sequence[int]

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Hidden states (batch, longest, width) float32, zeros behind each row's end, and the mask (batch,
        longest) int64."""
        hidden, lengths = self.tokens(rows)
        padded = pad_sequence(hidden.split(lengths), batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
        return padded, mask.to(torch.int64)

    def tokens(self, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Hidden states (tokens, width) float32 of the rows end to end, and how many tokens each has."""
        if len(self.offsets) == len(self.states) + 1 and self.scales is None:  # one a row: features
            found = torch.from_numpy(np.asarray(self.states[list(rows)], dtype=np.float32))
            return found, [1] * len(rows)
        spans = [slice(self.offsets[row], self.offsets[row + 1]) for row in rows]
        hidden = np.concatenate([self.states[span] for span in spans]).astype(np.float32)
        if self.scales is not None:
            hidden *= np.concatenate([self.scales[span] for span in spans])
        return torch.from_numpy(hidden), [span.stop - span.start for span in spans]


def weights_digest(tensors: Mapping[str, nn.Parameter]) -> str:
    """Of names and values. BLAKE2 takes half as long as SHA-256 where the processor has no instructions for
    that."""
    parts = {name: hashlib.blake2b(_plain(value).data).hexdigest() for name, value in tensors.items()}
    return files.digest_json(parts)


def _plain(value: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = np.ascontiguousarray(value.detach().cpu().contiguous().numpy())
    return found


def gather(
    home: Path,
    wanted: Mapping[str, Wanted],
    compute: Callable[[Sequence[str]], Computed],
    *,
    maximum: int | None = None,
) -> dict[str, Boundary]:
    """The states that `wanted` names: those that are kept already, the others computed in one pass and kept.

    compute: names -> batches of rows in any order, each with the states of these names.
    maximum: bytes that all states in `home` may take; what was used longest ago makes room.
    Who wants states that another process computes just now waits for them. Raises TrainingError for states
    that do not fit the disk or the dtype, and for a folder that cannot be written.
    """
    folders = [one.folder(home) for one in wanted.values()]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for folder in sorted(folders):  # in one order, so that nobody waits in a circle
                stack.enter_context(FileLock(_lock(folder)))
            absent = [name for name, one in wanted.items() if not _whole(one.folder(home))]
            needed = sum(wanted[name].nbytes for name in absent)
            if maximum is not None:
                prune(home, maximum=maximum - needed, keep=folders)
            if absent:
                _demand_space(home, needed)
                _keep(home, {name: wanted[name] for name in absent}, compute(absent))
            return {name: _opened(one, one.folder(home)) for name, one in wanted.items()}
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EPERM):
            raise
        raise TrainingError(
            f"{home}: hidden states of frozen layers cannot be kept there ({error.strerror}): make "
            "room, or set finetuning.cache.dtype to none, which computes them every epoch"
        ) from None


def prune(home: Path, *, maximum: int, keep: Iterable[Path]) -> None:
    """Remove what was kept longest ago, and drafts that a killed process left, until all takes at most
    `maximum` bytes; `keep` stays in any case, and so does what somebody fills or opens just now."""
    held, room = set(keep), maximum
    folders = sorted((path for path in home.iterdir() if path.is_dir()), key=_age)
    for path in sorted(folders, key=lambda path: path not in held):
        if path in held:
            room -= _size(path)
            continue
        with suppress(Timeout), FileLock(_lock(path), timeout=0):
            room -= _size(path)
            if room < 0 or path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)


def _lock(folder: Path) -> Path:
    """Of a folder or of its draft."""
    return folder.with_name(f"{folder.name.strip('.').partition('.')[0]}.lock")


def _age(folder: Path) -> float:
    with suppress(FileNotFoundError):
        return -folder.stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in folder.iterdir())
    return 0


def _whole(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / STATES).is_file()


def _demand_space(home: Path, needed: int) -> None:
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise TrainingError(
            f"hidden states of frozen layers take {needed / 1e6:,.0f} MB, and {place} has {free / 1e6:,.0f} "
            "MB free: make room, or set finetuning.cache.dtype to int8 or none"
        )


def _keep(home: Path, wanted: Mapping[str, Wanted], computed: Computed) -> None:
    with ExitStack() as stack:
        writers = {
            name: _Writer(stack.enter_context(files.replace_directory(one.folder(home))), one)
            for name, one in wanted.items()
        }
        for rows, states in computed:
            for name, writer in writers.items():
                writer.take(rows, states[name])
        for writer in writers.values():
            writer.close()


class _Writer:
    """Fills one folder, rows in any order."""

    def __init__(self, draft: Path, wanted: Wanted) -> None:
        self.draft, self.wanted, self.offsets = draft, wanted, _offsets(wanted.lengths)
        shape = (self.offsets[-1], wanted.width)
        self.states = np.lib.format.open_memmap(draft / STATES, "w+", wanted.dtype, shape)
        _reserve(draft / STATES)
        self.scales = np.ones((shape[0], 1), dtype=np.float32) if wanted.dtype == "int8" else None

    def take(self, rows: Sequence[int], hidden: Tensor) -> None:
        values = hidden.detach().float().cpu().numpy()
        for row, value in zip(rows, values, strict=True):
            start, stop = self.offsets[row], self.offsets[row + 1]
            self.states[start:stop] = self._stored(value[: stop - start], start, stop)

    def _stored(self, value: NDArray[np.float32], start: int, stop: int) -> NDArray[Any]:
        """`value` (tokens, width) as it is kept; int8 with one scale a token, its largest / 127."""
        if self.scales is not None:
            scale = np.maximum(np.abs(value).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
            self.scales[start:stop] = scale
            small: NDArray[Any] = np.rint(value / scale).astype(np.int8)
            return small
        with np.errstate(over="ignore"):
            kept = value.astype(self.wanted.dtype)
        if np.isfinite(value).all() and not np.isfinite(kept).all():
            raise TrainingError(
                f"a hidden state of {np.abs(value).max():.3g} is too large for {self.wanted.dtype}: set "
                "finetuning.cache.dtype to float32"
            )
        result: NDArray[Any] = kept
        return result

    def close(self) -> None:
        self.states.flush()
        if self.scales is not None:
            np.save(self.draft / SCALES, self.scales)
        files.write_text(self.draft / MANIFEST, files.canonical_json(dict(self.wanted.depends)))


def _reserve(path: Path) -> None:
    """Take the disk's room now, with an error where there is none: later, writing to mapped memory would end
    the process."""
    with path.open("r+b") as stream:
        if size := os.fstat(stream.fileno()).st_size:
            os.posix_fallocate(stream.fileno(), 0, size)


def _opened(wanted: Wanted, folder: Path) -> Boundary:
    """Raises TrainingError where the folder holds the states of something else, which its name rules out
    unless somebody moved it."""
    depends = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    offsets = _offsets(wanted.lengths)
    states = np.load(folder / STATES, mmap_mode="r")
    fits = states.shape == (offsets[-1], wanted.width) and states.dtype == np.dtype(wanted.dtype)
    if depends != json.loads(files.canonical_json(dict(wanted.depends))) or not fits:
        raise TrainingError(f"{folder} holds hidden states of another model or other rows: remove it")
    os.utime(folder)  # kept longest ago means unused longest
    scales = np.load(folder / SCALES) if wanted.dtype == "int8" else None
    return Boundary(states, scales, offsets)


def _offsets(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))
