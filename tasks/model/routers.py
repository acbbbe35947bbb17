"""The routers of a mixture while they learn: a term of the loss keeps the load of their experts even."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter, load_balancing_loss_func

Forward = Callable[[Sequence[int]], Tensor]  # places of rows -> logits (read, outputs)


class Balance:
    """Hears what the routers of `model` that learn say of rows that pass through it. weight: of `loss`."""

    def __init__(self, model: PreTrainedModel, weight: float) -> None:
        self._weight, self._passing = weight, False
        self._said: list[tuple[Tensor, int]] = []
        for module in model.modules():
            if isinstance(module, MixtralTopKRouter):
                module.register_forward_hook(self._hear)

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

    def _hear(self, router: nn.Module, _: object, answer: tuple[Tensor, Tensor, Tensor]) -> None:
        """answer: logits (tokens, experts); weights and numbers of the chosen ones, each (tokens, chosen)."""
        if self._passing and torch.is_grad_enabled() and router.weight.requires_grad:
            self._said.append((answer[0], answer[2].shape[-1]))


def present(model: PreTrainedModel) -> bool:
    return any(isinstance(module, MixtralTopKRouter) for module in model.modules())
