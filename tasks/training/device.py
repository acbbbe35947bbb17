"""Where the arithmetic happens."""

import torch
from torch import nn

from tasks.errors import TrainingError


def choose(wanted: str) -> str:
    """`auto` takes CUDA where there is one. Raises TrainingError if `cuda` is asked for and absent."""
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise TrainingError("finetuning.device is cuda, but torch sees no CUDA device: use auto or cpu")
    return "cuda" if present and wanted != "cpu" else "cpu"


def demand_one(model: nn.Module) -> None:
    """Raise TrainingError where parts of the model lie on different devices: a step would fail half-way."""
    places: dict[str, str] = {}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        places.setdefault(str(value.device), name)
    if len(places) > 1:
        told = ", ".join(f"{name} on {place}" for place, name in places.items())
        raise TrainingError(f"parts of the model are on different devices: {told}; move it as a whole")
