"""The upper part of a model: stock modules from one layer on, which share their weights with the whole.

What enters layer k depends on the layers below it alone. Where these are frozen it can be computed once, and
a tail that begins at layer k is trained on it: the same classes, the same parameters, less work.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tasks.errors import TrainingError
from tasks.model.floors import anatomy_of, body_type, layers_of

TOLERANCE = 1e-4  # of hidden states of about 1: a sum of float32 in another order


class Given(nn.Module):
    """In the place of the embeddings: passes on what was computed before."""

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor | None:
        return inputs_embeds


class Nothing(nn.Module):
    """In the place of what is added to embeddings."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(1)


class EncoderDecoder(nn.Module):
    """Both stacks of a model as one body, whose last hidden states are the decoder's."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor,
    ) -> Any:
        """All (batch, tokens); the result's last_hidden_state is (batch, decoder tokens, width)."""
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
        )


class FirstToken(nn.Module):
    """A last layer for heads that read the first token alone: (batch, tokens, width) -> (batch, 1, width).

    Keys and values are needed of every token; the query, the projection behind the attention and the
    feed-forward part of one only. The numbers are the layer's own (Devlin et al., 2019, read position 0).
    """

    def __init__(self, layer: nn.Module, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = layer, kind

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        return FIRST_TOKEN[self.kind](self.layer, hidden, attention_mask)


def tail(model: PreTrainedModel, start: int, *, first_token: bool, stop: int | None = None) -> nn.Module:
    """`model`'s body from layer `start` on; called with inputs_embeds (batch, tokens, width) that enter that
    layer and attention_mask (batch, tokens). From layer 0 on the embeddings are there and take input_ids.

    stop: the layer before which it ends already; its last_hidden_state is what enters that one.
    first_token: else its last_hidden_state is (batch, 1, width), for heads that read no more.
    The modules are the model's own: what trains one trains the other.
    """
    if not splits(model):
        return EncoderDecoder(model)
    body, prefix = model.base_model, f"{model.base_model_prefix}."
    stand_ins = dict(PASSED[body_type(model)]) if start else {}
    if stop is not None:  # what closes the last layer closes no other
        stand_ins |= dict.fromkeys(anatomy_of(model).closing[0], nn.Identity)
    for path, stand_in in stand_ins.items():
        body = replaced(body, path.removeprefix(prefix), stand_in())
    chosen = layers_of(model)[start:stop]
    if first_token and stop is None and chosen and _known(model):
        chosen[-1] = FirstToken(chosen[-1], body_type(model))
    (layers,) = anatomy_of(model).layers
    return replaced(body, layers.removeprefix(prefix), nn.ModuleList(chosen))


def splits(model: PreTrainedModel) -> bool:
    """Whether a tail can begin at any layer: not where a decoder reads what an encoder says."""
    return len(anatomy_of(model).layers) == 1


def _known(model: PreTrainedModel) -> bool:
    return body_type(model) in FIRST_TOKEN and model.config._attn_implementation == "sdpa"


def check(model: PreTrainedModel, given: Mapping[str, Tensor]) -> None:
    """The shortened last layer computes what the stock one does, on `given` (what the body is called with).

    Raises TrainingError with the largest difference: another version of transformers may compute otherwise.
    """
    with torch.no_grad():
        stock, ours = (tail(model, 0, first_token=one)(**given).last_hidden_state for one in (False, True))
    difference = float((stock[:, 0] - ours[:, 0]).abs().max())
    if not difference <= TOLERANCE:  # so written, NaN fails
        raise TrainingError(
            f"the last layer of {type(model).__name__} computed for its first token alone differs by "
            f"{difference:.3g} from transformers' own: install the transformers that requirements name"
        )


@contextmanager
def watched(
    model: PreTrainedModel, starts: Sequence[int], *, body: nn.Module | None = None
) -> Iterator[Mapping[int, Tensor]]:
    """Meanwhile, after each pass: layer -> the hidden states (batch, tokens, width) that entered it.

    body: what is called, where that is a tail from layer 0 on and not the model's own.
    """
    seen: dict[int, Tensor] = {}
    (layers,) = anatomy_of(model).layers
    path = layers.removeprefix(f"{model.base_model_prefix}.")
    every = list((body or model.base_model).get_submodule(path).children())
    handles = [
        every[start].register_forward_pre_hook(_keep(seen, start), with_kwargs=True) for start in starts
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keep(seen: dict[int, Tensor], start: int) -> Any:
    def hook(_: nn.Module, given: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        seen[start] = given[0] if given else named["hidden_states"]

    return hook


def replaced(module: nn.Module, path: str, replacement: nn.Module) -> nn.Module:
    """A copy of `module` with another submodule at `path`; everything beside the path is shared."""
    name, _, rest = path.partition(".")
    result = copy.copy(module)
    result._modules = dict(module._modules)
    inner = module.get_submodule(name)
    result._modules[name] = replaced(inner, rest, replacement) if rest else replacement
    return result


def _attend(
    module: Any, query: nn.Module, key: nn.Module, value: nn.Module, hidden: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of the first token over all: hidden (batch, tokens, width) -> (batch, 1, width)."""
    shape = (hidden.shape[0], -1, module.attention_head_size)  # (batch, tokens x heads, head width)
    heads = hidden.shape[-1] // module.attention_head_size
    first, keys, values = (
        project(states).view(shape[0], -1, heads, shape[-1]).transpose(1, 2)
        for project, states in ((query, hidden[:, :1]), (key, hidden), (value, hidden))
    )
    attention = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    dropout = module.dropout.p if module.training else 0.0
    mask = None if mask is None else mask[:, :, :1]
    output: Tensor = attention(module, first, keys, values, mask, dropout=dropout, scaling=module.scaling)[0]
    return output.reshape(hidden.shape[0], 1, -1)


def _bert(layer: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    own = layer.attention.self
    attended = _attend(own, own.query, own.key, own.value, hidden, mask)
    result: Tensor = layer.feed_forward_chunk(layer.attention.output(attended, hidden[:, :1]))
    return result


def _distilbert(layer: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    own = layer.attention
    attended = own.out_lin(_attend(own, own.q_lin, own.k_lin, own.v_lin, hidden, mask))
    between = layer.sa_layer_norm(attended + hidden[:, :1])
    result: Tensor = layer.output_layer_norm(layer.ffn(between) + between)
    return result


FIRST_TOKEN = {"bert": _bert, "roberta": _bert, "distilbert": _distilbert}

PASSED: Mapping[str, Mapping[str, type[nn.Module]]] = {  # in a tail's body: what stands in for the embeddings
    "bert": {"bert.embeddings": Given},
    "distilbert": {"distilbert.embeddings": Given},
    "roberta": {"roberta.embeddings": Given},
    "gpt2": {"transformer.wpe": Nothing, "transformer.drop": nn.Identity},
    "llama": {},
    "mixtral": {},
}
