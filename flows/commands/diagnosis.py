"""`regraft doctor`: is everything that a run needs in place, and if not, what mends it."""

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from flows.commands import figures, reach
from flows.commands.check import Check
from tasks import params as parameters
from tasks import references
from tasks.errors import RegraftError
from tasks.params import Params

GIGABYTE = 10**9


# Of the checkpoint's size, at most: converted and trained model, a copy of each in DVC's cache, one in
# MLflow, and a resume point with two moments a weight.
COPIES = 8
FLOOR = 2 * GIGABYTE  # where its size is not known


def examine(root: Path) -> Iterator[Check]:
    """Every check on its own: what one finds keeps no other from being made. None takes long."""
    yield _platform(sys.platform)
    yield _python()
    yield from _packages()
    yield _repository(root)
    params = None
    try:
        params = parameters.load(root / "params.yaml")
        yield Check("params.yaml", True, "every key known, every value in range")
    except RegraftError as error:
        yield Check("params.yaml", False, str(error), "mend the lines named above")
    if params:
        yield from _sources(params, root)
        yield _device(params)
        yield _tracking(root)
    yield _disk(root, params)
    yield from reach.prefect(root, params.operations.finetuning if params else None)
    if (root / ".dvc").is_dir():
        yield from reach.remotes(root)


def _platform(name: str) -> Check:
    told = {"linux": "Linux", "darwin": "macOS: best effort, no test runs there"}.get(name)
    remedy = "on Windows use WSL (https://learn.microsoft.com/windows/wsl): natively no stage runs"
    return Check("platform", told is not None, told or f"{name} is not supported", remedy)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    """Each requirement of this project against what is installed."""
    wanted = [Requirement(line) for line in importlib.metadata.requires("regraft") or ()]
    wrong = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = Version(importlib.metadata.version(requirement.name)).public
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} (installed: {version or 'no'})")
    found = "; ".join(wrong) or f"{len(wanted)} requirements hold"
    yield Check("packages", not wrong, found, "make clean-venv && make install")


def _repository(root: Path) -> Check:
    remedy = "run in a git clone of the project with at least one commit"
    if shutil.which("git") is None:
        return Check("git and dvc", False, "git is not installed", remedy)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    ok = done.returncode == 0 and (root / ".dvc").is_dir()
    return Check("git and dvc", ok, done.stdout.strip()[:12] if ok else "no commit or no .dvc here", remedy)


def _disk(root: Path, params: Params | None) -> Check:
    free, needed = shutil.disk_usage(root).free, FLOOR
    if params and (size := _checkpoint_size(params, root)):
        needed = COPIES * size
    found = f"{figures.size(free)} free, {figures.size(needed)} wanted for copies of the weights"
    return Check("disk", free > needed, found, "free some: `regraft clean` shows what old work has left")


def _checkpoint_size(params: Params, root: Path) -> int | None:
    """None where it is not on this disk."""
    wanted = params.sources.checkpoint
    try:
        if references.is_remote(wanted.path, root=root):
            return None
        found = references.locate(wanted.path, root=root, revision=wanted.revision)
    except RegraftError:
        return None
    return sum(path.stat().st_size for path in [found, *found.rglob("*")] if path.is_file())


def _device(params: Params) -> Check:
    import torch

    from tasks.training import device

    try:
        device.demand_enough(device.choose(params.finetuning.device), params.finetuning.processes)
    except RegraftError as error:
        return Check("device", False, str(error), "change params.yaml, or see what `nvidia-smi` says")
    if not torch.cuda.is_available():
        seen = shutil.which("nvidia-smi") is not None
        found = f"CPU with {torch.get_num_threads()} threads{', though there is nvidia-smi' * seen}"
        return Check("device", not seen, found, "install the torch for your driver: https://pytorch.org")
    return Check("device", True, "; ".join(map(_gpu, range(torch.cuda.device_count()))))


def _gpu(number: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    return f"{torch.cuda.get_device_name(number)}, {figures.size(free)} of {figures.size(total)} free"


def _sources(params: Params, root: Path) -> Iterator[Check]:
    text, checkpoint = params.sources.text, params.sources.checkpoint
    if references.is_remote(text.path, root=root):
        yield Check("text", True, f"{text.path}: fetched from the Hub when it is first needed")
    else:
        yield _check("text", text.path, lambda: references.locate_text(text.path, root=root))
    if references.is_remote(checkpoint.path, root=root):
        yield Check("checkpoint", True, f"{checkpoint.path}: fetched from the Hub when it is first needed")
        return
    yield _check(
        "checkpoint",
        checkpoint.path,
        lambda: references.locate(checkpoint.path, root=root, revision=checkpoint.revision),
    )


def _tracking(root: Path) -> Check:
    from tasks.tracking import server

    return _check("tracking", server.uri(root), lambda: server.connect(root))


def _check(name: str, finding: str, attempt: Callable[[], object]) -> Check:
    try:
        attempt()
    except RegraftError as error:
        return Check(name, False, finding, str(error))
    return Check(name, True, finding)
