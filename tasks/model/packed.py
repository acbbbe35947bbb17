"""Rows end to end instead of padded: every layer sees the tokens that there are, and no others.

Dense layers and norms treat each token alone, so that rows need not lie beside each other. Attention takes
rows of one length at a time, a slice of what lies end to end: nothing is padded, masked or copied for it.
Batches are of like length (`order.py`), so that these are few. The parameters are the model's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tasks.errors import TrainingError
from tasks.model import dropout
from tasks.model.floors import anatomy_of, body_type, layers_of

TOLERANCE = 1e-4  # of hidden states of about 1: a sum of float32 in another order


@dataclass(frozen=True)
class Spans:
    """The lengths of rows that lie end to end; fewest slices where rows of one length are neighbours."""

    lengths: Sequence[int]

    @property
    def alike(self) -> list[tuple[int, int]]:
        """(rows, tokens of each) of every run of neighbours of one length."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    @property
    def firsts(self) -> Tensor:
        """(rows,) int64: where each row's first token lies."""
        lengths = torch.tensor(self.lengths)
        return lengths.cumsum(0) - lengths

    def padded(self, hidden: Tensor) -> Tensor:
        """(tokens, width) -> (rows, longest, width), zeros behind each row's end."""
        return pad_sequence(hidden.split(list(self.lengths)), batch_first=True)

    @property
    def mask(self) -> Tensor:
        """(rows, longest) bool: where `padded` has a token."""
        return torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]


def known(model: PreTrainedModel) -> bool:
    """Whether its layers are written here. On other devices one padded kernel is faster than many small."""
    kind, config = body_type(model), model.config
    stock = kind not in LAYERS or config._attn_implementation != "sdpa" or model.is_activation_checkpointing
    return not stock and model.device.type == "cpu"


def embedded(model: PreTrainedModel, given: Mapping[str, Tensor]) -> tuple[Tensor, Spans]:
    """What enters layer 0 (tokens, width), by the stock module, of padded rows as transformers takes them."""
    (path,) = anatomy_of(model).embeddings
    names = {name: value for name, value in given.items() if name != "attention_mask"}
    hidden: Tensor = model.get_submodule(path)(**names)
    mask = given["attention_mask"]
    places = mask.flatten().nonzero()[:, 0]
    return hidden.flatten(0, 1).index_select(0, places), Spans(mask.sum(dim=1).tolist())


def states(
    model: PreTrainedModel,
    hidden: Tensor,
    spans: Spans,
    *,
    start: int,
    stop: int | None = None,
    first_token: bool = False,
    seen: dict[int, Tensor] | None = None,
) -> Tensor:
    """What leaves the layers from `start` to `stop`, of `hidden` (tokens, width) that enters layer `start`:
    (tokens, width), or with first_token, of the first tokens alone, (rows, width).

    seen: takes what enters each layer of whose number it has a key.
    """
    compute, layers = LAYERS[body_type(model)], list(layers_of(model))[start:stop]
    for number, layer in enumerate(layers, start):
        if seen is not None and number in seen:
            seen[number] = hidden
        last = first_token and number == start + len(layers) - 1
        hidden = compute(layer, hidden, spans, spans.firsts if last else None)
    return hidden if layers or not first_token else hidden[spans.firsts]


def check(model: PreTrainedModel, given: Mapping[str, Tensor]) -> None:
    """Rows end to end give what the stock body gives, on `given` (what that is called with).

    Raises TrainingError with the largest difference: another version of transformers may compute otherwise.
    """
    if not known(model):
        return
    with torch.no_grad():
        stock = model.base_model(**given).last_hidden_state[given["attention_mask"].bool()]
        entering, spans = embedded(model, given)
        every, first = (states(model, entering, spans, start=0, first_token=one) for one in (False, True))
    difference = max(float((stock - every).abs().max()), float((stock[spans.firsts] - first).abs().max()))
    if not difference <= TOLERANCE:  # so written, NaN fails
        raise TrainingError(
            f"{type(model).__name__} computed without padding differs by {difference:.3g} from transformers' "
            "own: install the transformers that requirements name"
        )


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    """Attention of each row's tokens to each other. key, value: (tokens, width); query: as many tokens, or
    one a row, and so is what is returned."""
    share = module.dropout.p if module.training else 0.0
    rows = [count for count, _ in spans.alike]
    every = [count * length for count, length in spans.alike]
    asking = rows if len(query) == len(spans.lengths) else every
    parts = zip(
        _heads(module, query, rows, asking),
        _heads(module, key, rows, every),
        _heads(module, value, rows, every),
        strict=True,
    )
    attended = [_attended(*part, share, module.scaling) for part in parts]
    return torch.cat([part.transpose(1, 2).reshape(-1, query.shape[-1]) for part in attended])


def _heads(module: Any, hidden: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
    """(all tokens, width) -> of each run of `rows`, its own `tokens`: (rows, heads, tokens, head width)."""
    size = module.attention_head_size
    shapes = [(count, -1, hidden.shape[-1] // size, size) for count in rows]
    parts = zip(hidden.split(list(tokens)), shapes, strict=True)
    return [part.view(shape).transpose(1, 2) for part, shape in parts]


def _attended(query: Tensor, key: Tensor, value: Tensor, share: float, scaling: float) -> Tensor:
    """(rows, heads, tokens, head width) each. torch has a fused kernel for a CPU, but none with dropout."""
    if not share:
        return functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    weights = ((query * scaling) @ key.transpose(-1, -2)).softmax(dim=-1)
    return dropout.drop(weights, share) @ value


def _bert(layer: Any, hidden: Tensor, spans: Spans, chosen: Tensor | None) -> Tensor:
    own, behind, out = layer.attention.self, layer.attention.output, layer.output
    asking = hidden if chosen is None else hidden[chosen]
    attended = _attend(own, own.query(asking), own.key(hidden), own.value(hidden), spans)
    between = behind.LayerNorm(_dropped(behind.dropout, behind.dense(attended)) + asking)
    wide = layer.intermediate(between)
    result: Tensor = out.LayerNorm(_dropped(out.dropout, out.dense(wide)) + between)
    return result


def _distilbert(layer: Any, hidden: Tensor, spans: Spans, chosen: Tensor | None) -> Tensor:
    own, ffn = layer.attention, layer.ffn
    asking = hidden if chosen is None else hidden[chosen]
    attended = _attend(own, own.q_lin(asking), own.k_lin(hidden), own.v_lin(hidden), spans)
    between = layer.sa_layer_norm(own.out_lin(attended) + asking)
    wide = ffn.activation(ffn.lin1(between))
    result: Tensor = layer.output_layer_norm(_dropped(ffn.dropout, ffn.lin2(wide)) + between)
    return result


def _dropped(module: nn.Dropout, value: Tensor) -> Tensor:
    return dropout.drop(value, module.p) if module.training else value


LAYERS: Mapping[str, Callable[[Any, Tensor, Spans, Tensor | None], Tensor]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "roberta": _bert,
}
