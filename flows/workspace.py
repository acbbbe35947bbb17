"""A place of its own for a run with overrides: a git worktree that shares the checkout's DVC cache.

The checkout is never edited, and runs at the same time cannot collide.
"""

import configparser
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import chdir
from datetime import UTC, datetime
from pathlib import Path

from dvc.repo import Repo
from filelock import FileLock

from tasks import params as parameters
from tasks.artifacts import PreparedText, Sources
from tasks.errors import WorkspaceError
from tasks.params import Params

RUNS, REBUILDS = Path(".regraft") / "runs", Path(".regraft") / "rebuilds"
IDENTITY = ("-c", "user.name=regraft", "-c", "user.email=regraft@localhost")


def create(
    checkout: Path, params: Params, *, like: Path | None = None, bring: Sequence[str] = (PreparedText.stage,)
) -> Path:
    """A worktree `.regraft/runs/<id>` of `checkout` as it stands, with `params` as its params.yaml.

    Uncommitted changes to tracked files come along; files that git does not track stay behind. What stages
    have made, `checkout` or another workspace of it tells (`like`); the outputs of those in `bring` are there
    at once, those of others when they are asked for.

    Raises WorkspaceError where `checkout` is not a git repository with a commit.
    """
    with FileLock(_lock(checkout)):  # git itself does not wait for another's index.lock
        _git(checkout, "status", "--porcelain")  # refreshes the index: `stash create` fails on a stale one
        revision = _git(checkout, *IDENTITY, "stash", "create") or _git(checkout, "rev-parse", "HEAD")
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    target = checkout / RUNS / name
    _git(checkout, "worktree", "add", "--detach", "--quiet", str(target), revision)
    try:
        _configure(checkout, target)
        _furnish(like or checkout, target, parameters.dump(params), bring)
    except BaseException:
        remove(checkout, target)
        raise
    return target


def rebuild(checkout: Path, revision: str, params: str) -> Path:
    """A worktree `.regraft/rebuilds/<id>` of `checkout` at `revision`, with the params.yaml `params` as that
    revision understood it, that is a checkout of its own: no resume point, cached state or run of `checkout`
    is found from there.

    Raises WorkspaceError where git no longer has `revision`.
    """
    target = checkout / REBUILDS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    _git(checkout, "worktree", "add", "--detach", "--quiet", str(target), revision)
    try:
        _configure(checkout, target)
        _furnish(checkout, target, params, (PreparedText.stage,))
        for path in parameters.source_paths(params):
            _link(checkout / path, target / path)
    except BaseException:
        remove(checkout, target)
        raise
    return target


def _link(source: Path, target: Path) -> None:
    """A source that git does not track."""
    if source.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)


def _lock(checkout: Path) -> Path:
    folder = checkout / RUNS.parent
    folder.mkdir(exist_ok=True)
    return folder / "workspace.lock"


def remove(checkout: Path, target: Path) -> None:
    _git(checkout, "worktree", "remove", "--force", str(target))


def _configure(checkout: Path, target: Path) -> None:
    config = configparser.ConfigParser()
    config.read([checkout / ".dvc" / "config.local"])
    with Repo(str(checkout)) as repo:
        config.read_dict({"cache": {"dir": repo.cache.local_cache_dir}})
    with (target / ".dvc" / "config.local").open("w", encoding="utf-8") as stream:
        config.write(stream)


def _furnish(source: Path, target: Path, params: str, bring: Sequence[str]) -> None:
    (target / "params.yaml").write_text(params, encoding="utf-8")
    if (Sources.folder(source)).exists():  # so that `sources` compares instead of starting from nothing
        shutil.copytree(Sources.folder(source), Sources.folder(target))
    if (source / "dvc.lock").exists():
        shutil.copyfile(source / "dvc.lock", target / "dvc.lock")
        _bring(target, bring)


def _bring(target: Path, stages: Sequence[str]) -> None:
    """Outputs from the cache. Preparation's always: a stage with an out that persists is in no run cache, and
    without the ledger it would refuse to run."""
    with chdir(target), Repo() as repo:
        repo.checkout(list(stages), force=True, allow_missing=True)


def _git(checkout: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=checkout, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise WorkspaceError("git is not installed, and a run with overrides needs a worktree") from None
    except subprocess.CalledProcessError as error:
        raise WorkspaceError(
            f"git {' '.join(words)} failed in {checkout}: {error.stderr.strip()}; a run with overrides "
            "needs a git repository with at least one commit"
        ) from None
    return done.stdout.strip()
