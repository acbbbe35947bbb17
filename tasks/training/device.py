"""Where the arithmetic happens, and how exactly."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tasks.errors import TrainingError


def choose(wanted: str) -> str:
    """`auto` takes CUDA where there is one. Raises TrainingError if `cuda` is asked for and absent."""
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise TrainingError("finetuning.device is cuda, but torch sees no CUDA device: use auto or cpu")
    return "cuda" if present and wanted != "cpu" else "cpu"


def of_rank(chosen: str, rank: int) -> str:
    """The device of one of several processes: each has a GPU of its own."""
    return f"{chosen}:{rank}" if chosen == "cuda" else chosen


def demand_enough(chosen: str, processes: int) -> None:
    """Raise TrainingError where there are fewer GPUs than processes; on a CPU there may be any number."""
    present = torch.cuda.device_count()
    if chosen == "cuda" and present < processes:
        raise TrainingError(
            f"finetuning.processes is {processes}, but torch sees {present} CUDA device(s), and each process "
            "needs its own: lower it, or set finetuning.device to cpu"
        )


def computed_in(
    precision: str, forward: Callable[[Sequence[int]], Tensor], device: str
) -> Callable[[Sequence[int]], Tensor]:
    """`forward` with matrix products in `precision` (Micikevicius et al., 2018); weights, gradients and what
    comes out stay float32, and bfloat16 reaches as far as float32, so that no loss needs scaling."""
    if precision == "float32":
        return forward

    def lowered(places: Sequence[int]) -> Tensor:
        with torch.autocast(device, dtype=getattr(torch, precision)):
            return forward(places).float()

    return lowered


def demand_one(model: nn.Module) -> None:
    """Raise TrainingError where parts of the model lie on different devices: a step would fail half-way."""
    places: dict[str, str] = {}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        places.setdefault(str(value.device), name)
    if len(places) > 1:
        told = ", ".join(f"{name} on {place}" for place, name in places.items())
        raise TrainingError(f"parts of the model are on different devices: {told}; move it as a whole")
