"""Dropout on a CPU from sixteen random bits a value, where torch draws a number of its own for each."""

from typing import Any

import torch
from torch import Tensor

BITS = 16


class _Drop(torch.autograd.Function):
    """What is kept is the same forth and back."""

    @staticmethod
    def forward(context: Any, value: Tensor, factors: Tensor) -> Tensor:
        context.save_for_backward(factors)
        return value * factors

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (factors,) = context.saved_tensors
        return gradients[0] * factors, None


def drop(value: Tensor, share: float) -> Tensor:
    """`value` with a `share` of its numbers set to 0 at random and the others scaled up, so that the mean
    stays (Srivastava et al., 2014). The share is rounded to a 65,536th, the scale is that share's own.

    Draws from torch's generator of the CPU.
    """
    dropped = round(share * 2**BITS)
    if not 0 < dropped < 2**BITS:
        return value if not dropped else value * 0
    words = torch.empty((value.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: value.numel()].view(value.shape)
    scale = 2**BITS / (2**BITS - dropped)
    factors = (bits >= dropped - 2 ** (BITS - 1)).to(value.dtype).mul_(scale)
    result: Tensor = _Drop.apply(value, factors)
    return result
