"""A resume point: one safetensors file that holds all that the rest of the training depends on.

Tensors: every parameter trained so far, the optimizer's moments, the state of the random generator; in the
header: where the training stands and the steps so far. One file, renamed into place, is whole or absent.
"""

import errno
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks import files
from tasks.training.loop import Step


@dataclass(frozen=True)
class Point:
    """Training stands in phase number `phase`, after `done` of its steps."""

    phase: int
    done: int
    steps: tuple[Step, ...]
    records: tuple[Mapping[str, Any], ...]  # of the phases that are complete
    tensors: Mapping[str, Tensor]


def save(
    target: Path,
    *,
    phase: int,
    done: int,
    steps: Sequence[Step],
    records: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, nn.Parameter],
    adam: torch.optim.Optimizer,
) -> None:
    tensors = {f"weight/{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"moment/{place}/{key}": value for place, key, value in _moments(adam)}
    tensors |= {f"random/{name}": value for name, value in random_state().items()}
    header = {
        "phase": str(phase),
        "done": str(done),
        "steps": json.dumps([asdict(step) for step in steps]),
        "records": json.dumps(list(records)),
    }
    with files.replace_file(target) as draft:
        write_tensors(draft, {name: value.cpu().contiguous() for name, value in tensors.items()}, header)


def write_tensors(target: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises OSError with its number, which safetensors tells only in words."""
    try:
        save_file(dict(tensors), target, dict(header))
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        raise OSError(int(found[1]) if found else errno.EIO, str(error), str(target)) from error


def load(target: Path) -> Point | None:
    """The resume point at `target`, or None where there is none."""
    if not target.exists():
        return None
    with safe_open(target, framework="pt") as point:
        header = point.metadata()
        tensors = {name: point.get_tensor(name) for name in point.keys()}  # noqa: SIM118 - not a mapping
    steps = tuple(Step(**step) for step in json.loads(header["steps"]))
    records = tuple(json.loads(header["records"]))
    return Point(int(header["phase"]), int(header["done"]), steps, records, tensors)


def restore_weights(point: Point, model: nn.Module) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in _below(point, "weight/").items():
            own[name].copy_(value)


def restore_optimizer(point: Point, adam: torch.optim.Optimizer) -> None:
    """Put the moments back; `adam` must have been built for the phase in which the point was saved."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(point, "moment/").items():
        place, _, key = name.partition("/")
        state.setdefault(int(place), {})[key] = value
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})


def random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random(point: Point) -> None:
    state = _below(point, "random/")
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _moments(adam: torch.optim.Optimizer) -> list[tuple[int, str, Tensor]]:
    state = adam.state_dict()["state"]
    return [(place, key, value) for place, held in state.items() for key, value in held.items()]


def _below(point: Point, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in point.tensors.items() if k.startswith(prefix)}
