"""A place of its own for a run with overrides: a git worktree that shares the checkout's DVC cache.

The checkout is never edited, and runs at the same time cannot collide.
"""

import logging
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from flows.checkout import places
from flows.checkout.worktrees import (
    IDENTITY,
    LOCK,
    SNAPSHOT,
    configure,
    folder,
    git,
    one_at_a_time,
    restore,
    snapshot,
)
from tasks import environment, files
from tasks import params as parameters
from tasks.artifacts import PreparedText, Sources
from tasks.errors import InputError, WorkspaceError
from tasks.params import Params

RUNS, REBUILDS = Path(".regraft") / "runs", Path(*environment.REBUILDS)
CODE = ("tasks", "dvc.yaml", ".dvc/config")  # what the stages themselves consist of
PATIENCE = 30.0  # seconds for a cancelled run to end: longer than it may take (flows.checkout.stage.PARTING)
log = logging.getLogger(__name__)


@contextmanager
def alone(root: Path, *, wait: float = PATIENCE) -> Iterator[None]:
    """Inside, no other flow brings the checkout or workspace `root` up to date; ends with its process.

    DVC would let two take turns stage by stage, and either could judge what the other has just made.
    Raises WorkspaceError where another is still at work after `wait` seconds.
    """
    held = FileLock(folder(root) / "flow.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("waiting up to %g s: another run is at work in %s", wait, root)
        _await(held, root, wait)
    try:
        yield
    finally:
        held.release()


@contextmanager
def visited(root: Path, *, wait: float = PATIENCE) -> Iterator[None]:
    """Inside, `root` is as `places.current` has it, for who is no flow that works there: in the place of a
    task nobody else does meanwhile.

    Raises WorkspaceError where a run is still at work in it after `wait` seconds, and as `places.current`.
    """
    with alone(root, wait=wait) if places.is_place(root) else nullcontext(), places.current(root):
        yield


def _await(held: FileLock, root: Path, wait: float) -> None:
    try:
        held.acquire(timeout=wait)
    except Timeout:
        raise WorkspaceError(
            f"another run is at work in {root}: give this one again when that has ended, or with -S "
            "KEY=VALUE, which works in a workspace of its own"
        ) from None


def create(
    checkout: Path, params: Params, *, like: Path | None = None, bring: Sequence[str] = (PreparedText.stage,)
) -> Path:
    """A worktree `.regraft/runs/<id>` of `checkout` as it stands, with `params` as its params.yaml.

    Uncommitted changes to tracked files come along; files that git does not track stay behind. What stages
    have made, `checkout` or another workspace of it tells (`like`); the outputs of those in `bring` are there
    at once, those of others when they are asked for.

    Raises WorkspaceError where `checkout` is not a git repository with a commit.
    """
    revision = snapshot(checkout)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    target = checkout / RUNS / name
    git(checkout, "worktree", "add", "--detach", "--quiet", str(target), revision)
    try:
        configure(checkout, target)
        _furnish(like or checkout, target, parameters.dump(params), bring)
    except BaseException:
        remove(checkout, target)
        raise
    return target


def rebuild(checkout: Path, revision: str, params: str, *, like: Path) -> Path:
    """A worktree `.regraft/rebuilds/<id>` of `checkout` at `revision`, with the params.yaml `params` as that
    revision understood it, that is a checkout of its own: no resume point, cached state or run of `checkout`
    is found from there. Its ledger of splits is that of `like`, `checkout` or the place of a task.

    Raises WorkspaceError where git no longer has `revision`.
    """
    target = checkout / REBUILDS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    git(checkout, "worktree", "add", "--detach", "--quiet", str(target), revision)
    try:
        configure(checkout, target)
        _furnish(like, target, params, (PreparedText.stage,))
        for path in parameters.source_paths(params):
            _link(environment.home(checkout) / path, target / path)
    except BaseException:
        remove(checkout, target)
        raise
    return target


def borrow(checkout: Path, revision: str, params: str) -> Path:
    """A worktree `.regraft/runs/<id>` of `checkout` at `revision`, with the params.yaml `params`, where no
    stage has run: for one of a run whose others are elsewhere. Resume points are `checkout`'s.

    Raises InputError where neither this clone nor its remotes have `revision`.
    """
    with one_at_a_time(checkout):
        if not _has(checkout, revision):
            git(checkout, "fetch", "--all", "--quiet")
        if not _has(checkout, revision):
            raise InputError(
                f"{checkout} has no commit {revision}, and neither have its git remotes: push it from where "
                "the run began"
            )
        target = checkout / RUNS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        git(checkout, "worktree", "add", "--detach", "--quiet", str(target), revision)
    try:
        configure(checkout, target)
        (target / "dvc.lock").unlink(missing_ok=True)
        files.write_text(target / "params.yaml", params)
    except BaseException:
        remove(checkout, target)
        raise
    return target


def _has(checkout: Path, revision: str) -> bool:
    with suppress(WorkspaceError):
        return bool(git(checkout, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"))
    return False


def committed(root: Path) -> str:
    """The commit that other clones may have of `root`, a checkout or a workspace of one.

    Raises InputError with the files of our code that differ from it: they cannot go there.
    """
    subject = git(root, "log", "-1", "--format=%s")
    revision = git(root, "rev-parse", "HEAD^1" if subject.endswith(f": {SNAPSHOT}") else "HEAD")
    differing = git(root, "diff", "--name-only", "--relative", revision, "--", *CODE)
    unknown = git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE)
    if names := [*differing.splitlines(), *unknown.splitlines()]:
        raise InputError(
            f"changes that are not committed cannot go to another machine: {', '.join(names)}; commit and "
            "push them, or set operations.finetuning to null"
        )
    return _pushed(root, revision)


def code(root: Path) -> str:
    """A digest of what the stages consist of in `root`, committed or not.

    Raises WorkspaceError where it is not a git repository with a commit.
    """
    commit, changes = git(root, "rev-parse", "HEAD"), git(root, "diff", "HEAD", "--", *CODE)
    unknown = git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE)
    return files.digest_json([commit, changes, unknown])


def _pushed(root: Path, revision: str) -> str:
    """The commit that git's remotes have, where none since has changed our code, as those of dvc.lock; else
    `revision` itself."""
    unpushed = git(root, "rev-list", "--first-parent", revision, "--not", "--remotes").splitlines()
    if not unpushed or not git(root, "branch", "--remotes"):
        return revision
    parents = git(root, "rev-list", "--parents", "--max-count=1", unpushed[-1]).split()[1:]
    same = parents and not git(root, "diff", "--name-only", parents[0], revision, "--", *CODE)
    return parents[0] if same else revision


def commit(root: Path, message: str) -> None:
    """Commit dvc.lock, or that of the task whose place `root` is, and each changed `.dvc` file, as they are
    now; what else is staged stays staged."""
    checkout, ours = environment.home(root), LOCK
    if checkout != root.resolve():
        ours = str(places.keep_lock(root).relative_to(checkout))
    git(checkout, "add", "--", ours)
    if changed := git(checkout, "diff", "--name-only", "--relative", "HEAD", "--", ours, "*.dvc"):
        how = ("--quiet", "--no-verify", "--no-gpg-sign", "-m", message)  # nobody is there to be asked
        git(checkout, *IDENTITY, "commit", *how, "--only", "--", *changed.splitlines())


def _link(source: Path, target: Path) -> None:
    """A source that git does not track."""
    if source.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)


def remove(checkout: Path, target: Path) -> None:
    git(checkout, "worktree", "remove", "--force", str(target))


def _furnish(source: Path, target: Path, params: str, bring: Sequence[str]) -> None:
    (target / "params.yaml").write_text(params, encoding="utf-8")
    if (Sources.folder(source)).exists():  # so that `sources` compares instead of starting from nothing
        shutil.copytree(Sources.folder(source), Sources.folder(target))
    if (source / "dvc.lock").exists():
        shutil.copyfile(source / "dvc.lock", target / "dvc.lock")
        restore(target, bring)
