"""What git and DVC ask of a worktree of a checkout, whatever it is for."""

import configparser
import os
import subprocess
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from filelock import FileLock

from tasks.errors import WorkspaceError

SNAPSHOT = "regraft workspace"  # of uncommitted changes, which no other clone has
LOCK = "dvc.lock"
IDENTITY = ("-c", "user.name=regraft", "-c", "user.email=regraft@localhost")


def snapshot(checkout: Path) -> str:
    """A commit of `checkout` as it stands."""
    with one_at_a_time(checkout):
        git(checkout, "status", "--porcelain")  # refreshes the index: `stash create` fails on a stale one
        return git(checkout, *IDENTITY, "stash", "create", SNAPSHOT) or git(checkout, "rev-parse", "HEAD")


def one_at_a_time(checkout: Path) -> FileLock:
    """git itself does not wait for another's index.lock."""
    return FileLock(folder(checkout) / "workspace.lock")


def folder(root: Path) -> Path:
    found = root / ".regraft"
    found.mkdir(exist_ok=True)
    return found


def configure(checkout: Path, target: Path) -> None:
    config = configparser.ConfigParser()
    config.read([checkout / ".dvc" / "config.local"])
    with Repo(str(checkout)) as repo:
        config.read_dict({"cache": {"dir": repo.cache.local_cache_dir}})
    with (target / ".dvc" / "config.local").open("w", encoding="utf-8") as stream:
        config.write(stream)


def restore(target: Path, stages: Sequence[str]) -> None:
    """Outputs from the cache. Preparation's always: a stage with an out that persists is in no run cache, and
    without the ledger it would refuse to run."""
    try:
        with chdir(target), Repo() as repo:
            repo.checkout(list(stages), force=True, allow_missing=True)
    except DvcException as error:
        raise WorkspaceError(f"DVC: {error}; is {target / LOCK}, or where it comes from, torn?") from error


def git(checkout: Path, *words: str) -> str:
    quiet = ("-c", f"core.hooksPath={os.devnull}")  # DVC's would check out what another lock file names
    try:
        done = subprocess.run(
            ["git", *quiet, *words], cwd=checkout, check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise WorkspaceError("git is not installed, and a run with overrides needs a worktree") from None
    except subprocess.CalledProcessError as error:
        raise WorkspaceError(
            f"git {' '.join(words)} failed in {checkout}: {error.stderr.strip()}; what is asked "
            "for needs a git repository with at least one commit"
        ) from None
    return done.stdout.strip()
