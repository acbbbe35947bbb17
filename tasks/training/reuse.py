"""Which frozen work a schedule can share: hidden states that stay what they are for several passes."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reach:
    """How far down a phase learns: `start` is its lowest learning layer, the number of layers where only the
    head learns, None where something learns at the very bottom. `epochs`: passes over the rows."""

    start: int | None
    epochs: int


def worth_keeping(reaches: Sequence[Reach], layers: int) -> list[int]:
    """The layers whose incoming states one pass at the beginning of the first of `reaches` should keep.

    They serve that phase and every later one above which nothing has learned lower down until then. Keeping
    pays where states are used in more than one epoch, or where the pass is made anyway for the head's sake.
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
    paying = [start for start in epochs if epochs[start] > 1 or start == layers or layers in epochs]
    return paying if reaches and reaches[0].start in paying else []


def fitting(sizes: Mapping[int, int], own: int | None, maximum: int) -> list[int]:
    """Of the layers with so many bytes of states those that fit `maximum` together, `own` first; the others
    are told."""
    found: list[int] = []
    room = maximum
    for start in sorted(sizes, key=lambda start: start != own):
        if sizes[start] <= room:
            found, room = [*found, start], room - sizes[start]
        else:
            log.warning(
                "states that enter layer %d would take %.0f MB, more than finetuning.cache.maximum_bytes "
                "leaves: the layers below are computed every epoch", start, sizes[start] / 1e6,
            )  # fmt: skip
    return found
