"""Ops on a list of tensors as a list: in another order, or a group at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from tasks.weights.ops import Arrays, Op, Ranges, Shape, exactly

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True)
class Order(Op):
    """The tensors `places`, in this order; every one stands there once."""

    places: tuple[int, ...]
    verb: ClassVar[str] = "permuted"

    def __str__(self) -> str:
        return f"order({len(self.places)} tensors)"

    def __post_init__(self) -> None:
        if sorted(self.places) != list(range(len(self.places))):
            raise ValueError(f"{self.places} does not name each of {len(self.places)} tensors once")

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        return self._ordered(exactly(len(self.places), given, self))

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        return self._ordered(given)

    def inverse(self) -> Op:
        return Order(tuple(sorted(range(len(self.places)), key=self.places.__getitem__)))

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        return self._ordered(given)

    def _ordered(self, given: Sequence[T]) -> list[T]:
        return [given[place] for place in self.places]


@dataclass(frozen=True)
class Parts(Op):
    """Each of `ops` at work on as many tensors as stand in the same place of `counts`."""

    ops: tuple[Op, ...]
    counts: tuple[int, ...]
    verb: ClassVar[str] = "permuted"

    def __str__(self) -> str:
        return f"each({'; '.join(map(str, self.ops))})"

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        return [shape for op, part in self._parts(given) for shape in op.shapes(part)]

    def forward(self, given: Arrays, dtype: str) -> "list[NDArray[Any]]":
        return [array for op, part in self._parts(given) for array in op.forward(part, dtype)]

    def inverse(self) -> Op:
        """Only for ops that make as many tensors as they take. Raises ValueError for a lossy one."""
        return Parts(tuple(op.inverse() for op in self.ops), self.counts)

    def ranges(self, given: Sequence[Ranges], shapes: Sequence[Shape], dtype: str) -> list[Ranges] | None:
        found: list[Ranges] = []
        for (op, part), (_, sizes) in zip(self._parts(given), self._parts(shapes), strict=True):
            if (made := op.ranges(part, sizes, dtype)) is None:
                return None
            found += made
        return found

    def _parts(self, given: Sequence[T]) -> Iterator[tuple[Op, Sequence[T]]]:
        if len(given) != sum(self.counts):
            raise ValueError(f"{self} takes {sum(self.counts)} tensors, not {len(given)}")
        edges = pairwise([0, *accumulate(self.counts)])
        return ((op, given[start:stop]) for op, (start, stop) in zip(self.ops, edges, strict=True))
