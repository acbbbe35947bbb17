"""The checkpoints of llama2.c: seven numbers, then every tensor as float32, with nothing between.

Format: `legacy_export` of export.py and `memory_map_weights` of run.c, github.com/karpathy/llama2.c.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import Checkpoint, TensorEntry

HEADER = struct.Struct("<7i")
WIDTH = 4  # bytes of an item
NEWER = b"24ka"  # "ak42", the magic number of versions 1 and 2
DEEPEST = 1024  # layers
Piece = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """The header's numbers by their names in run.c."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared: bool = field(default=True)  # one table for tokens and classifier


def is_llama2c(opening: bytes) -> bool:
    """Whether a file begins with seven numbers that could describe a model."""
    return opening.startswith(NEWER) or _sizes(opening) is not None


def read(path: Path) -> Checkpoint:
    """Every tensor of a llama2.c file, one for each layer; names as in its model.py.

    Raises CheckpointError where the sizes in the header do not account for every byte.
    """
    with path.open("rb") as stream:
        opening = stream.read(HEADER.size)
    sizes = _sizes(opening)
    if sizes is None:
        raise CheckpointError(
            f"{path} is not a llama2.c file of version 0: write it with `export.py --version 0`"
        )
    told = HEADER.size + sum(WIDTH * math.prod(shape) for _, shape in _layout(sizes))
    if told != (size := path.stat().st_size):
        raise CheckpointError(
            f"{path} looks like a llama2.c file: its header tells of {told:,} bytes, the file has {size:,}; "
            "fetch it again"
        )
    return Checkpoint(path.parent, _entries(path, sizes), vars(sizes), "llama2.c")


def _entries(path: Path, sizes: Sizes) -> Mapping[str, TensorEntry]:
    entries, end = {}, HEADER.size
    for name, shape in _layout(sizes):
        start, end = end, end + WIDTH * math.prod(shape)
        entries[name] = TensorEntry(name, "F32", shape, path, start, end)
    return entries


def _sizes(opening: bytes) -> Sizes | None:
    if len(opening) < HEADER.size:
        return None
    dim, hidden, layers, heads, key_heads, words, length = HEADER.unpack(opening[: HEADER.size])
    if min(dim, hidden, layers, heads, key_heads, abs(words), length) < 1 or layers > DEEPEST:
        return None
    if dim % (2 * heads) or heads % key_heads:
        return None
    return Sizes(dim, hidden, layers, heads, key_heads, abs(words), length, words > 0)


def _layout(sizes: Sizes) -> Iterator[Piece]:
    """Names and shapes in the order of the file: all layers of one tensor, then of the next."""
    dim, layers, head = sizes.dim, range(sizes.n_layers), sizes.dim // sizes.n_heads
    keys = head * sizes.n_kv_heads
    shapes: Mapping[str, tuple[int, ...]] = {
        "attention_norm": (dim,),
        "attention.wq": (dim, dim),
        "attention.wk": (keys, dim),
        "attention.wv": (keys, dim),
        "attention.wo": (dim, dim),
        "ffn_norm": (dim,),
        "feed_forward.w1": (sizes.hidden_dim, dim),
        "feed_forward.w2": (dim, sizes.hidden_dim),
        "feed_forward.w3": (sizes.hidden_dim, dim),
    }
    yield "tok_embeddings.weight", (sizes.vocab_size, dim)
    for name, shape in shapes.items():
        yield from ((f"layers.{layer}.{name}.weight", shape) for layer in layers)
    yield "norm.weight", (dim,)
    yield "freqs.cos", (sizes.seq_len, head // 2)
    yield "freqs.sin", (sizes.seq_len, head // 2)
    if not sizes.shared:
        yield "output.weight", (sizes.vocab_size, dim)
