"""What may happen to tensors on their way from one checkpoint to another.

An op takes a list of tensors to a list of tensors. It tells their shapes before a byte is read, makes them,
says how it is undone, and, where it only moves whole runs of bytes, which runs: those are copied from file to
file and never come into memory. Tensors travel as raw items (bfloat16 as uint16); no op guesses from a shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from tasks.weights.formats.entries import BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays: TypeAlias = "Sequence[NDArray[Any]]"
Shape = tuple[int, ...]
VERBS = (  # what became of a tensor, the lightest first
    "copied", "renamed", "reshaped", "sliced", "split", "merged", "padded", "replicated", "permuted",
    "transposed", "scaled", "averaged", "redrawn", "cast",
)  # fmt: skip


class Range(NamedTuple):
    """`file[start:stop]`."""

    file: Path
    start: int
    stop: int


Ranges = tuple[Range, ...]


@dataclass(frozen=True)
class Op:
    """Nothing changes but, perhaps, a name."""

    verb: ClassVar[str] = "copied"
    lossy: ClassVar[bool] = False  # whether what it did cannot be undone bit for bit

    def __str__(self) -> str:
        fields = ", ".join(f"{value}" for value in vars(self).values())
        return f"{type(self).__name__.lower()}({fields})" if fields else type(self).__name__.lower()

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        """Raises ValueError with the shapes that do not fit."""
        return list(given)

    def dtype(self, given: str) -> str:
        return given

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        """`given` as raw items of `dtype`, all of one dtype."""
        return list(given)

    def inverse(self) -> "Op":
        """Raises ValueError for a lossy op."""
        if self.lossy:
            raise ValueError(f"{self} cannot be undone")
        return self

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        """The bytes of what it makes as runs of the bytes of `given`; None where they are not."""
        return list(given)


@dataclass(frozen=True)
class _Each(Op):
    """An op that treats every tensor alike, and rearranges what is inside it."""

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        return [self._shape(shape) for shape in given]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        return [self._array(array) for array in given]

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return None

    def _shape(self, shape: Shape) -> Shape:
        raise NotImplementedError

    def _array(self, array: "NDArray[Any]") -> "NDArray[Any]":
        raise NotImplementedError


@dataclass(frozen=True)
class Transpose(_Each):
    """Axes in reverse order: rows become columns, and a vector, such as their bias, stays what it is."""

    verb: ClassVar[str] = "transposed"

    def _shape(self, shape: Shape) -> Shape:
        return shape[::-1]

    def _array(self, array: "NDArray[Any]") -> "NDArray[Any]":
        return array.T

    def inverse(self) -> Op:
        return self

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return list(given) if all(len(shape) < 2 for shape in shapes) else None


@dataclass(frozen=True)
class Permute(_Each):
    """Axes in another order, as in torch.permute."""

    axes: tuple[int, ...]
    verb: ClassVar[str] = "transposed"

    def _shape(self, shape: Shape) -> Shape:
        if len(shape) != len(self.axes):
            raise ValueError(f"{shape} has not the {len(self.axes)} axes that {self} permutes")
        return tuple(shape[axis] for axis in self.axes)

    def _array(self, array: "NDArray[Any]") -> "NDArray[Any]":
        return array.transpose(self.axes)

    def inverse(self) -> Op:
        return Permute(tuple(self.axes.index(axis) for axis in range(len(self.axes))))


@dataclass(frozen=True)
class Reshape(_Each):
    """The same items in the same order, `before` one shape and `after` it another."""

    before: Shape
    after: Shape
    verb: ClassVar[str] = "reshaped"

    def __post_init__(self) -> None:
        if math.prod(self.before) != math.prod(self.after):
            raise ValueError(f"{self.before} and {self.after} do not hold as many items")

    def _shape(self, shape: Shape) -> Shape:
        if shape != self.before:
            raise ValueError(f"{shape} is not the {self.before} that {self} takes")
        return self.after

    def _array(self, array: "NDArray[Any]") -> "NDArray[Any]":
        return array.reshape(self.after)

    def inverse(self) -> Op:
        return Reshape(self.after, self.before)

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return list(given)


@dataclass(frozen=True)
class Rotary(_Each):
    """Rows of each head from pairs (2i, 2i + 1) to halves (i, i + dimension / 2), as transformers rotates.

    The original Llama turns neighbouring rows together (Su et al., 2021, RoFormer); `heads` are those of this
    tensor: fewer for keys where queries share them.
    """

    heads: int
    halves: bool = True  # what it makes; False: back to pairs
    verb: ClassVar[str] = "permuted"

    def _shape(self, shape: Shape) -> Shape:
        if not shape or shape[0] % (2 * self.heads):
            raise ValueError(f"{shape} does not divide into {self.heads} heads of pairs")
        return shape

    def _array(self, array: "NDArray[Any]") -> "NDArray[Any]":
        pairs, rest = array.shape[0] // self.heads // 2, array.shape[1:]
        split = (pairs, 2) if self.halves else (2, pairs)
        return array.reshape(self.heads, *split, *rest).swapaxes(1, 2).reshape(array.shape)

    def inverse(self) -> Op:
        return Rotary(self.heads, not self.halves)


@dataclass(frozen=True)
class Split(Op):
    """One tensor into parts of `sizes` along `axis`."""

    sizes: tuple[int, ...]
    axis: int = 0
    verb: ClassVar[str] = "split"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        (shape,) = exactly(1, given, self)
        if len(shape) <= self.axis or shape[self.axis] != sum(self.sizes):
            raise ValueError(f"{shape} does not split into {self.sizes} along axis {self.axis}")
        return [_replaced(shape, self.axis, size) for size in self.sizes]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        import numpy as np

        return np.split(given[0], list(accumulate(self.sizes))[:-1], axis=self.axis)

    def inverse(self) -> Op:
        return Concatenate(self.sizes, self.axis)

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        if self.axis:
            return None
        row = math.prod(shapes[0][1:]) * BITS[dtype] // 8
        edges = pairwise([0, *accumulate(self.sizes)])
        return [_cut(given[0], start * row, stop * row) for start, stop in edges]


@dataclass(frozen=True)
class Concatenate(Op):
    """Tensors of `sizes` along `axis`, one behind the other."""

    sizes: tuple[int, ...]
    axis: int = 0
    verb: ClassVar[str] = "merged"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        shapes = exactly(len(self.sizes), given, self)
        first = shapes[0]
        expected = (
            [_replaced(first, self.axis, size) for size in self.sizes] if len(first) > self.axis else []
        )
        if list(shapes) != expected:
            raise ValueError(f"{told(shapes)} are not of {self.sizes} along axis {self.axis}")
        return [_replaced(first, self.axis, sum(self.sizes))]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        import numpy as np

        return [np.concatenate(given, axis=self.axis)]

    def inverse(self) -> Op:
        return Split(self.sizes, self.axis)

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return None if self.axis else [tuple(run for runs in given for run in runs)]


@dataclass(frozen=True)
class Stack(Op):
    """`count` tensors of one shape as one with a new first axis."""

    count: int
    verb: ClassVar[str] = "merged"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        shapes = exactly(self.count, given, self)
        if len(set(shapes)) > 1:
            raise ValueError(f"{told(shapes)} are not of one shape")
        return [(self.count, *shapes[0])]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        import numpy as np

        return [np.stack(given)]

    def inverse(self) -> Op:
        return Unstack(self.count)

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return [tuple(run for runs in given for run in runs)]


@dataclass(frozen=True)
class Unstack(Op):
    """One tensor into the `count` that its first axis holds."""

    count: int
    verb: ClassVar[str] = "split"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        (shape,) = exactly(1, given, self)
        if not shape or shape[0] != self.count:
            raise ValueError(f"{shape} does not hold {self.count} tensors")
        return [shape[1:]] * self.count

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        return list(given[0])

    def inverse(self) -> Op:
        return Stack(self.count)

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        size = math.prod(shapes[0][1:]) * BITS[dtype] // 8
        return [_cut(given[0], number * size, (number + 1) * size) for number in range(self.count)]


@dataclass(frozen=True)
class Take(Op):
    """The parts `indices` along `axis`, in this order; the rest is lost."""

    indices: tuple[int, ...]
    axis: int = 0
    verb: ClassVar[str] = "sliced"
    lossy: ClassVar[bool] = True

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        (shape,) = exactly(1, given, self)
        if len(shape) <= self.axis or not all(0 <= index < shape[self.axis] for index in self.indices):
            raise ValueError(f"{shape} has not all of {_some(self.indices)} along axis {self.axis}")
        return [_replaced(shape, self.axis, len(self.indices))]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        return [given[0].take(self.indices, axis=self.axis)]

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        if self.axis:
            return None
        row = math.prod(shapes[0][1:]) * BITS[dtype] // 8
        runs = [run for index in self.indices for run in _cut(given[0], index * row, (index + 1) * row)]
        return [joined(runs)]


@dataclass(frozen=True)
class Pad(Op):
    """`more` zeros behind the end of `axis`, which held `size`."""

    size: int
    more: int
    axis: int = 0
    verb: ClassVar[str] = "padded"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        (shape,) = exactly(1, given, self)
        if len(shape) <= self.axis or shape[self.axis] != self.size:
            raise ValueError(f"{shape} does not hold {self.size} along axis {self.axis}")
        return [_replaced(shape, self.axis, self.size + self.more)]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        import numpy as np

        widths = [(0, self.more if axis == self.axis else 0) for axis in range(given[0].ndim)]
        return [np.pad(given[0], widths)]

    def inverse(self) -> Op:
        return Take(tuple(range(self.size)), self.axis)

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return None


@dataclass(frozen=True)
class Chain(Op):
    """One op after the other."""

    ops: tuple[Op, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.ops))

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        return reduce(lambda shapes, op: op.shapes(shapes), self.ops, list(given))

    def dtype(self, given: str) -> str:
        return reduce(lambda dtype, op: op.dtype(dtype), self.ops, given)

    @property
    def heaviest(self) -> Op:
        """The op that says what happened."""
        return max(self.ops, key=lambda op: VERBS.index(op.verb))

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        arrays = list(given)
        for op in self.ops:
            arrays, dtype = op.forward(arrays, dtype), op.dtype(dtype)
        return arrays

    def inverse(self) -> Op:
        return Chain(tuple(op.inverse() for op in reversed(self.ops)))

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        found: list[Ranges] | None = list(given)
        for op in self.ops:
            found = None if found is None else op.ranges(found, shapes, dtype)
            shapes, dtype = op.shapes(shapes), op.dtype(dtype)
        return found


def exactly(count: int, given: Sequence[Shape], op: Op) -> Sequence[Shape]:
    if len(given) != count:
        raise ValueError(f"{op} takes {count} tensors, not {len(given)}")
    return given


def _replaced(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def told(shapes: Sequence[Shape]) -> str:
    return " and ".join(map(str, shapes))


def _some(indices: Sequence[int]) -> str:
    return f"{', '.join(map(str, indices[:8]))}{', …' if len(indices) > 8 else ''}"


def _cut(runs: Ranges, start: int, stop: int) -> Ranges:
    """The bytes `start:stop` of what `runs` hold together."""
    found, before = [], 0
    for run in runs:
        size = run.stop - run.start
        low, high = max(start - before, 0), min(stop - before, size)
        if low < high:
            found.append(Range(run.file, run.start + low, run.start + high))
        before += size
    return tuple(found)


def joined(runs: Sequence[Range]) -> Ranges:
    """Neighbours as one run."""
    found: list[Range] = []
    for run in runs:
        if found and found[-1].file == run.file and found[-1].stop == run.start:
            found[-1] = Range(run.file, found[-1].start, run.stop)
        else:
            found.append(run)
    return tuple(found)
