"""How the learning rate moves within a phase: a table of shapes, each a share of the peak rate."""

import math
from collections.abc import Callable, Mapping

LOWEST = 1 / 32  # of the peak, where slanted triangles begin and end (Howard & Ruder, 2018, ratio 32)
Shape = Callable[[float], float]  # share of the way behind the warm-up, from 0 -> share of the peak


def rate_share(step: int, steps: int, *, schedule: str, warmup: float) -> float:
    """Share of the peak rate at `step` (from 0) of `steps`: a linear rise over `warmup` of them, then the
    schedule's own shape.

    Slanted triangles rise from a 32nd of the peak and fall back to it (Howard & Ruder, 2018, equation 3).
    """
    rise = round(steps * warmup)
    lowest = LOWEST if schedule == "slanted-triangular" else 0.0
    if step < rise:
        return lowest + (1 - lowest) * (step + 1) / (rise + 1)
    return SHAPES[schedule]((step - rise) / max(1, steps - rise))


def _slanted(way: float) -> float:
    return LOWEST + (1 - LOWEST) * (1 - way)


SHAPES: Mapping[str, Shape] = {
    "linear": lambda way: 1 - way,
    "cosine": lambda way: (1 + math.cos(math.pi * way)) / 2,  # Loshchilov & Hutter, 2017, without restarts
    "constant": lambda way: 1.0,
    "slanted-triangular": _slanted,
}
