"""Read a checkpoint without running it: names, shapes and byte ranges, and nothing else.

Nothing here unpickles. Only the standard library is imported for safetensors, so a plan costs milliseconds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import Checkpoint as Checkpoint
from tasks.weights.formats.entries import TensorEntry as TensorEntry
from tasks.weights.formats.entries import json_object
from tasks.weights.formats.header import read_header
from tasks.weights.formats.impostors import PICKLES, pickle_refused, refuse_impostors
from tasks.weights.formats.index import read_shards

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


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


def _entries(directory: Path) -> Mapping[str, TensorEntry]:
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists():
        raise CheckpointError(f"{directory} holds both {SINGLE} and {INDEX}: remove the one that is stale")
    if single.exists():
        return read_header(single)
    if index.exists():
        return read_shards(index)
    raise CheckpointError(_nothing_readable(directory))


def _not_a_directory(path: Path) -> str:
    if path.suffix in PICKLES:
        return pickle_refused(path)
    return f"{path} is a file: give the directory that holds it and its {CONFIG}"


def _nothing_readable(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if pickles:
        return pickle_refused(directory / pickles[0])
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return f"{directory} holds {', '.join(others)} but no {SINGLE}: a part or an adapter is no checkpoint"
    return f"{directory} holds no {SINGLE}; it holds {', '.join(names) or 'nothing'}"


def _config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: without it nobody knows what model the tensors make up")
    data = path.read_bytes()
    refuse_impostors(path, data[:512], len(data))
    config = json_object(data, str(path))
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path} has no model_type: copy the config.json that belongs to these weights")
    return config
