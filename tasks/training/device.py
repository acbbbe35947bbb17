"""Where the arithmetic happens."""

import torch

from tasks.errors import TrainingError


def choose(wanted: str) -> str:
    """`auto` takes CUDA where there is one. Raises TrainingError if `cuda` is asked for and absent."""
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise TrainingError("finetuning.device is cuda, but torch sees no CUDA device: use auto or cpu")
    return "cuda" if present and wanted != "cpu" else "cpu"
