"""Small tensors that learn in a layer instead of its own: put in, merged, kept beside their base's digest.

Peft makes those that can be merged into stock weights. Bottlenecks are written here: peft has none, and
AdapterHub's `adapters` 1.3 asks for transformers 4.57. Prefix, prompt and P-tuning are not here: they change
what enters every layer, so that nothing below stands still.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks import files
from tasks.errors import TrainingError, did_you_mean
from tasks.model import floors

TOLERANCE = 1e-5  # of merged logits, relative to the largest: float32 keeps about 1e-7 of each of many sums
DESCRIPTION, CONFIG, WEIGHTS = "adapter.json", "adapter_config.json", "adapter_model.safetensors"
NAME = ".default"  # as peft calls an adapter that has no name, inside the names of its tensors
PREFIX = "base_model.model."  # peft's, before the names of all that it saves


@dataclass(frozen=True)
class Adapter:
    """kind: of KINDS. rank: inner width, of LoRA's kinds and of bottlenecks.
    alpha, dropout, targets (of TARGETS): of LoRA's kinds alone."""

    kind: str
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "attention"


@dataclass(frozen=True)
class Saved:
    """An adapter's folder. layers: numbers of the adapted ones. whole: parameters that are kept whole. base:
    digest of the checkpoint's file; body: of its tensors below the head. architecture: the class that it was
    trained in. labels: what the head's outputs are called. tensors: as peft names them in files."""

    adapter: Adapter
    layers: tuple[int, ...]
    whole: tuple[str, ...]
    base: str
    body: str
    architecture: str
    labels: tuple[str, ...]
    tensors: Mapping[str, Tensor]


Parts = Callable[[Sequence[str]], list[str]]  # roles, as PARTS names them -> paths of dense layers


@dataclass(frozen=True)
class Kind:
    """config: adapter and the adapted layers' parts -> peft's own description. Where there is none, a
    Bottleneck stands behind each part in `behind`, and nothing can be merged."""

    config: Callable[[Adapter, Parts], Any] | None = None
    behind: tuple[str, ...] = ()


class Bottleneck(nn.Module):
    """A dense layer, and added to its output (…, width) what a narrow pass makes of that: up(relu(down)).

    `up` is zero at first, so that the output is the dense layer's own; Houlsby et al. (2019) begin near zero.
    """

    adapter_layer_names = ("down", "up")  # as peft's modules tell which of their tensors are an adapter's

    def __init__(self, base_layer: nn.Linear | Conv1D, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        outputs = base_layer.nf if isinstance(base_layer, Conv1D) else base_layer.out_features
        self.down = nn.Linear(outputs, width).to(base_layer.weight)
        self.up = nn.Linear(width, outputs).to(base_layer.weight)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, given: Tensor) -> Tensor:
        hidden: Tensor = self.base_layer(given)
        result: Tensor = hidden + self.up(torch.relu(self.down(hidden)))
        return result


def inject(model: PreTrainedModel, adapter: Adapter, layers: Sequence[int], *, seed: int) -> None:
    """Put `adapter` into these layers of `model`, in place; what the model computes stays the same.

    Raises TrainingError for no layers, and for an unknown kind or targets.
    """
    kind = _kind(adapter)
    if not layers:
        raise TrainingError(
            "finetuning.adapter: no phase lets a layer learn: give one a depth, or set adapter to null"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if config := _config(model, adapter, layers):
            from peft import inject_adapter_in_model  # seconds, which a run without an adapter saves

            inject_adapter_in_model(config, model)
        else:
            _narrow(model, _parts(model, layers, kind.behind), adapter.rank)
    model.eval()


def merge(model: PreTrainedModel, given: Mapping[str, Tensor]) -> float:
    """Add what the adapter learned to the stock weights and take it out, in place; returns how far the logits
    on `given` (what the model is called with) have moved, relative to the largest.

    Raises TrainingError where that is beyond TOLERANCE and for a kind that cannot be merged.
    """
    before = _logits(model, given)
    for name, module in adapted(model).items():
        if isinstance(module, Bottleneck):
            raise TrainingError(f"{name}: a bottleneck adapter cannot be merged into a dense layer; use lora")
        module.merge()
        model.set_submodule(name, module.get_base_layer())
    del model.peft_config
    difference = float((_logits(model, given) - before).abs().max() / before.abs().max())
    if not difference <= TOLERANCE:  # so written, NaN fails
        raise TrainingError(
            f"merged, the adapter moves the logits by {difference:.3g} of the largest, more than "
            f"{TOLERANCE:g}: train with a lower learning rate or a smaller finetuning.adapter.alpha"
        )
    return difference


def save(
    model: PreTrainedModel, adapter: Adapter, folder: Path, *, base: str, whole: Sequence[str] = ()
) -> None:
    """Write the adapter, the head and the parameters named in `whole` to `folder`, which must not exist yet.

    base: digest of the weights below it. Peft reads the folder as its own, save for bottlenecks.
    """
    saved = Saved(
        adapter,
        layers=tuple(place for place, floor in enumerate(floors.floors(model)[1:-1]) if floor.adapter),
        whole=tuple(whole),
        base=base,
        body=body_digest(model, whole),
        architecture=type(model).__name__,
        labels=tuple(label for _, label in sorted((model.config.id2label or {}).items())),
        tensors={name: value.detach().cpu().contiguous() for name, value in _kept(model, whole).items()},
    )
    write(model, saved, folder)


def write(model: PreTrainedModel, saved: Saved, folder: Path) -> None:
    """What `read` reads, to `folder`, which must not exist yet. model: of the class that it belongs in."""
    own = {name: value for name, value in vars(saved).items() if name not in ("adapter", "tensors")}
    folder.mkdir(parents=True)
    save_file(dict(saved.tensors), folder / WEIGHTS, {"format": "pt"})
    files.write_text(folder / DESCRIPTION, files.canonical_json(asdict(saved.adapter) | own))
    if config := _config(model, saved.adapter, saved.layers):
        modules = {name.rpartition(".")[0] for name in (*floors.floors(model)[-1].parameters, *saved.whole)}
        values = config.to_dict() | {"modules_to_save": modules}
        files.write_text(folder / CONFIG, files.canonical_json({k: _plain(v) for k, v in values.items()}))


def load(model: PreTrainedModel, folder: Path, *, base: str) -> Adapter:
    """Put what `save` wrote onto `model`, whose weights have the digest `base`, in place.

    Raises TrainingError for another base than it was trained on, and unless names and shapes are the model's.
    """
    saved = read(folder)
    if saved.base != base:
        raise TrainingError(
            f"{folder} was trained on weights {saved.base}, not on {base}: put it on its own base"
        )
    inject(model, saved.adapter, saved.layers, seed=0)
    _place(_kept(model, saved.whole), saved.tensors, folder / WEIGHTS)
    return saved.adapter


def read(folder: Path) -> Saved:
    """Raises TrainingError for a folder that `save` did not write, or that a former regraft wrote."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        missing = Path(error.filename or folder / WEIGHTS).name
        raise TrainingError(f"{folder} holds no {missing}: it is no adapter that finetuning saved") from None
    own = {name: described.pop(name) for name in asdict(Adapter("")) if name in described}
    lists: dict[str, Any] = {name: tuple(described.pop(name, ())) for name in ("layers", "whole", "labels")}
    try:
        return Saved(Adapter(**own), tensors=tensors, **lists, **described)
    except TypeError:
        raise TrainingError(
            f"{folder / DESCRIPTION} is of another version: make it again with `dvc repro finetuning`"
        ) from None


def body_digest(model: PreTrainedModel, whole: Sequence[str] = ()) -> str:
    """Of all tensors below the head, without an adapter's and those named in `whole`: heads with any number
    of labels stand on one body."""
    stack = floors.floors(model)
    ours = {name for floor in stack for name in floor.adapter} | stack[-1].parameters.keys() | set(whole)
    names = {
        name.replace(".base_layer.", "."): value
        for name, value in model.named_parameters()
        if name not in ours
    }
    found = hashlib.sha256()
    for name in sorted(names):
        value = names[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.flatten().view(torch.uint8).numpy().data)
    return f"sha256:{found.hexdigest()}"


def ready(model: PreTrainedModel) -> list[Any]:
    """Let every layer that an adapter may stand in hold several (`add`), in place; returns these layers.

    What the model computes stays the same. Raises TrainingError for a model type whose layers are not known.
    """
    dense = PARTS.get(floors.body_type(model), {}).keys()
    widest = "all-linear" if dense >= {*TARGETS["all-linear"]} else "attention"
    inject(model, Adapter("lora", rank=1, targets=widest), range(len(floors.layers_of(model))), seed=0)
    drop(model, NAME.removeprefix("."))
    return list(adapted(model).values())


def add(model: PreTrainedModel, saved: Saved, slot: str) -> None:
    """Put `saved`, whose tensors are without a head's, beside what a `ready` model holds, in place, as
    `slot`, which must be part of no other's name: peft takes one for the other then. Nothing of it learns.

    Raises TrainingError unless names and shapes are the model's; nothing is left of it then.
    """
    from peft import inject_adapter_in_model

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that the model has adapters
        inject_adapter_in_model(_config(model, saved.adapter, saved.layers), model, adapter_name=slot)
    try:
        _place(_inside(model, slot), saved.tensors, slot)
    except TrainingError:
        drop(model, slot)
        raise
    for module in adapted(model).values():
        module.set_adapter([])  # no one is active: a call says which it wants
    model.eval()


def drop(model: PreTrainedModel, slot: str) -> None:
    """Take out what `add` put in, in place."""
    for module in adapted(model).values():
        module.set_adapter([])  # or peft picks another and warns
        module.delete_adapter(slot)
    del model.peft_config[slot]


def combine(
    model: PreTrainedModel,
    parts: Mapping[str, Saved],
    weights: Sequence[float],
    *,
    by: str,
    density: float | None,
    seed: int,
) -> Saved:
    """What peft's `add_weighted_adapter` makes of LoRA adapters, whose tensors are without a head's: one of
    kind `lora` on every layer and target of theirs, the rest as in the first. `model` holds all of them then.

    Its alpha is its rank: peft puts every part's scale into the tensors, also where the first is `rslora`.
    parts: by what errors call them. seed: of what DARE draws. Raises TrainingError unless names and shapes
    are the model's.
    """
    with warnings.catch_warnings(action="ignore", category=UserWarning), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuner, slots = _beside(model, parts)
        tuner.add_weighted_adapter(slots, [*weights], "made_", by, density=density)
        adapter, layers = _around([*parts.values()], tuner.peft_config["made_"].r)
        tuner.peft_config["frame_"] = _config(model, adapter, layers)
        tuner.inject_adapter(model, "frame_")
    made, frame = _inside(model, "made_"), _inside(model, "frame_")
    tensors = {name: made[name].data if name in made else torch.zeros_like(frame[name]) for name in frame}
    return replace(next(iter(parts.values())), adapter=adapter, layers=layers, tensors=tensors)


def adapted(model: PreTrainedModel) -> dict[str, Any]:
    """The modules that hold an adapter, by path."""
    return {name: one for name, one in model.named_modules() if hasattr(one, "adapter_layer_names")}


def _beside(model: PreTrainedModel, parts: Mapping[str, Saved]) -> tuple[Any, list[str]]:
    """Peft's tuner of `model`, in which they stand now, and the slot of each."""
    from peft import LoraModel

    slots = [f"part{place}_" for place in range(len(parts))]
    configs = {
        slot: _config(model, one.adapter, one.layers) for slot, one in zip(slots, parts.values(), strict=True)
    }
    tuner = LoraModel(model, configs, slots[0])
    for slot in slots[1:]:
        tuner.inject_adapter(model, slot)
    for slot, (source, one) in zip(slots, parts.items(), strict=True):
        _place(_inside(model, slot), one.tensors, source)
    return tuner, slots


def _around(parts: Sequence[Saved], rank: int) -> tuple[Adapter, tuple[int, ...]]:
    """An adapter that stands wherever one of them does, and the numbers of its layers."""
    targets = max((one.adapter.targets for one in parts), key=lambda name: len(TARGETS[name]))
    layers = {layer for one in parts for layer in one.layers}
    return Adapter("lora", rank, alpha=float(rank), targets=targets), tuple(sorted(layers))


def _inside(model: PreTrainedModel, slot: str) -> dict[str, nn.Parameter]:
    """What stands in `slot`, under the names that peft gives it in files."""
    own = {name: one for name, one in model.named_parameters() if f".{slot}." in name}
    return {PREFIX + name.replace(f".{slot}", ""): one for name, one in own.items()}


def _place(own: Mapping[str, nn.Parameter], found: Mapping[str, Tensor], source: Path | str) -> None:
    faults = sorted(own.keys() ^ found.keys())
    faults += [name for name in own.keys() & found.keys() if own[name].shape != found[name].shape]
    if faults:
        raise TrainingError(f"{source} does not fit the model: {', '.join(faults)}; put it on its own base")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])


def _kind(adapter: Adapter) -> Kind:
    faults = [
        f"no {what} {name!r}; {did_you_mean(name, known)}"
        for what, name, known in (("adapter", adapter.kind, KINDS), ("targets", adapter.targets, TARGETS))
        if name not in known
    ]
    if faults:
        raise TrainingError("; ".join(faults))
    return KINDS[adapter.kind]


def _parts(model: PreTrainedModel, layers: Sequence[int], roles: Sequence[str]) -> list[str]:
    """The paths of the dense layers that have these roles."""
    kind = floors.body_type(model)
    if kind not in PARTS:
        raise TrainingError(f"no adapter is known for model type {kind!r}; {did_you_mean(kind, PARTS)}")
    if missing := [role for role in roles if role not in PARTS[kind]]:
        raise TrainingError(
            f"model type {kind!r} has experts, of which no adapter reaches {' and '.join(missing)}: set "
            "finetuning.adapter to {kind: lora, targets: attention}"
        )
    names = dict.fromkeys(PARTS[kind][role] for role in roles)  # GPT-2 has three of them in one
    return [f"{floors.layer_path(model, layer)}.{name}" for layer in layers for name in names]


def _config(model: PreTrainedModel, adapter: Adapter, layers: Sequence[int]) -> Any:
    """Peft's own description of the adapter; None where peft has none of this kind."""
    config = _kind(adapter).config
    return config and config(adapter, partial(_parts, model, layers))


def _narrow(model: PreTrainedModel, paths: Sequence[str], width: int) -> None:
    for path in paths:
        model.set_submodule(path, Bottleneck(model.get_submodule(path), width))  # type: ignore[arg-type]


def _kept(model: PreTrainedModel, whole: Sequence[str]) -> dict[str, nn.Parameter]:
    """What an adapter's folder holds, under the names that peft gives it in files."""
    stack = floors.floors(model)
    found = {name: value for floor in stack for name, value in floor.adapter.items()}
    found |= stack[-1].parameters
    found |= {name: model.get_parameter(name) for name in whole}
    return {PREFIX + _public(name): value for name, value in found.items()}


def _public(name: str) -> str:
    return name.replace(NAME, "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def _plain(value: Any) -> Any:
    """Sets in one order: equal adapters give equal files."""
    return sorted(value) if isinstance(value, set) else value


def _logits(model: PreTrainedModel, given: Mapping[str, Tensor]) -> Tensor:
    model.eval()
    with torch.no_grad():
        found: Tensor = model(**given).logits
    return found


def _lora(adapter: Adapter, parts: Parts, **variant: bool) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=parts(TARGETS[adapter.targets]),
        **variant,  # type: ignore[arg-type]
    )


def _ia3(adapter: Adapter, parts: Parts) -> Any:
    """What scales keys, values and the inner states of the feed-forward part (Liu et al., 2022, §3.3)."""
    from peft import IA3Config

    return IA3Config(target_modules=parts(("key", "value", "down")), feedforward_modules=parts(("down",)))


TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("query", "key", "value", "output"),
    "all-linear": ("query", "key", "value", "output", "up", "down"),
}

BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
PARTS: Mapping[str, Mapping[str, str]] = {  # model type -> role -> dense layer, below a layer's path
    "bert": BERT,
    "roberta": BERT,
    "distilbert": {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "output": "attention.out_lin",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
    },
    "gpt2": {
        **dict.fromkeys(("query", "key", "value"), "attn.c_attn"),
        "output": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    "llama": {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    "mixtral": {  # the experts of a layer are one tensor
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
    },
}

KINDS: Mapping[str, Kind] = {
    "lora": Kind(_lora),  # Hu et al., 2022
    "dora": Kind(partial(_lora, use_dora=True)),  # Liu et al., 2024
    "rslora": Kind(partial(_lora, use_rslora=True)),  # Kalajdzievski, 2023
    "ia3": Kind(_ia3),
    "houlsby": Kind(behind=("output", "down")),  # Houlsby et al., 2019, figure 2
    "pfeiffer": Kind(behind=("down",)),  # Pfeiffer et al., 2021: behind the feed-forward part alone
}
