"""The model to be filled, empty: transformers says which tensors it has, so that no list is kept by hand."""

from collections.abc import Collection, Mapping, Sequence
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto

from tasks import architectures
from tasks.errors import CheckpointError
from tasks.weights.families import family as heads
from tasks.weights.families.decoders import OUTPUT
from tasks.weights.inert import inert
from tasks.weights.plan import Target
from tasks.weights.purposes import Purpose

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TORCH_NAMES = {name: str(dtype).removeprefix("torch.") for dtype, name in DTYPES.items()}
CLASSES: Mapping[str, Mapping[str, str]] = {  # head -> model type -> transformers' class or ours
    heads.SEQUENCES: modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    heads.MEANS: architectures.NAMES,
    heads.TOKENS: modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    heads.ANSWERS: modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    heads.MASKED: modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    heads.CAUSAL: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    heads.CONDITIONAL: modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
# Where a model came from and what it was trained for.
LEFT_OUT = (
    "architectures", "dtype", "torch_dtype", "transformers_version",
    "id2label", "label2id", "num_labels", "problem_type",
)  # fmt: skip


def describe(
    config: Mapping[str, Any], head: str, purpose: Purpose, labels: Sequence[str] = ()
) -> PretrainedConfig:
    """The checkpoint's config as that of transformers' class with `head`, and with our labels.

    Raises CheckpointError for values transformers refuses, and for a model type that it has no such class of.
    """
    kept = {
        name: value
        for name, value in inert(config).items()
        if name not in LEFT_OUT and not name.startswith("_")
    }
    if outputs := tuple(labels) or purpose.outputs:
        kept |= {"id2label": dict(enumerate(outputs))}
        kept |= {"label2id": {label: place for place, label in enumerate(outputs)}}
    if purpose.problem:
        kept["problem_type"] = purpose.problem
    name = _class(architectures.body_type(str(kept.pop("model_type", None))), head)
    try:
        return architectures.configured(_type(name), architectures=[name], **kept)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise CheckpointError(_not_a_model(error)) from None


def _class(kind: Any, head: str) -> str:
    if kind not in CLASSES[head]:
        raise CheckpointError(
            f"transformers has no class for {head} of model type {kind!r}: take another checkpoint, or rows "
            "of another kind (sources.text.kind)"
        )
    return CLASSES[head][kind]


def _type(name: str) -> str:
    """The model type of this class."""
    kind: str = architectures.find(name).config_class.model_type
    return kind


def _not_a_model(error: Exception) -> str:
    """transformers may list every model it knows; its first words say what is wrong."""
    return f"config.json does not describe a model: {shorten(str(error), 300)}"


def empty(config: PretrainedConfig) -> PreTrainedModel:
    """The model of this config, without a value in any tensor."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = architectures.find(architecture(config))(config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(_not_a_model(error)) from None
    return model


def targets(model: PreTrainedModel, tied: Collection[str]) -> Mapping[str, Target]:
    """Name, shape and dtype of every tensor that the model saves, which are all but the `tied`."""
    held = {name: value for name, value in model.state_dict().items() if name not in tied}
    saved = revert_weight_conversion(model, held)  # each expert by itself, where the model has one tensor
    return {name: Target(tuple(value.shape), DTYPES[value.dtype]) for name, value in saved.items()}


def tied(model: PreTrainedModel, held: Collection[str]) -> Mapping[str, str]:
    """Name of a tensor that is another one -> the name of that. held: names in the checkpoint."""
    own = {OUTPUT} & {*held} if not _scales(model.config) else ()
    return {name: first for name, first in model.all_tied_weights_keys.items() if name not in own}


def _scales(config: PretrainedConfig) -> bool:
    """Whether T5's output is its embeddings, scaled; version 1.1 has a table of its own.

    transformers reads that from `tie_word_embeddings`, and then calls all of them tied: what it does follows
    from whether the checkpoint holds such a table.
    """
    return bool(getattr(config, "scale_decoder_outputs", True))


def architecture(config: PretrainedConfig) -> str:
    """The class of what `describe` made."""
    return str((config.architectures or [""])[0])


def serialise(config: PretrainedConfig, dtype: str) -> dict[str, Any]:
    """config.json's content: what differs from nothing but the model itself; no path, no version, no date.

    dtype: of the saved tensors, in safetensors' spelling. Keys of id2label stay numbers, so that sorting
    them keeps the order of the labels.
    """
    fields: dict[str, Any] = config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version"):
        fields.pop(name, None)
    if not _scales(config):
        fields |= {"tie_word_embeddings": False}
    return fields | {"architectures": [architecture(config)], "dtype": TORCH_NAMES[dtype]}


def replaced(source: Mapping[str, Any], config: PretrainedConfig, purpose: Purpose) -> str:
    """Why the checkpoint's own head, if any, is not kept; empty where it gives what `config` asks for.

    source: the checkpoint's config.
    """
    if not purpose.named and not purpose.outputs:
        return ""  # the same outputs in every model
    theirs = (source.get("architectures") or [architecture(config)])[0]
    if theirs != architecture(config):
        return f"new head, that of {theirs} is another"
    if purpose.named and source_labels(source) != tuple((config.id2label or {}).values()):
        return "new head, labels differ"
    learned = source.get("problem_type") or _problem(source)
    return "" if purpose.problem in (None, learned) else f"new head, the checkpoint's is for {learned}"


def _problem(config: Mapping[str, Any]) -> str:
    """What transformers takes a classifier for that does not say it."""
    outputs = len(source_labels(config)) or config.get("num_labels")
    return "regression" if outputs == 1 else "single_label_classification"


def source_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The label names that the checkpoint's own head was trained for; empty where it names none."""
    names = config.get("id2label")
    if not isinstance(names, dict) or not all(str(key).isdigit() for key in names):
        return ()
    return tuple(str(names[key]) for key in sorted(names, key=int))
