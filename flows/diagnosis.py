"""`regraft doctor`: is everything that a run needs in place, and if not, what mends it."""

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from tasks import params as parameters
from tasks import references
from tasks.errors import RegraftError
from tasks.params import Params

GIGABYTE = 10**9


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    finding: str
    remedy: str = ""


def examine(root: Path) -> Iterator[Check]:
    yield _python()
    yield from _packages()
    yield _repository(root)
    yield _disk(root)
    yield _device()
    params = None
    try:
        params = parameters.load(root / "params.yaml")
        yield Check("params.yaml", True, "every key known, every value in range")
    except RegraftError as error:
        yield Check("params.yaml", False, str(error), "mend the lines named above")
    if params:
        yield from _sources(params, root)
        yield _tracking(root)


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
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    remedy = "run in a git clone of the project with at least one commit"
    ok = done.returncode == 0 and (root / ".dvc").is_dir()
    return Check("git and dvc", ok, done.stdout.strip()[:12] if ok else "no commit or no .dvc here", remedy)


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    return Check(
        "disk", free > 2 * GIGABYTE, f"{free / GIGABYTE:.1f} GB free", "free 2 GB: weights are kept twice"
    )


def _device() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("device", True, f"CPU with {torch.get_num_threads()} threads")
    return Check("device", True, torch.cuda.get_device_name())


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
