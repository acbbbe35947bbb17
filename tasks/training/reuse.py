"""Which frozen work a schedule can share: hidden states that stay what they are for several passes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reach:
    """How far down a phase learns: `start` is its lowest learning layer, the number of layers where only the
    head learns, None where something learns at the very bottom. `epochs`: whole passes over the rows."""

    start: int | None
    epochs: int


def shared(reaches: Sequence[Reach], layers: int) -> list[list[int]]:
    """For each phase the layers whose incoming states it has kept when it begins, its own first; none where
    it computes everything anew. What an earlier pass has left is used, whatever keeping it for one phase
    alone would be worth.
    """
    result: list[list[int]] = []
    left: set[int] = set()  # by earlier passes, and still true
    for number, reach in enumerate(reaches):
        kept = worth_keeping(reaches[number:], layers)
        if not kept and reach.start in left:
            kept = [reach.start]
        result.append(sorted(kept, key=lambda start: start != reach.start))
        left = {start for start in left.union(kept) if reach.start is not None and start <= reach.start}
    return result


def worth_keeping(reaches: Sequence[Reach], layers: int) -> list[int]:
    """The layers whose incoming states one pass at the beginning of the first of `reaches` should keep.

    They serve that phase and every later one above which nothing has learned lower down until then. Keeping
    pays where states are used in more than one epoch, or where the pass is made anyway for the head's sake,
    whose states cost nothing to keep.
    Empty where the first phase does not gain by it.
    """
    epochs: Counter[int] = Counter()
    lowest = layers
    for reach in reaches:
        if reach.start is None:
            break
        if reach.start <= lowest:
            epochs[reach.start] += reach.epochs
        lowest = min(lowest, reach.start)
    passing = epochs[layers] > 0
    paying = [start for start in epochs if epochs[start] > 1 or passing]
    return paying if reaches and reaches[0].start in paying else []


def kept(
    reaches: Sequence[Reach], layers: int, size: Callable[[int], int], *, dtype: str, maximum: int
) -> list[list[int]]:
    """`shared`, of that what may be kept: states whose `size` in bytes fits `maximum` together, a phase's own
    first, and with dtype none those that the head alone reads. None for a phase whose own
    do not fit."""
    return [
        _fitting([start for start in wanted if dtype != "none" or start == layers], size, maximum)
        for wanted in shared(reaches, layers)
    ]


def passing(kept: Sequence[Sequence[int]], reaches: Sequence[Reach]) -> list[bool]:
    """Whether each phase begins with a pass over what stands still: not where it keeps nothing, nor where an
    earlier pass has left all that it keeps. kept: what the function of that name says."""
    left: set[int] = set()
    result = []
    for starts, reach in zip(kept, reaches, strict=True):
        result.append(not left.issuperset(starts))
        left = {start for start in left.union(starts) if reach.start is not None and start <= reach.start}
    return result


def _fitting(wanted: Sequence[int], size: Callable[[int], int], maximum: int) -> list[int]:
    found: list[int] = []
    for start in wanted:
        if sum(map(size, [*found, start])) <= maximum:
            found.append(start)
    return found if found[:1] == list(wanted[:1]) else []


def passes(epochs: int, steps: int | None, *, batch_size: int, rows: int) -> int:
    """Whole passes over the rows that so many epochs, or steps, make."""
    return epochs if steps is None else steps * batch_size // max(1, rows)
