"""What every reader of a checkpoint gives: names, shapes, dtypes, and where their bytes are."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

FLOATING = ("BF16", "F16", "F32", "F64")  # narrowest first; eight-bit floats need scales that no rule carries

LONGEST_NAME = 512
LARGEST_DIMENSION = 2**40  # an empty tensor may claim any other dimension; none is this large
MOST_DIMENSIONS = 32
SHOWN = 12  # faults of one file that an error lists


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint: its bytes are `file[start:stop]`, little-endian, C-contiguous.

    Where they are not (compressed, quantised, strided), `decoded` makes them: unsigned integers as wide as
    an item of `dtype` (F32 as <u4), in `shape`; `start` and `stop` then only say where they come from.
    """

    name: str
    dtype: str  # in safetensors' spelling
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int
    decoded: "Callable[[], NDArray[Any]] | None" = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name and what their directory or file says of them; no tensor is in memory.

    config: of config.json; else what the file itself tells, which may be nothing.
    parts: in how many every tensor is, each named by its number and a colon: `0:norm.weight`.
    """

    directory: Path
    entries: Mapping[str, TensorEntry]
    config: Mapping[str, Any]
    format: str = "safetensors"  # or "torch", "gguf", "numpy", "llama2.c", "flax", "keras"
    parts: int = 1


def json_object(data: bytes, name: str) -> Mapping[str, Any]:
    """A JSON object of finite numbers and whole characters in which no key stands twice.

    Raises CheckpointError that begins with `name`.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if b"\\u" in data:
            _refuse_halves(value)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not usable JSON: {error or type(error).__name__}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name[:LONGEST_NAME]!r} stands in it twice")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:80]} is beyond any number")
    return number


def _refuse_halves(value: Any) -> None:
    """A lone surrogate, which JSON can spell but no file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object[error.start]!a} is half of a character") from None


def name_fault(name: str) -> str | None:
    if not name or len(name) > LONGEST_NAME:
        return f"a name must have 1 to {LONGEST_NAME} characters, not {len(name)}"
    if not name.isprintable():
        return "its name holds control characters"
    if re.search(r"[/\\]|\.\.", name):
        return "its name looks like a path"
    return None


def shape_fault(shape: tuple[int, ...]) -> str | None:
    if any(dimension < 0 for dimension in shape):
        return f"shape {shape} has a negative dimension"
    if len(shape) > MOST_DIMENSIONS or any(dimension > LARGEST_DIMENSION for dimension in shape):
        return (
            f"a shape of {len(shape)} dimensions, the largest {max(shape):,}, is beyond anything that exists"
        )
    return None


def refuse(path: Path, faults: list[str], remedy: str = "") -> None:
    """Raises CheckpointError listing the first faults, with the remedy below, if there is any fault."""
    if faults:
        rest = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        lines = [f"{path} is not usable:", *(f"- {fault}" for fault in faults[:SHOWN] + rest), remedy]
        raise CheckpointError("\n".join(lines).rstrip())
