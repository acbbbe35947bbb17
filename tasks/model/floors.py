"""A classifier as floors, bottom to top: embeddings, layer 0 … layer n-1, head.

Depth is counted from the head down, so that `layer 1` can never be taken for `layer 10`. The head is all
that stands between the last hidden state of the first token and the logits: for BERT that is the pooler and
the classifier, as RoBERTa's classification head holds its own dense layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from tasks.errors import CheckpointError, TrainingError, did_you_mean


@dataclass(frozen=True)
class Anatomy:
    """Where one model type keeps its floors, dropout included, and how its head reads the first token.

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

    @property
    def adapter(self) -> dict[str, nn.Parameter]:
        """Those of its parameters that an adapter has put in; none where there is no adapter."""
        inner = [one for module in self.modules for one in module.modules()]
        parts = [
            getattr(one, name, None) for one in inner for name in getattr(one, "adapter_layer_names", ())
        ]
        added = {id(value) for part in parts if part is not None for value in part.parameters()}
        return {name: value for name, value in self.parameters.items() if id(value) in added}


def load(directory: Path, *, device: str = "cpu") -> PreTrainedModel:
    """The model in `directory`, of the class that its config names, float32, in eval mode.

    Raises CheckpointError if a tensor is missing, left over or of another shape: transformers would only
    print a table and return random layers.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    model, report = getattr(transformers, config.architectures[0]).from_pretrained(
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
    names = [f"{anatomy.layers}.{number}" for number, _ in enumerate(layers_of(model))]
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


def learning(stack: Sequence[Floor], depth: int | str, parts: Sequence[str] = ()) -> tuple[Floor, ...]:
    """The floors that learn at `depth` (layers below the head; `half`, `all` with the embeddings), and of the
    floors below these only the `parts` of PARTS, in eval mode. Where there is an adapter, it learns instead
    of the layers' own parameters, and the embeddings do not.

    Raises TrainingError if the model has fewer layers.
    """
    layers = len(stack) - 2
    count = layers // 2 if depth == "half" else len(stack) - 1 if depth == "all" else int(depth)
    if count > layers and depth != "all":
        raise TrainingError(f"depth {count}: the model has {layers} layers below its head; use `all`")
    border = len(stack) - 1 - count
    below = [Floor(floor.name, _parts(floor, parts), ()) for floor in stack[:border]]
    above = stack[border:-1]
    if any(floor.adapter for floor in stack):
        above = [Floor(floor.name, floor.adapter, floor.modules) for floor in above]
    return (*(floor for floor in (*below, *above) if floor.parameters), stack[-1])


def _parts(floor: Floor, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    chosen = {id(value) for part in parts for value in PARTS[part](floor)}
    return {name: value for name, value in floor.parameters.items() if id(value) in chosen}


def _embeddings(floor: Floor) -> Iterator[nn.Parameter]:
    yield from floor.parameters.values() if floor.name == "embeddings" else ()


def _norms(floor: Floor) -> Iterator[nn.Parameter]:
    inner = (one for module in floor.modules for one in module.modules())
    yield from (value for one in inner if "Norm" in type(one).__name__ for value in one.parameters())


def _biases(floor: Floor) -> Iterator[nn.Parameter]:
    yield from (value for name, value in floor.parameters.items() if name.endswith("bias"))


PARTS: Mapping[str, Callable[[Floor], Iterator[nn.Parameter]]] = {
    "embeddings": _embeddings,
    "norms": _norms,
    "biases": _biases,  # alone: BitFit (Ben Zaken et al., 2022)
}


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    kind = model.config.model_type
    if kind not in ANATOMIES:
        raise TrainingError(f"no floors are known for model type {kind!r}; {did_you_mean(kind, ANATOMIES)}")
    return ANATOMIES[kind]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers between embeddings and head, bottom to top."""
    layers = model.get_submodule(anatomy_of(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


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
    "bert": Anatomy("bert.embeddings", "bert.encoder.layer", ("bert.pooler", "dropout", "classifier"), _bert),
    "distilbert": Anatomy(
        "distilbert.embeddings",
        "distilbert.transformer.layer",
        ("pre_classifier", "dropout", "classifier"),
        _distilbert,
    ),
    "roberta": Anatomy("roberta.embeddings", "roberta.encoder.layer", ("classifier",), _roberta),
}
