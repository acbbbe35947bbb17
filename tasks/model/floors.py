"""A classifier as floors, bottom to top: embeddings, layer 0 … layer n-1, head.

Depth is counted from the head down, so that `layer 1` can never be taken for `layer 10`. The head is all
that stands between the last hidden state of the first token and the logits: for BERT that is the pooler and
the classifier, as RoBERTa's classification head holds its own dense layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tasks.errors import CheckpointError, TrainingError, did_you_mean


@dataclass(frozen=True)
class Anatomy:
    """Where one model type keeps its floors, and how its head reads the first token.

    `logits(model, first)`: first (batch, width) -> (batch, classes), the stock class's own arithmetic.
    """

    embeddings: str
    layers: str
    head: tuple[str, ...]
    logits: Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Floor:
    name: str
    parameters: Mapping[str, nn.Parameter]
    modules: tuple[nn.Module, ...]


def load(directory: Path, *, device: str = "cpu") -> PreTrainedModel:
    """The classifier in `directory`, float32, in eval mode.

    Raises CheckpointError if a tensor is missing, left over or of another shape: transformers would only
    print a table and return random layers.
    """
    model, report = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    faults = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if faults:
        raise CheckpointError(f"{directory} does not fit {type(model).__name__}: {faults}")
    return model.to(device).eval()  # type: ignore[no-any-return]


def with_head(model: PreTrainedModel, head: Path) -> None:
    """Place the tensors of `head` into `model`'s head floor, in place.

    Raises CheckpointError unless the names and shapes are exactly the head's.
    """
    target, source = dict(floors(model)[-1].parameters), load_file(head)
    faults = sorted(target.keys() ^ source.keys())
    faults += [n for n in target.keys() & source.keys() if target[n].shape != source[n].shape]
    if faults:
        raise CheckpointError(f"{head} is not the head of {type(model).__name__}: {', '.join(faults)}")
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(source[name])


def floors(model: PreTrainedModel) -> tuple[Floor, ...]:
    """Every parameter of `model` in exactly one floor, bottom to top.

    Raises TrainingError for a model type without a row in ANATOMIES.
    """
    anatomy = anatomy_of(model)
    layers = model.get_submodule(anatomy.layers)
    names = [f"{anatomy.layers}.{number}" for number, _ in enumerate(layers.children())]
    stack = [("embeddings", [anatomy.embeddings]), *((f"layer {i}", [n]) for i, n in enumerate(names))]
    result = tuple(_floor(model, name, paths) for name, paths in [*stack, ("head", list(anatomy.head))])
    placed = [name for floor in result for name in floor.parameters]
    if sorted(placed) != sorted(name for name, _ in model.named_parameters()):
        stray = set(placed) ^ {name for name, _ in model.named_parameters()}
        raise TrainingError(f"{model.config.model_type}: parameters on no floor: {', '.join(sorted(stray))}")
    return result


def word_table(model: PreTrainedModel) -> tuple[str, nn.Parameter]:
    """The parameter with a row for each token, (tokens, width), and its name."""
    table = model.get_input_embeddings().weight
    return next((name, value) for name, value in model.named_parameters() if value is table)


def learning(stack: Sequence[Floor], depth: int | str) -> tuple[Floor, ...]:
    """The floors that learn at `depth` (layers below the head; `half`, `all` with the embeddings).

    Raises TrainingError if the model has fewer layers.
    """
    layers = len(stack) - 2
    if depth == "all":
        return tuple(stack)
    count = layers // 2 if depth == "half" else int(depth)
    if count > layers:
        raise TrainingError(f"depth {count}: the model has {layers} layers below its head; use `all`")
    return tuple(stack[len(stack) - 1 - count :])


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    kind = model.config.model_type
    if kind not in ANATOMIES:
        raise TrainingError(f"no floors are known for model type {kind!r}; {did_you_mean(kind, ANATOMIES)}")
    return ANATOMIES[kind]


def last_hidden(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The body alone: ids, mask (batch, tokens) -> (batch, tokens, width)."""
    base = getattr(model, model.base_model_prefix)
    hidden: Tensor = base(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden


def first_token(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """What the head reads: ids, mask (batch, tokens) -> (batch, width)."""
    return last_hidden(model, ids, mask)[:, 0]


def head_logits(model: PreTrainedModel, first: Tensor) -> Tensor:
    """The head alone: first (batch, width) -> (batch, classes)."""
    return anatomy_of(model).logits(model, first)


def _floor(model: PreTrainedModel, name: str, paths: Sequence[str]) -> Floor:
    parameters = {
        f"{path}.{inner}": parameter
        for path in paths
        for inner, parameter in model.get_submodule(path).named_parameters()
    }
    return Floor(name, parameters, tuple(model.get_submodule(path) for path in paths))


def _bert(model: Any, first: Tensor) -> Tensor:
    pooled = model.bert.pooler(first[:, None])  # (batch, 1, width) -> (batch, width)
    logits: Tensor = model.classifier(model.dropout(pooled))
    return logits


def _distilbert(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(torch.relu(model.pre_classifier(first))))
    return logits


def _roberta(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(first[:, None])
    return logits


ANATOMIES: Mapping[str, Anatomy] = {
    "bert": Anatomy("bert.embeddings", "bert.encoder.layer", ("bert.pooler", "classifier"), _bert),
    "distilbert": Anatomy(
        "distilbert.embeddings", "distilbert.transformer.layer", ("pre_classifier", "classifier"), _distilbert
    ),
    "roberta": Anatomy("roberta.embeddings", "roberta.encoder.layer", ("classifier",), _roberta),
}
