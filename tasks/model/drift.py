"""What training changed in what a model makes of texts that it was not trained on: states before and after.

Likeness of states is linear CKA (Kornblith et al., 2019, Similarity of neural network representations
revisited, equation 4 with a linear kernel), which neither turning nor stretching them changes, and the cosine
of a row's mean state, which both change.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.model import floors, tail
from tasks.model.batches import Rows

WORDS = 32  # of a passage: enough for a sentence, and a few dozen passages in a page of text
States = Mapping[str, Sequence[Tensor]]  # floor -> of each row (tokens, width)


@dataclass(frozen=True)
class Likeness:
    """Of a floor's states before and after, 1 where they are the same.

    cka: linear CKA over all tokens. cosine: of the mean states of a row, on average over rows.
    """

    cka: float
    cosine: float


def passages(text: str) -> list[str]:
    """`text` in pieces of WORDS words."""
    words = text.split()
    return [" ".join(words[start : start + WORDS]) for start in range(0, len(words), WORDS)]


def states(model: PreTrainedModel, rows: Rows) -> dict[str, list[Tensor]]:
    """Floor -> what leaves it, of each row (tokens, width) float32 on the CPU; all in one pass, row by row,
    so that nothing is padded. The head has none."""
    model.eval()
    body = tail.tail(model, 0, first_token=False)
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for place in range(len(rows)):
            with _leaving(floors.floors(model)[:-1]) as left:
                body(**rows.batch([place], model.device))
            for name, value in left.items():
                found.setdefault(name, []).append(value[0].float().cpu())
    return found


def likeness(before: States, after: States) -> dict[str, Likeness]:
    """Of each floor; both of the same rows."""
    return {
        name: Likeness(_cka(rows, after[name]), _cosine(rows, after[name])) for name, rows in before.items()
    }


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Of the same examples under two models: (examples, width) each, the widths may differ; 0 to 1.

    Where examples are few beside the widths it is high whatever the models: compare it with its like alone.
    """
    x, y = (value.double() - value.double().mean(dim=0) for value in (one, other))
    shared = (x.T @ y).square().sum()
    return float(shared / ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-300))


def _cka(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    return linear_cka(torch.cat(list(before)), torch.cat(list(after)))


def _cosine(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    one, other = (torch.stack([row.double().mean(dim=0) for row in rows]) for rows in (before, after))
    return float(nn.functional.cosine_similarity(one, other, dim=1).mean())


@contextmanager
def _leaving(stack: Sequence[floors.Floor]) -> Iterator[dict[str, Tensor]]:
    """Meanwhile: floor -> what the last of its modules gave the first time, (batch, tokens, width)."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            seen.setdefault(name, output if isinstance(output, Tensor) else output[0])

        return keep

    handles = [floor.modules[-1].register_forward_hook(hook(floor.name)) for floor in stack]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
