"""Which part of a text answers a question, by the logits of where it starts and where it ends. A served model
carries this module along."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LONGEST = 30  # tokens of an answer, as in SQuAD's own baseline


class Span(NamedTuple):
    """Characters of a text from `start` up to `stop`, and by how much they are likelier than no answer."""

    start: int
    stop: int
    margin: float


def likeliest(starts: NDArray[Any], ends: NDArray[Any], offsets: NDArray[Any]) -> Span:
    """In one window: logits (tokens,) of where an answer starts and ends, and the characters of each token
    (tokens, 2), -1 outside of the text. Its margin is over the first token, which stands for no answer
    (Devlin et al. 2019, section 4.3).
    """
    inside = offsets[:, 0] >= 0
    if not inside.any():
        return Span(0, 0, -np.inf)
    places = np.arange(len(starts))
    apart = places[None, :] - places[:, None]
    able = inside[:, None] & inside[None, :] & (apart >= 0) & (apart < LONGEST)
    both = np.where(able, starts[:, None] + ends[None, :], -np.inf)
    first, last = np.unravel_index(int(both.argmax()), both.shape)
    return Span(int(offsets[first, 0]), int(offsets[last, 1]), float(both[first, last] - starts[0] - ends[0]))


def chosen(spans: Sequence[Span], text: str) -> str:
    """The answer of all windows of a text; empty where in every one of them none is likelier."""
    best = max(spans, key=lambda one: one.margin)
    return text[best.start : best.stop] if best.margin > 0 else ""
