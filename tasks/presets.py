"""Named ways to fine-tune, as data: what `regraft init --preset NAME` writes into params.yaml, in full.

Rates are those of small encoders: 1e-3 for a new head, 1e-4 to 2e-4 for what was pretrained (Turc et al.,
2019, took 3e-5 to 3e-4). Trained on 1,000 default tweets `full` had .57 of 200 validation rows right at 3e-5,
of 800 .70 at 1e-4 and .71 at 2e-4; `lora` .68 at 4e-4 and .71 at 1e-3. From BERT's size on take 2e-5 to 5e-5
(Devlin et al., 2019). Depths hold for any number of layers from two on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Kinds of row whose head is the checkpoint's own, and often its word table: it needs no phase for itself.
KEPT_HEAD = ("text", "completion", "chat", "translation", "prefix-remainder")
TRIANGLE = {"schedule": "slanted-triangular"}  # Howard & Ruder, 2018, §3.2, with its warm-up of a tenth
GROUPS = {"layer_decay": 0.9, **TRIANGLE}  # there 1 / 2.6, of three layers: too slow for six


@dataclass(frozen=True)
class Preset:
    """values: keys of the section finetuning; those that only other presets name go back to their defaults.
    source: who proposed it."""

    summary: str
    source: str
    values: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = {
    "feature-extraction": Preset(
        "the head alone, on features that are computed once; the body stays as it was",
        "Peters et al., 2019, To Tune or Not to Tune",
        {
            "phases": [
                {"name": "head", "depth": 0, "epochs": 20, "learning_rate": 1e-3, "early_stopping": 3},
            ]
        },
    ),
    "linear-probe-then-finetune": Preset(
        "the head until it is good, then everything at a low rate: a random head tears no features",
        "Kumar et al., 2022, Fine-Tuning can Distort Pretrained Features",
        {
            "phases": [
                {"name": "head", "depth": 0, "epochs": 10, "learning_rate": 1e-3},
                {"name": "whole", "depth": "all", "epochs": 2, "learning_rate": 3e-5},
            ]
        },
    ),
    "gradual": Preset(
        "from the head down in four groups, each layer slower than the one above it",
        "Howard & Ruder, 2018, ULMFiT",
        {
            "phases": [
                {"name": "head", "depth": 0, "epochs": 5, "learning_rate": 1e-3, **TRIANGLE},
                {"name": "top", "depth": 1, "epochs": 1, "learning_rate": 2e-4, **GROUPS},
                {"name": "upper", "depth": "half", "epochs": 1, "learning_rate": 2e-4, **GROUPS},
                {"name": "whole", "depth": "all", "epochs": 2, "learning_rate": 1e-4, **GROUPS},
            ]
        },
    ),
    "freeze-early": Preset(
        "the upper half only: embeddings and lower layers stay as they were, and are computed once",
        "Lee et al., 2019, What Would Elsa Do?",
        {
            "phases": [
                {"name": "head", "depth": 0, "epochs": 5, "learning_rate": 1e-3},
                {"name": "upper", "depth": "half", "epochs": 3, "learning_rate": 2e-4},
            ]
        },
    ),
    "full": Preset(
        "everything at one rate from the first step on: the usual recipe, and the dearest",
        "Devlin et al., 2019, BERT",
        {"phases": [{"name": "whole", "depth": "all", "epochs": 3, "learning_rate": 1e-4}]},
    ),
    "lora": Preset(
        "small tensors in every layer learn in place of the layers, and are merged into them at the end",
        "Hu et al., 2022, LoRA",
        {
            "adapter": {"kind": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": "attention"},
            "phases": [
                {"name": "head", "depth": 0, "epochs": 5, "learning_rate": 1e-3},
                {"name": "adapters", "depth": "all", "epochs": 3, "learning_rate": 1e-3},
            ],
        },
    ),
    "cpu-smoke": Preset(
        "a few steps, to see that everything runs; its model is worth nothing",
        "ours",
        {
            "phases": [
                {"name": "head", "depth": 0, "steps": 10, "learning_rate": 1e-3},
                {"name": "whole", "depth": "all", "steps": 3, "learning_rate": 5e-5},
            ]
        },
    ),
}
DECIDED = tuple(dict.fromkeys(key for preset in PRESETS.values() for key in preset.values))
