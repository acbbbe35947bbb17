"""Rows that leave because of what they are; nothing leaves without a Drop that says why."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tasks.errors import ParamsError
from tasks.text.sources import Document


@dataclass(frozen=True)
class Drop:
    """One row that left at `step`; `detail` names the number or the row that decided."""

    id: str
    step: str
    reason: str
    detail: str
    text: str


def too_short(text: str, minimum: int) -> str | None:
    """The reason to drop `text`, or None."""
    return "too_short" if len(text) < minimum else None


def too_long(text: str, maximum: int) -> str | None:
    """The reason to drop `text`, or None."""
    return "too_long" if len(text) > maximum else None


def by_length(documents: Iterable[Document], *, minimum: int, maximum: int) -> Iterator[Document | Drop]:
    """Yield each document, or its Drop where it has fewer than `minimum` or more than `maximum` characters.

    Raises ParamsError where no length could pass.
    """
    if minimum > maximum:
        raise ParamsError(
            f"preparation.minimum_characters ({minimum}) is above maximum_characters ({maximum}): "
            "no text passes"
        )
    for document in documents:
        if reason := too_short(document.text, minimum) or too_long(document.text, maximum):
            yield Drop(document.id, "filters", reason, f"{len(document.text)} characters", document.text)
        else:
            yield document
