"""The routers of a mixture: kept even by a term of the loss while they learn, counted while they answer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter, load_balancing_loss_func

Forward = Callable[[Sequence[int]], Tensor]  # places of rows -> logits (read, outputs)
Said = tuple[
    Tensor, Tensor, Tensor
]  # logits (tokens, experts); weights, numbers of the chosen (tokens, chosen)


class Balance:
    """Hears what the routers of `model` that learn say of rows that pass through it. weight: of `loss`."""

    def __init__(self, model: PreTrainedModel, weight: float) -> None:
        self._weight, self._passing = weight, False
        self._said: list[tuple[Tensor, int]] = []
        for router in _found(model):
            router.register_forward_hook(self._hear)

    def heard(self, forward: Forward) -> Forward:
        """`forward`, whose last rows `loss` is of."""

        def passed(places: Sequence[int]) -> Tensor:
            self._said.clear()
            self._passing = True
            try:
                return forward(places)
            finally:  # a layer that is computed twice says it again, and would be held with all it computed
                self._passing = False

        return passed

    def loss(self, lengths: Sequence[int]) -> Tensor:
        """Of the rows that passed last, `weight` times the mean over layers of what Fedus et al. (2022, arXiv
        2101.03961, equations 4 to 6) give, as transformers computes it: the number of experts that read a
        token where all loads are even. 0 where no router learns.

        lengths: tokens of each of these rows; what stands behind them is padding and has no say.
        """
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        each = [
            torch.as_tensor(load_balancing_loss_func((said.float(),), said.shape[-1], chosen, mask))
            for said, chosen in self._said
        ]
        self._said.clear()
        return self._weight * torch.stack(each).mean() if each else torch.zeros(())

    def _hear(self, router: nn.Module, _: object, answer: Said) -> None:
        if self._passing and torch.is_grad_enabled() and router.weight.requires_grad:
            self._said.append((answer[0], answer[2].shape[-1]))


class Reads:
    """Counts which experts read the tokens of so many rows, while `model` answers these.

    counts: (layers, rows, experts) int64, without padding; no layer of a model that is no mixture.
    chosen: experts that read a token.
    """

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self._routers = _found(model)
        experts = len(self._routers[0].weight) if self._routers else 0
        self.counts: NDArray[np.int64] = np.zeros((len(self._routers), rows, experts), dtype=np.int64)
        self.chosen = int(model.config.num_experts_per_tok) if self._routers else 0

    def heard(self, batches: Callable[[Any], Iterable[Any]]) -> Callable[[Any], Iterator[Any]]:
        """`batches`, each (places of rows, what the model takes), heard until the next is asked for."""

        def passed(rows: Any) -> Iterator[Any]:
            for places, given in batches(rows):
                with ExitStack() as hooks:
                    for layer, router in enumerate(self._routers):
                        hear = partial(self._hear, layer, places, given["attention_mask"])
                        hooks.enter_context(router.register_forward_hook(hear))
                    yield places, given

        return passed

    def _hear(
        self, layer: int, places: Sequence[int], mask: Tensor, router: nn.Module, _: object, answer: Said
    ) -> None:
        """mask: (texts, tokens), 0 where there is padding."""
        read = torch.zeros_like(answer[0], dtype=torch.int64).scatter_(1, answer[2], 1)
        real = read.view(*mask.shape, -1) * mask.to(read.device)[..., None]
        self.counts[layer, list(places)] = real.sum(dim=1).cpu().numpy()


def _found(model: PreTrainedModel) -> list[MixtralTopKRouter]:
    return [module for module in model.modules() if isinstance(module, MixtralTopKRouter)]


def present(model: PreTrainedModel) -> bool:
    return bool(_found(model))
