"""A resume point: one safetensors file that holds all that the rest of the training depends on.

Tensors: every parameter trained so far, what an optimizer remembers of them, the state of the random
generator, the steps so far; in the header: where the training stands and what else it has told. One file,
renamed into place, is whole or absent. The best epoch of a phase is kept the same way, beside it.
"""

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks import files
from tasks.errors import TrainingError
from tasks.training import events, randomness, updates
from tasks.training.events import Event

STEPS = "steps"


@dataclass(frozen=True)
class Point:
    """Training stands in phase number `phase`, after `done` of its steps."""

    phase: int
    done: int
    told: tuple[Event, ...]
    tensors: Mapping[str, Tensor]

    @property
    def moments(self) -> updates.Moments:
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in self._below("moment/").items():
            parameter, _, key = name.rpartition("/")
            found.setdefault(parameter, {})[key] = value
        return found

    @property
    def random(self) -> Mapping[str, Tensor]:
        return self._below("random/")

    def place_weights(self, model: nn.Module) -> None:
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self._below("weight/").items():
                own[name].copy_(value)

    def _below(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def save(
    target: Path,
    *,
    phase: int,
    done: int,
    told: Sequence[Event],
    parameters: Mapping[str, nn.Parameter],
    moments: updates.Moments,
) -> None:
    """Raises TrainingError where the disk is full: what was kept before stays."""
    tensors = {f"weight/{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"moment/{name}/{key}": v for name, kept in moments.items() for key, v in kept.items()}
    tensors |= {f"random/{name}": value for name, value in randomness.state().items()}
    tensors[STEPS], others = events.pack(told)
    header = {"phase": str(phase), "done": str(done), "told": others}
    try:
        with files.replace_file(target) as draft:
            write_tensors(draft, {name: value.cpu().contiguous() for name, value in tensors.items()}, header)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"{target}: no room left for a resume point: make room and run again; the training goes on "
            "from the point before"
        ) from None


def write_tensors(target: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises OSError with its number, which safetensors tells only in words."""
    try:
        save_file(dict(tensors), target, dict(header))
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        raise OSError(int(found[1]) if found else errno.EIO, str(error), str(target)) from error


def load(target: Path) -> Point | None:
    """The resume point at `target`, on the CPU wherever it was saved, or None where there is none."""
    if not target.exists():
        return None
    with safe_open(target, framework="pt") as point:
        header = point.metadata()
        tensors = {name: point.get_tensor(name) for name in point.keys()}  # noqa: SIM118 - not a mapping
    told = events.unpack(tensors[STEPS], header["told"])
    return Point(int(header["phase"]), int(header["done"]), told, tensors)
