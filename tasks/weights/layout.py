"""Where the bytes of every tensor will stand: their order, the files that they are divided into, the headers.

Format: https://github.com/huggingface/safetensors#format; the names of several files and of their index are
those that transformers and huggingface_hub give.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.weights.formats import SINGLE
from tasks.weights.formats.entries import BITS
from tasks.weights.ops import Range
from tasks.weights.plan import Move, Plan

ALIGNMENT = 4096  # bytes; data at the same place of a page can share extents on file systems that know how
ITEM = 8  # bytes; to a multiple of which data must start


@dataclass(frozen=True)
class Shard:
    """One file of the output: its name, its header, and whose bytes follow."""

    name: str
    header: bytes
    moves: tuple[Move, ...]

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(map(_bytes, self.moves))


def shards(plan: Plan, metadata: Mapping[str, str], *, largest: int | None = None) -> tuple[Shard, ...]:
    """The files of the output, each with `metadata` in its header.

    largest: bytes of a file, header included; a tensor that does not fit has one to itself. None: one file.
    """
    groups = _divided(arrange(plan), metadata, largest)
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    return tuple(
        Shard(SINGLE if len(groups) == 1 else name, _header(moves, metadata), tuple(moves))
        for name, moves in zip(names, groups, strict=True)
    )


def index(shards: Sequence[Shard]) -> dict[str, Any]:
    """What model.safetensors.index.json says of several files."""
    weight_map = {move.target: shard.name for shard in shards for move in shard.moves}
    total = sum(_bytes(move) for shard in shards for move in shard.moves)
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def arrange(plan: Plan) -> list[Move]:
    """Moves in the order of the output's bytes.

    Widest dtype first, which keeps every tensor aligned to its own items; then as the source has them, so
    that neighbours are copied in one piece; then what is initialised.
    """

    def key(move: Move) -> tuple[int, bool, str, int, int]:
        first = _first(move)
        return (
            -BITS[move.dtype],
            first is None,
            first.file.name if first else "",
            first.start if first else 0,
            move.part,
        )

    return sorted(plan.moves, key=key)


def _first(move: Move) -> Range | None:
    """Where its bytes begin in the source, or those of what it is made from."""
    ranges = move.step.ranges()
    if ranges and ranges[move.part]:
        return ranges[move.part][0]
    return Range(move.source.file, move.source.start, move.source.stop) if move.source else None


def _divided(layout: list[Move], metadata: Mapping[str, str], largest: int | None) -> list[list[Move]]:
    """Neighbours together while their file stays within `largest` bytes, however its header is padded."""
    if largest is None:
        return [layout]
    end = sum(map(_bytes, layout))  # no offset has more digits
    opening = 8 + len(_text(_opening(metadata))) + ALIGNMENT
    groups: list[list[Move]] = []
    size = 0
    for move in layout:
        more = _bytes(move) + len(_text({move.target: _fields(move, end)}))
        if not groups or size + more > largest:
            groups.append([])
            size = opening
        groups[-1].append(move)
        size += more
    return groups or [[]]


def _header(layout: Sequence[Move], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces (as the format allows) until the data starts where it should."""
    fields, start = _opening(metadata), 0
    for move in layout:
        fields[move.target] = _fields(move, start)
        start += _bytes(move)
    text = _text(fields)
    text += b" " * ((_place_in_page(layout) - 8 - len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _opening(metadata: Mapping[str, str]) -> dict[str, Any]:
    return {"__metadata__": dict(sorted({"format": "pt", **metadata}.items()))}


def _fields(move: Move, start: int) -> dict[str, Any]:
    offsets = [start, start + _bytes(move)]
    return {"dtype": move.dtype, "shape": list(move.shape), "data_offsets": offsets}


def _text(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def _place_in_page(layout: Sequence[Move]) -> int:
    """Where in a page the data starts: where the source's does, if items are aligned there."""
    first = next((found for move in layout if (found := _first(move))), None)
    return first.start % ALIGNMENT if first and first.start % ITEM == 0 else 0


def _bytes(move: Move) -> int:
    return math.prod(move.shape) * BITS[move.dtype] // 8
