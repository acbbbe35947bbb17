"""The model to be filled, empty: transformers says which tensors it has, so that no list is kept by hand."""

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from tasks.errors import CheckpointError
from tasks.weights.inert import inert
from tasks.weights.plan import Target

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TORCH_NAMES = {name: str(dtype).removeprefix("torch.") for dtype, name in DTYPES.items()}
# Where a model came from and what it was trained for.
LEFT_OUT = ("architectures", "dtype", "torch_dtype", "transformers_version")


def classifier_config(config: Mapping[str, Any], labels: Sequence[str]) -> PretrainedConfig:
    """The checkpoint's config with our labels. Raises CheckpointError for values transformers refuses."""
    kept = {
        name: value
        for name, value in inert(config).items()
        if name not in LEFT_OUT and not name.startswith("_")
    }
    kept |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    kept |= {"problem_type": "single_label_classification"}
    kept.pop("num_labels", None)  # follows from id2label
    try:
        return AutoConfig.for_model(kept.pop("model_type"), **kept)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise CheckpointError(_not_a_model(error)) from None


def _not_a_model(error: Exception) -> str:
    """transformers may list every model it knows; its first words say what is wrong."""
    return f"config.json does not describe a model: {shorten(str(error), 300)}"


def targets(config: PretrainedConfig) -> Mapping[str, Target]:
    """Name, shape and dtype of every tensor that the classifier saves; tied ones count once."""
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(_not_a_model(error)) from None
    state = model.state_dict().items()
    tied = model.all_tied_weights_keys
    return {
        name: Target(tuple(value.shape), DTYPES[value.dtype]) for name, value in state if name not in tied
    }


def architecture(config: PretrainedConfig) -> str:
    return str(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type])


def serialise(config: PretrainedConfig, dtype: str) -> dict[str, Any]:
    """config.json's content: what differs from nothing but the model itself; no path, no version, no date.

    dtype: of the saved tensors, in safetensors' spelling. Keys of id2label stay numbers, so that sorting
    them keeps the order of the labels.
    """
    fields: dict[str, Any] = config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version"):
        fields.pop(name, None)
    return fields | {"architectures": [architecture(config)], "dtype": TORCH_NAMES[dtype]}


def source_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The label names that the checkpoint's own head was trained for; empty where it names none."""
    names = config.get("id2label")
    if not isinstance(names, dict) or not all(str(key).isdigit() for key in names):
        return ()
    return tuple(str(names[key]) for key in sorted(names, key=int))
