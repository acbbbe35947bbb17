"""Read a checkpoint's directory without running it: names, shapes and byte ranges, and nothing else.

The safetensors header is parsed here, more strictly than the format's own library does (which takes
duplicate names, extra fields and names with control characters). Files that can hold code are refused;
nothing here or below it unpickles. Only the standard library is imported, so a plan costs milliseconds.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
LONGEST_HEADER = 100_000_000  # bytes; the limit of the format's own library
LONGEST_NAME = 512
LARGEST_DIMENSION = 2**40  # an empty tensor may claim any other dimension; none is this large
SHOWN = 12  # faults of one file that an error lists
REMEDY = "write it again with transformers' save_pretrained(), which makes model.safetensors"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint: its bytes are `file[start:stop]`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A directory's tensors by name and its config; no tensor is in memory."""

    directory: Path
    entries: Mapping[str, TensorEntry]
    config: Mapping[str, Any]


def open_checkpoint(directory: Path) -> Checkpoint:
    """The checkpoint in `directory`: config.json with model.safetensors or a sharded index.

    Raises CheckpointError naming what stands there instead: nothing, a pickle, a git-LFS pointer, a web
    page, a torn file, an index that does not agree with its shards.
    """
    if directory.is_file():
        raise CheckpointError(_not_a_directory(directory))
    if not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist: give the directory that holds {SINGLE}")
    entries = _entries(directory)
    return Checkpoint(directory, entries, _config(directory / CONFIG))


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
        _refuse_impostors(path, opening, size)
        length = struct.unpack("<Q", opening[:8])[0]
        _check_length(path, length, size)
        stream.seek(8)
        header = _parse(path, stream.read(length))
    entries, faults = _account(path, header, 8 + length)
    faults += _gaps(entries, 8 + length, size)
    _raise(path, faults)
    return {entry.name: entry for entry in entries}


def _entries(directory: Path) -> Mapping[str, TensorEntry]:
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists():
        raise CheckpointError(f"{directory} holds both {SINGLE} and {INDEX}: remove the one that is stale")
    if single.exists():
        return read_header(single)
    if index.exists():
        return _read_shards(index)
    raise CheckpointError(_nothing_readable(directory))


def _not_a_directory(path: Path) -> str:
    if path.suffix in PICKLES:
        return _pickle_refused(path)
    return f"{path} is a file: give the directory that holds it and its {CONFIG}"


def _nothing_readable(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if pickles:
        return _pickle_refused(directory / pickles[0])
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return f"{directory} holds {', '.join(others)} but no {SINGLE}: a part or an adapter is no checkpoint"
    return f"{directory} holds no {SINGLE}; it holds {', '.join(names) or 'nothing'}"


def _pickle_refused(path: Path) -> str:
    return (
        f"{path} is a pickle: opening it would run whatever code it carries, so it was refused and nothing "
        f"in it was read. Where you trust it, {REMEDY}"
    )


def _refuse_impostors(path: Path, opening: bytes, size: int) -> None:
    """Say what stands at `path` if it is a well-known something else."""
    if size < 8:
        raise CheckpointError(
            f"{path} is {'empty' if not size else f'only {size} bytes long'}: fetch it again"
        )
    if opening.startswith(b"version https://git-lfs.github.com/spec/"):
        raise CheckpointError(
            f"{path} is a git-LFS pointer, not the file ({_lfs(opening)}): run `git lfs pull`"
        )
    if opening.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(f"{path} is a web page, not weights: the download was refused; fetch it again")
    if opening.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and not (
        opening[8:9] == b"{"
    ):
        raise CheckpointError(_pickle_refused(path))


def _lfs(opening: bytes) -> str:
    fields = dict(
        line.split(" ", 1) for line in opening.decode("ascii", "replace").splitlines() if " " in line
    )
    return f"oid {fields.get('oid', 'unknown')}, {fields.get('size', 'unknown')} bytes"


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
    return _json_object(header, f"{path}: the header")


def _json_object(data: bytes, name: str) -> Mapping[str, Any]:
    """A JSON object in which no key stands twice. Raises CheckpointError that begins with `name`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not usable JSON: {error or type(error).__name__}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in value if names.count(name) > 1)!r} stands in it twice")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _account(path: Path, header: Mapping[str, Any], origin: int) -> tuple[list[TensorEntry], list[str]]:
    """Entries in the order of their bytes, and a sentence for each that is not well formed."""
    entries, faults = [], list(_metadata_faults(header))
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        fault = _name_fault(name) or _field_fault(fields)
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


def _name_fault(name: str) -> str | None:
    if not name or len(name) > LONGEST_NAME:
        return f"a name must have 1 to {LONGEST_NAME} characters, not {len(name)}"
    if not name.isprintable():
        return "its name holds control characters"
    if re.search(r"[/\\]|\.\.", name):
        return "its name looks like a path"
    return None


def _field_fault(fields: Any) -> str | None:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        return "it must have dtype, shape and data_offsets, and nothing else"
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype not in BITS:
        return f"unknown dtype {dtype!r}"
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        return f"shape {shape!r} and data_offsets {offsets!r} must be lists of whole numbers"
    if any(dimension > LARGEST_DIMENSION for dimension in shape):
        return f"shape {shape} is beyond anything that exists"
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


def _read_shards(index: Path) -> Mapping[str, TensorEntry]:
    """Every tensor of a sharded checkpoint; index and shards must tell the same story."""
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    _raise(index, [fault for shard in shards if (fault := _shard_fault(index.parent, shard))])
    held = {shard: read_header(index.parent / shard) for shard in shards}
    _raise(index, list(_disagreements(weight_map, held)))
    return {name: held[shard][name] for name, shard in weight_map.items()}


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = _json_object(index.read_bytes(), str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: write the checkpoint again with save_pretrained()")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names")
    return weight_map


def _shard_fault(directory: Path, shard: str) -> str | None:
    if re.search(r"[/\\:]", shard) or shard in ("", ".", ".."):
        return f"shard {shard!r} points outside the checkpoint's directory and was not opened"
    if not shard.endswith(".safetensors"):
        return f"shard {shard!r} is no .safetensors file and was not opened"
    if not (directory / shard).is_file():
        return f"shard {shard!r} is missing"
    return None


def _disagreements(
    weight_map: Mapping[str, str], held: Mapping[str, Mapping[str, TensorEntry]]
) -> Iterator[str]:
    for name, shard in weight_map.items():
        if name not in held[shard]:
            yield f"tensor {name!r} should be in {shard} and is not"
    for shard, entries in held.items():
        for name in entries:
            if weight_map.get(name) != shard:
                yield f"tensor {name!r} of {shard} is {_elsewhere(weight_map.get(name))} in the index"


def _elsewhere(shard: str | None) -> str:
    return f"said to be in {shard}" if shard else "not"


def _config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: without it nobody knows what model the tensors make up")
    data = path.read_bytes()
    _refuse_impostors(path, data[:512], len(data))
    config = _json_object(data, str(path))
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path} has no model_type: copy the config.json that belongs to these weights")
    return config


def _raise(path: Path, faults: list[str]) -> None:
    if faults:
        rest = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise CheckpointError(f"{path} is not usable:\n" + "\n".join(f"- {x}" for x in faults[:SHOWN] + rest))
