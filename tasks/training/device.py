"""Where the arithmetic happens, and how exactly."""

import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from tasks.errors import TrainingError

PAUSE = 1.0  # seconds between two looks for a free device
PATIENCE = 1800.0  # seconds that what is done in minutes waits for a training that may take days
HOME = Path("/tmp/regraft-devices")  # of all users, whose TMPDIR may differ
OPEN = 0o1777
log = logging.getLogger(__name__)


def choose(wanted: str) -> str:
    """`auto` takes CUDA where there is one. Raises TrainingError if `cuda` is asked for and absent."""
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise TrainingError("finetuning.device is cuda, but torch sees no CUDA device: use auto or cpu")
    return "cuda" if present and wanted != "cpu" else "cpu"


@contextmanager
def taken(wanted: str, processes: int = 1, *, patience: float = math.inf) -> Iterator[tuple[str, ...]]:
    """The device of each of `processes`, such as ("cuda:2", "cuda:3"): meanwhile nobody else of ours on this
    machine has it, whoever runs it. A CPU is shared, and so is a device after `patience` seconds.

    Raises TrainingError as `choose` and `demand_enough` do, and where no lock can be kept.
    """
    chosen = choose(wanted)
    demand_enough(chosen, processes)
    if chosen == "cpu":
        yield (chosen,) * processes
        return
    known = names(_uuids(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    with leased(known, processes, HOME, patience=patience) as places:
        torch.cuda.set_device(places[0])  # what asks for no device by number means this one
        yield tuple(f"{chosen}:{place}" for place in places)


def _uuids() -> list[str | None]:
    """Of each device that torch sees; None where its CUDA does not tell."""
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [str(found) if (found := getattr(one, "uuid", None)) else None for one in properties]


def names(uuids: Sequence[str | None], visible: str | None) -> list[str]:
    """What the devices that torch numbers from 0 are called by every process of this machine: by what they
    are, whichever of them a process sees, and by their place only where that is not told."""
    listed = [entry.strip().replace("/", "-") for entry in visible.split(",")] if visible else []
    listed += [str(place) for place in range(len(listed), len(uuids))]
    return [f"GPU-{uuid}" if uuid else entry for uuid, entry in zip(uuids, listed, strict=False)]


@contextmanager
def leased(
    known: Sequence[str], count: int, home: Path, *, patience: float = math.inf
) -> Iterator[tuple[int, ...]]:
    """Places in `known` of the first `count` devices that are free, held by locks in the directory `home`.

    The system drops a lock with the process that holds it, however that ends. Where too few are free this
    waits, holding none, so that two that want several cannot wait for one another; after `patience` seconds
    it goes on with the first ones, beside who has them.
    """
    _demand_open_to_all(home)
    begun, told = time.monotonic(), False
    while True:
        with ExitStack() as held:
            places = _free(known, count, home, held)
            if len(places) == count:
                yield tuple(places)
                return
        if not told:
            log.info("%d of %d GPUs are free, %d needed: waiting", len(places), len(known), count)
            told = True
        if time.monotonic() - begun >= patience:
            log.warning("no GPU was free within %g s: going on beside another", patience)
            yield tuple(range(count))
            return
        time.sleep(PAUSE)


def _demand_open_to_all(home: Path) -> None:
    """As the directory of temporary files: everybody may lock there, and nobody remove another's lock."""
    with suppress(FileExistsError):
        home.mkdir(parents=True)
        home.chmod(OPEN)  # whatever the umask says
    about = home.lstat()
    if not stat.S_ISDIR(about.st_mode) or stat.S_IMODE(about.st_mode) != OPEN:
        raise TrainingError(
            f"{home} shall be a directory in which every user may lock devices: remove it, or `chmod 1777 "
            f"{home}`"
        )


def _free(known: Sequence[str], count: int, home: Path, held: ExitStack) -> list[int]:
    """One process looks at a time: what it takes and gives back at once must not seem busy to another."""
    places: list[int] = []
    with FileLock(home / "choosing.lock", mode=0o666):
        for place, name in enumerate(known):
            lock = FileLock(home / f"{name}.lock", mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            held.callback(lock.release)
            places.append(place)
            if len(places) == count:
                return places
        held.close()
    return places


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
