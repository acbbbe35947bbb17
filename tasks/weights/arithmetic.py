"""Ops that calculate; those of `ops` only move items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.weights.ops import Arrays, Op, Ranges, Shape, exactly, told

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class _Calculated(Op):
    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return None


@dataclass(frozen=True)
class Cast(_Calculated):
    """Another floating dtype; a value that becomes infinite is refused."""

    to: str
    verb: ClassVar[str] = "cast"
    lossy: ClassVar[bool] = True

    def dtype(self, given: str) -> str:
        return self.to

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        """Raises ValueError with the count of values that the new dtype cannot hold."""
        from tasks.weights import values

        found = [values.items(values.numbers(array, dtype), self.to) for array in given]
        lost = sum(values.not_finite(array, self.to) for array in found)
        if lost > (before := sum(values.not_finite(array, dtype) for array in given)):
            raise ValueError(f"{lost - before:,} values do not fit into {self.to}")
        return found


@dataclass(frozen=True)
class Scale(_Calculated):
    """Every value times `factor`; undone exactly where that is a power of two."""

    factor: float
    verb: ClassVar[str] = "scaled"

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        from tasks.weights import values

        return [values.items(values.numbers(array, dtype) * self.factor, dtype) for array in given]

    def inverse(self) -> Op:
        if abs(self.factor).hex().split("p")[0] != "0x1.0000000000000":
            raise ValueError(f"{self} cannot be undone bit for bit")
        return Scale(1 / self.factor)


@dataclass(frozen=True)
class Add(_Calculated):
    """Every value plus `amount`, as norms that store their distance from one need it."""

    amount: float
    verb: ClassVar[str] = "scaled"
    lossy: ClassVar[bool] = True

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        from tasks.weights import values

        return [values.items(values.numbers(array, dtype) + self.amount, dtype) for array in given]


@dataclass(frozen=True)
class Mean(_Calculated):
    """The mean of tensors of one shape, with `weights`, as model soups and merges take it."""

    weights: tuple[float, ...]
    verb: ClassVar[str] = "averaged"
    lossy: ClassVar[bool] = True

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        shapes = exactly(len(self.weights), given, self)
        if len(set(shapes)) > 1:
            raise ValueError(f"{told(shapes)} are not of one shape")
        return [shapes[0]]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        import numpy as np

        from tasks.weights import values

        total = sum(self.weights)
        parts = zip(given, self.weights, strict=True)
        mean = sum(
            (values.numbers(array, dtype).astype("<f8") * (weight / total) for array, weight in parts),
            start=np.zeros(1),
        )
        return [values.items(mean.reshape(given[0].shape), dtype)]


@dataclass(frozen=True)
class Replicate(Op):
    """One tensor `count` times, as experts that begin as copies need it."""

    count: int
    verb: ClassVar[str] = "replicated"
    lossy: ClassVar[bool] = True

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        return list(exactly(1, given, self)) * self.count

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        return list(given) * self.count

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return list(given) * self.count


@dataclass(frozen=True)
class Redraw(_Calculated):
    """One feed-forward tensor as those of several `experts`, each with a share of `axis` drawn anew.

    Drop-Upcycling (Nakamura et al., 2025, arXiv 2502.19261): what is drawn is normal, with mean and deviation
    of what stood there. An expert's places are the same in all of its tensors, whose last word `tensor` is:
    one channel lies in three of them.
    """

    experts: tuple[str, ...]
    tensor: str
    axis: int
    share: float
    seed: int
    verb: ClassVar[str] = "redrawn"
    lossy: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"redraw({self.share:g} of axis {self.axis}, {len(self.experts)} times, seed {self.seed})"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        (shape,) = exactly(1, given, self)
        if len(shape) <= self.axis:
            raise ValueError(f"{shape} has no axis {self.axis}")
        return [shape] * len(self.experts)

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        return [self._drawn(given[0], dtype, expert) for expert in self.experts]

    def _drawn(self, array: "NDArray[Any]", dtype: str, expert: str) -> "NDArray[Any]":
        from tasks.weights import values

        size = array.shape[self.axis]
        places = values.stream(self.seed, expert).permutation(size)[: int(self.share * size)]
        made = array.swapaxes(0, self.axis).copy()
        old = values.numbers(made[places], dtype).astype("<f8")
        new = values.stream(self.seed, f"{expert}.{self.tensor}").normal(old.mean(), old.std(), old.shape)
        made[places] = values.items(new, dtype)
        return made.swapaxes(0, self.axis)


@dataclass(frozen=True)
class Biased(_Calculated):
    """A weight of a layer without bias as weight and bias: zeros, as many as `axis` of the weight is long."""

    axis: int = 0
    verb: ClassVar[str] = "padded"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        (shape,) = exactly(1, given, self)
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"{shape} has no axis {self.axis}")
        return [shape, (shape[self.axis],)]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        import numpy as np

        return [given[0], np.zeros(given[0].shape[self.axis], given[0].dtype)]

    def inverse(self) -> Op:
        return Unbiased(self.axis)


@dataclass(frozen=True)
class Unbiased(_Calculated):
    """Weight and bias as the weight alone; a bias whose bytes are not all zero is refused."""

    axis: int = 0
    verb: ClassVar[str] = "sliced"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        weight, bias = exactly(2, given, self)
        if not -len(weight) <= self.axis < len(weight) or bias != (weight[self.axis],):
            raise ValueError(f"{bias} is not the bias along axis {self.axis} of {weight}")
        return [weight]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        """Raises ValueError with the count of values that are not zero."""
        import numpy as np

        weight, bias = given
        if count := np.count_nonzero(bias):
            raise ValueError(f"{count} of {bias.size} biases are not zero: set bias to true in the config")
        return [weight]

    def inverse(self) -> Op:
        return Biased(self.axis)


@dataclass(frozen=True)
class Embed(_Calculated):
    """Rows of an embedding table by token: row i is the mean of the old rows `pieces[i]`, of all for none.

    A row of one piece is that row, bit for bit. New rows as means of what their tokens were before follows
    Hewitt, 2021, "Initializing New Word Embeddings for Pretrained Language Models".
    """

    pieces: tuple[tuple[int, ...], ...]
    verb: ClassVar[str] = "padded"
    lossy: ClassVar[bool] = True

    def __str__(self) -> str:
        kept = sum(len(old) == 1 for old in self.pieces)
        return f"embed({kept} rows as they are, {len(self.pieces) - kept} made)"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        (shape,) = exactly(1, given, self)
        highest = max((piece for old in self.pieces for piece in old), default=-1)
        if not shape or highest >= shape[0]:
            raise ValueError(f"{shape} has no row {highest}")
        return [(len(self.pieces), *shape[1:])]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        from tasks.weights import values

        old = given[0]
        made = old[[row[0] if len(row) == 1 else 0 for row in self.pieces]]
        whole = values.numbers(old, dtype).mean(axis=0, dtype="<f8")
        for place, row in enumerate(self.pieces):
            if len(row) != 1:
                rows = values.numbers(old[list(row)], dtype).mean(axis=0, dtype="<f8") if row else whole
                made[place] = values.items(rows, dtype)
        return [made]
