"""A classifier for prediction: no padding, and where it reads the first token, the last layer for that alone.

The parameters and the numbers are the model's own; only what no logit needs is not computed.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks import architectures
from tasks.model import heads, packed


class Unpadded(nn.Module):
    """Called as the model is, with rows as transformers takes them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config, self.device = model, model.config, model.device
        self._head = heads.head_of(model)

    def forward(self, **given: Tensor) -> Any:
        """`.logits`: (batch, classes)."""
        hidden, spans = packed.embedded(self.model, given)
        first = self._head.read == "first"
        read = packed.states(self.model, hidden, spans, start=0, first_token=first)
        if not first:
            read = architectures.mean(spans.padded(read), spans.mask)
        return SimpleNamespace(logits=self._head.logits(self.model, read))


def quickest(model: PreTrainedModel) -> PreTrainedModel | Unpadded:
    """`model` unpadded where its layers and its head are known here and it is on a CPU, else as it is.

    Raises TrainingError where both ways do not give the same on a few rows.
    """
    head = heads.HEADS.get(type(model).__name__)
    if head is None or head.read not in ("first", "mean") or not packed.known(model):
        return model
    packed.check(model, _few(model))
    return Unpadded(model)


def _few(model: PreTrainedModel) -> dict[str, Tensor]:
    """Three rows of different lengths."""
    lengths = torch.tensor([[2], [5], [3]])
    mask = (torch.arange(5) < lengths).long()
    ids = (torch.arange(15).reshape(3, 5) + 5) % model.config.vocab_size
    pad = model.config.pad_token_id or 0
    return {"input_ids": torch.where(mask > 0, ids, pad), "attention_mask": mask}
