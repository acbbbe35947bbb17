"""Read a checkpoint without running it: names, shapes and byte ranges, and nothing else.

Nothing here unpickles. Only the standard library is imported until a tensor must be decoded or an .npz read,
so a plan costs milliseconds.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import Checkpoint as Checkpoint
from tasks.weights.formats.entries import TensorEntry as TensorEntry
from tasks.weights.formats.entries import json_object
from tasks.weights.formats.header import read_header
from tasks.weights.formats.impostors import inside, read_text
from tasks.weights.formats.index import read_shards
from tasks.weights.formats.parts import find_parts, read_parts
from tasks.weights.formats.recognise import read_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_SINGLE = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
CONFIG = "config.json"
PARAMS = "params.json"  # what Meta writes beside Llama's weights
LARGEST_CONFIG = 16 * 2**20  # bytes
READABLE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".npz", ".msgpack", ".h5")


def open_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """The checkpoint at `path`: a directory with config.json or params.json and weights, or one file of
    weights.

    Of a directory: model.safetensors or its sharded index, else pytorch_model.bin or its index, else
    consolidated.00.pth and those that follow, else the only .pt or .pth beside a params.json. Of a file:
    what it tells of itself, else the config.json beside it, else the params.json, else nothing.
    key: of the dict of tensors in a PyTorch file that holds several.
    Raises CheckpointError naming what stands there instead: nothing, a pickle, a git-LFS pointer, a web
    page, a torn file, a link out of the directory, an index that does not agree with its shards.
    """
    try:
        return _directory(path, key) if path.is_dir() else _file(path, key)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def together(checkpoints: Mapping[str, Checkpoint]) -> dict[str, TensorEntry]:
    """The tensors of several checkpoints, each name behind its checkpoint's and a colon: `one:wte.weight`."""
    return {
        f"{name}:{entry.name}": replace(entry, name=f"{name}:{entry.name}")
        for name, checkpoint in checkpoints.items()
        for entry in checkpoint.entries.values()
    }


def _directory(directory: Path, key: str | None) -> Checkpoint:
    found = _weights(directory, key)
    return replace(found, directory=directory, config=_declared(directory))


def _file(path: Path, key: str | None) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the directory that holds {SINGLE}, or a file")
    found = read_file(path, key)
    return found if found.config else replace(found, config=_beside(path.parent))


def _weights(directory: Path, key: str | None) -> Checkpoint:
    if _one_of(directory, SINGLE, INDEX):
        if (directory / SINGLE).exists():
            return Checkpoint(directory, read_header(inside(directory, SINGLE)), {})
        index = inside(directory, INDEX)
        return Checkpoint(directory, read_shards(index, suffix=".safetensors", read=read_header), {})
    if _one_of(directory, TORCH_SINGLE, TORCH_INDEX):
        if (directory / TORCH_SINGLE).exists():
            return read_file(inside(directory, TORCH_SINGLE), key)
        read = partial(_shard, key=key)
        return Checkpoint(
            directory, read_shards(inside(directory, TORCH_INDEX), suffix=".bin", read=read), {}, "torch"
        )
    if parts := find_parts(directory):
        return read_parts(directory, parts, partial(_shard, key=key))
    if alone := _alone(directory):
        return read_file(inside(directory, alone), key)
    raise CheckpointError(_nothing_readable(directory))


def _one_of(directory: Path, single: str, index: str) -> bool:
    """Whether there is one of the two. Raises CheckpointError if there are both."""
    found = [name for name in (single, index) if (directory / name).exists()]
    if len(found) > 1:
        raise CheckpointError(f"{directory} holds both {single} and {index}: remove the one that is stale")
    return bool(found)


def _alone(directory: Path) -> str | None:
    """The only file of PyTorch's weights beside a params.json, which tells what model they are of."""
    names = [path.name for path in directory.iterdir() if path.suffix in (".pt", ".pth")]
    return names[0] if len(names) == 1 and (directory / PARAMS).exists() else None


def _shard(path: Path, key: str | None) -> Mapping[str, TensorEntry]:
    return read_file(path, key).entries


def _nothing_readable(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    files = [name for name in names if Path(name).suffix in READABLE]
    if files:
        return f"{directory} holds no {SINGLE}; to read {' or '.join(files)}, give the path of that file"
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return f"{directory} holds {', '.join(others)} but no {SINGLE}: a part or an adapter is no checkpoint"
    return f"{directory} holds no {SINGLE}; it holds {', '.join(names) or 'nothing'}"


def _declared(directory: Path) -> Mapping[str, Any]:
    if not any((directory / name).exists() for name in (CONFIG, PARAMS)):
        raise CheckpointError(
            f"{directory / CONFIG} is missing: without it nobody knows what model the tensors make up"
        )
    return _beside(directory)


def _beside(directory: Path) -> Mapping[str, Any]:
    found = [name for name in (CONFIG, PARAMS) if (directory / name).exists()]
    return _config(directory, found[0]) if found else {}


def _config(directory: Path, name: str) -> Mapping[str, Any]:
    path = inside(directory, name)
    return json_object(read_text(path, most=LARGEST_CONFIG), str(path))
