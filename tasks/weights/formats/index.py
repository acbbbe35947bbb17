"""A checkpoint in several files: its index and its shards must tell the same story."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import TensorEntry, json_object, refuse
from tasks.weights.formats.impostors import escape_fault, read_text

LARGEST = 100_000_000  # bytes, as of a shard's own header
Reader = Callable[[Path], Mapping[str, TensorEntry]]


def read_shards(index: Path, *, suffix: str, read: Reader) -> Mapping[str, TensorEntry]:
    """Every tensor of a sharded checkpoint.

    suffix, read: of the shards' names, and what reads one of them.
    Raises CheckpointError where index and shards disagree, or a shard is not a file beside the index.
    """
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    refuse(index, [fault for shard in shards if (fault := _shard_fault(index.parent, shard, suffix))])
    held = {shard: read(index.parent / shard) for shard in shards}
    refuse(index, list(_disagreements(weight_map, held)))
    return {name: held[shard][name] for name, shard in weight_map.items()}


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = json_object(read_text(index, most=LARGEST), str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: write the checkpoint again with save_pretrained()")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names")
    return weight_map


def _shard_fault(directory: Path, shard: str, suffix: str) -> str | None:
    if re.search(r"[/\\:\0]", shard) or shard in ("", ".", ".."):
        return f"shard {shard!r} points outside the checkpoint's directory and was not opened"
    if not shard.endswith(suffix):
        return f"shard {shard!r} is no {suffix} file and was not opened"
    if not (directory / shard).is_file():
        return f"shard {shard!r} is missing"
    return escape_fault(directory / shard, directory)


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
