"""What a trial came to, and which is best: by a validation figure, never by one of the test rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.params import LOWER_IS_BETTER


@dataclass(frozen=True)
class Result:
    """changes: what varies -> value, as it would stand in params.yaml. figures: validation figures of the
    weights that were kept; none where it failed. failure: why, else empty."""

    trial: str
    changes: Mapping[str, str]
    figures: Mapping[str, float]
    seconds: float
    cached: bool
    failure: str = ""


def descending(select: str) -> bool:
    """Whether more of this validation figure is better."""
    return select not in LOWER_IS_BETTER


def ranked(results: Sequence[Result], select: str) -> list[Result]:
    """Best first by `select`, of equals the one with the lower loss, then the earlier; failed ones last."""

    def place(result: Result) -> tuple[bool, float, float]:
        if result.failure:
            return (True, 0.0, 0.0)
        figure = result.figures[select]
        return (False, -figure if descending(select) else figure, result.figures["loss"])

    return sorted(results, key=place)
