"""Where and with what a stage ran: host, process, commit, changed files, versions, digests."""

import getpass
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from tasks import files
from tasks.artifacts import MANIFEST
from tasks.tracking.server import short

PACKAGES = ("datasets", "dvc", "mlflow", "pandas", "prefect", "torch", "transformers")
RECORDED = ("params.yaml", "dvc.lock", "locks/")  # tracked files that a run keeps in its own way

SILENCE = 600.0  # seconds without a sign of life, of which there are six a minute; clocks may differ


def tags(root: Path) -> dict[str, str]:
    found = {"regraft.host": platform.node(), **_versions()}
    if made := commit(root):
        found |= {"mlflow.source.git.commit": made, "regraft.changed": short(" ".join(changed(root)))}
    if (root / "dvc.lock").exists():
        found["dvc.lock"] = files.digest_file(root / "dvc.lock")
    return found


def commit(root: Path) -> str:
    return _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()


def changed(root: Path) -> list[str]:
    """Files that differ from the commit, or are code that it lacks, but for those that a run records."""
    differing = _git(root, "diff", "--name-only", "--relative", "HEAD")
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--", "tasks")
    return [name for name in (differing + unknown).splitlines() if not name.startswith(RECORDED)]


def user() -> str:
    with suppress(KeyError, OSError):  # a container's user may have no name
        return getpass.getuser()
    return str(os.getuid())


def manifest_digest(root: Path, stage: str) -> str | None:
    path = root / "data" / stage / MANIFEST
    return str(json.loads(path.read_text(encoding="utf-8"))["digest"]) if path.exists() else None


def this_process() -> str:
    return f"{platform.node()}|{os.getpid()}|{psutil.Process().create_time():.0f}"


def alive(process: str, heard: float) -> bool:
    """Whether `this_process()` of another time still runs; of another machine's, whether it was heard lately.

    heard: seconds since 1970 of its last sign of life.
    """
    host, _, rest = process.partition("|")
    if host != platform.node():
        return time.time() - heard < SILENCE
    pid, _, born = rest.partition("|")
    if not psutil.pid_exists(int(pid)):
        return False
    with suppress(psutil.NoSuchProcess):
        return f"{psutil.Process(int(pid)).create_time():.0f}" == born
    return False


@cache
def _versions() -> Mapping[str, str]:
    found = {"version.python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[f"version.{package}"] = metadata.version(package)
    return found


def _git(root: Path, *words: str) -> str:
    """What git says; nothing where there is no git or no repository."""
    with suppress(FileNotFoundError):
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return ""
