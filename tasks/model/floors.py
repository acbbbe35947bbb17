"""A model as floors, bottom to top: embeddings, layer 0 … layer n-1, head.

Depth is counted from the head down, so that `layer 1` can never be taken for `layer 10`. The head is all
that stands between the last hidden states and the logits: for BERT's classifier that is the pooler and the
classifier, as RoBERTa's classification head holds its own dense layer. What a head shares with the embeddings
is on their floor.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks import architectures
from tasks.errors import CheckpointError, TrainingError, did_you_mean
from tasks.model import heads
from tasks.params import Only


@dataclass(frozen=True)
class Anatomy:
    """Where one model type keeps what is below its head, dropout included.

    layers: lists of layers, bottom to top; inner: the feed-forward networks, below a layer's path, and
    routers: what chooses among them; closing: of each list, what follows its last layer and stands on that
    one's floor.
    """

    embeddings: tuple[str, ...]
    layers: tuple[str, ...]
    inner: tuple[str, ...]
    closing: tuple[tuple[str, ...], ...] = ((),)
    routers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Floor:
    name: str
    parameters: Mapping[str, nn.Parameter]
    modules: tuple[nn.Module, ...]
    alone: Mapping[Only, Mapping[str, nn.Parameter]] = field(default_factory=dict)  # without the rest

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
    """The model in `directory`, of the class that its config.json names, float32, in eval mode.

    Raises CheckpointError if a tensor is missing, left over or of another shape: transformers would only
    print a table and return random layers.
    """
    model, report = _architecture(directory).from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    faults = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if faults:
        raise CheckpointError(f"{directory} does not fit {type(model).__name__}: {faults}")
    model.config.use_cache = False  # of keys and values, which generation alone needs
    return model.to(device).eval()  # type: ignore[no-any-return]


def _architecture(directory: Path) -> Any:
    names = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    found = architectures.find(names[0]) if names else None
    if found is None:
        raise CheckpointError(
            f"{directory / 'config.json'} names no class of transformers {transformers.__version__} under "
            f"architectures: {names}; run `dvc repro conversion`"
        )
    return found


def checkpoint(model: PreTrainedModel) -> None:
    """Let layers that learn keep what enters them alone, and compute the rest again for their gradients, with
    the same dropout (Chen et al., 2016, arXiv 1604.06174).

    Raises TrainingError for a class that cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise TrainingError(
            f"{type(model).__name__} cannot compute layers twice: set finetuning.gradient_checkpointing to "
            "false"
        )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # renamed late in transformers 5
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # or gradients would be computed down to frozen embeddings


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

    Raises TrainingError for a model type without a row in ANATOMIES, and a class without one in HEADS.
    """
    stack = [("embeddings", list(anatomy_of(model).embeddings))]
    stack += [(f"layer {number}", paths) for number, paths in enumerate(_layer_paths(model))]
    stack.append(("head", list(heads.head_of(model).paths)))
    own = {id(value): name for name, value in model.named_parameters()}  # a shared one counts once
    result: list[Floor] = []
    for name, paths in stack:
        floor = _floor(model, name, paths, own)
        result.append(floor)
        own = {key: full for key, full in own.items() if full not in floor.parameters}
    if own:
        raise TrainingError(
            f"{type(model).__name__}: parameters on no floor: {', '.join(sorted(own.values()))}"
        )
    return tuple(result)


def word_table(model: PreTrainedModel) -> tuple[str, nn.Parameter]:
    """The parameter with a row for each token, (tokens, width), and its name."""
    table = model.get_input_embeddings().weight
    return next((name, value) for name, value in model.named_parameters() if value is table)


def learning(
    stack: Sequence[Floor], depth: int | str, parts: Sequence[str] = (), only: Only | None = None
) -> tuple[Floor, ...]:
    """The floors that learn at `depth` (layers below the head; `half`, `all` with the embeddings), and of the
    floors below these only the `parts` of PARTS, in eval mode. Where there is an adapter, it learns instead
    of the layers' own parameters, and the embeddings do not. only: what learns of the layers, and nothing
    else anywhere.

    Raises TrainingError if the model has fewer layers, and where nothing would learn.
    """
    border = lowest(stack, depth) + 1
    if only:
        inner = [Floor(floor.name, floor.alone.get(only, {}), floor.modules) for floor in stack[border:]]
        if found := tuple(floor for floor in inner if floor.parameters):
            return found
        raise TrainingError(
            f"depth {depth}: none of {len(stack) - 2} layers has a {only} part that would learn: give the "
            "phase another depth, or leave `only` out"
        )
    below = [Floor(floor.name, _parts(floor, parts), ()) for floor in stack[:border]]
    above = stack[border:-1]
    if any(floor.adapter for floor in stack):
        above = [Floor(floor.name, floor.adapter, floor.modules) for floor in above]
    chosen = tuple(floor for floor in (*below, *above, stack[-1]) if floor.parameters)
    if not chosen:
        raise TrainingError(
            "depth 0: this head shares its weights with the embeddings, so that nothing would learn: give "
            "the phase a depth"
        )
    return chosen


def lowest(stack: Sequence[Floor], depth: int | str) -> int:
    """The lowest layer that learns at `depth`; the number of layers where none does, -1 with the embeddings.

    Raises TrainingError if the model has fewer layers.
    """
    layers = len(stack) - 2
    if depth == "all":
        return -1
    count = layers // 2 if depth == "half" else int(depth)
    if count > layers:
        raise TrainingError(f"depth {count}: the model has {layers} layers below its head; use `all`")
    return layers - count


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


def body_type(model: PreTrainedModel) -> str:
    """transformers' model type of its layers."""
    return architectures.body_type(model.config.model_type)


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    kind = body_type(model)
    if kind not in ANATOMIES:
        raise TrainingError(f"no floors are known for model type {kind!r}; {did_you_mean(kind, ANATOMIES)}")
    return ANATOMIES[kind]


def layer_path(model: PreTrainedModel, number: int) -> str:
    """Of the layer `number`, counted from 0 at the bottom."""
    return _layer_paths(model)[number][0]


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers between embeddings and head, bottom to top."""
    return [model.get_submodule(paths[0]) for paths in _layer_paths(model)]


def head_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """The head alone: states (read, width) -> (read, outputs)."""
    return heads.head_of(model).logits(model, states)


def _layer_paths(model: PreTrainedModel) -> list[list[str]]:
    """Of each layer its own path and those of what stands on its floor too."""
    anatomy, found = anatomy_of(model), []
    for layers, closing in zip(anatomy.layers, anatomy.closing, strict=True):
        count = len(list(model.get_submodule(layers).children()))
        found += [[f"{layers}.{number}"] for number in range(count)]
        found[-1] += closing
    return found


def _floor(model: PreTrainedModel, name: str, paths: Sequence[str], own: Mapping[int, str]) -> Floor:
    """Its parameters under the model's own names, save for those that are on a floor below."""
    modules = tuple(model.get_submodule(path) for path in paths)
    held = [value for module in modules for value in module.parameters()]
    found = {own[id(value)]: value for value in held if id(value) in own}
    anatomy = anatomy_of(model)

    def within(parts: Sequence[str]) -> dict[str, nn.Parameter]:
        prefixes = tuple(f"{path}.{part}." for path in paths for part in parts)
        return {full: value for full, value in found.items() if full.startswith(prefixes)}

    alone: dict[Only, dict[str, nn.Parameter]] = {
        "feed-forward": within(anatomy.inner),
        "router": within(anatomy.routers),
    }
    return Floor(name, found, modules, alone)


def _encoder(prefix: str, layers: str, *inner: str) -> Anatomy:
    return Anatomy((f"{prefix}.embeddings",), (f"{prefix}.{layers}",), inner)


ANATOMIES: Mapping[str, Anatomy] = {
    "bert": _encoder("bert", "encoder.layer", "intermediate", "output.dense"),
    "distilbert": _encoder("distilbert", "transformer.layer", "ffn"),
    "roberta": _encoder("roberta", "encoder.layer", "intermediate", "output.dense"),
    "gpt2": Anatomy(
        ("transformer.wte", "transformer.wpe", "transformer.drop"),
        ("transformer.h",),
        ("mlp",),
        (("transformer.ln_f",),),
    ),
    "llama": Anatomy(("model.embed_tokens",), ("model.layers",), ("mlp",), (("model.norm",),)),
    "mixtral": Anatomy(
        ("model.embed_tokens",),
        ("model.layers",),
        ("mlp.experts",),
        (("model.norm",),),
        ("mlp.gate",),
    ),
    "t5": Anatomy(
        ("shared",),
        ("encoder.block", "decoder.block"),
        ("layer.1.DenseReluDense", "layer.2.DenseReluDense"),
        (("encoder.final_layer_norm",), ("decoder.final_layer_norm",)),
    ),
}
