"""A place of its own for a run with overrides: a git worktree that shares the checkout's DVC cache.

The checkout is never edited, and runs at the same time cannot collide.
"""

import configparser
import logging
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from filelock import FileLock, Timeout

from tasks import environment, files
from tasks import params as parameters
from tasks.artifacts import PreparedText, Sources
from tasks.errors import InputError, WorkspaceError
from tasks.params import Params

RUNS, REBUILDS = Path(".regraft") / "runs", Path(*environment.REBUILDS)
TASKS, LOCKS = Path(*environment.TASKS), Path("locks")
SNAPSHOT = "regraft workspace"  # of uncommitted changes, which no other clone has
CODE = ("tasks", "dvc.yaml", ".dvc/config")  # what the stages themselves consist of
LOCK = "dvc.lock"
NAMED = re.compile(r"\bmd5: ([0-9a-f]{32}(?:\.dir)?)\b")
IDENTITY = ("-c", "user.name=regraft", "-c", "user.email=regraft@localhost")
PATIENCE = 30.0  # seconds for a cancelled run to end: longer than it may take (flows.checkout.stage.PARTING)
log = logging.getLogger(__name__)


@contextmanager
def alone(root: Path, *, wait: float = PATIENCE) -> Iterator[None]:
    """Inside, no other flow brings the checkout or workspace `root` up to date; ends with its process.

    DVC would let two take turns stage by stage, and either could judge what the other has just made.
    Raises WorkspaceError where another is still at work after `wait` seconds.
    """
    held = FileLock(_folder(root) / "flow.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("waiting up to %g s: another run is at work in %s", wait, root)
        _await(held, root, wait)
    try:
        yield
    finally:
        held.release()


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
    revision = _snapshot(checkout)
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


def _snapshot(checkout: Path) -> str:
    """A commit of `checkout` as it stands."""
    with FileLock(_lock(checkout)):  # git itself does not wait for another's index.lock
        _git(checkout, "status", "--porcelain")  # refreshes the index: `stash create` fails on a stale one
        return _git(checkout, *IDENTITY, "stash", "create", SNAPSHOT) or _git(checkout, "rev-parse", "HEAD")


def place_of(checkout: Path, task: str) -> Path:
    """A worktree `.regraft/tasks/<task>` of `checkout`, made where there is none yet."""
    target = checkout / TASKS / task
    if not (target / ".git").exists():
        _git(checkout, "worktree", "prune")
        _git(checkout, "worktree", "add", "--detach", "--quiet", str(target), "HEAD")
    return target


def made_in(checkout: Path, model: str) -> Path:
    """Where the registered `model` is made: the place of a task, else `checkout` itself."""
    params = parameters.load(checkout / "params.yaml")
    named = {parameters.of_task(params, task).promotion.model: task for task in params.tasks}
    return place_of(checkout, named[model]) if model in named else checkout


@contextmanager
def current(root: Path) -> Iterator[None]:
    """Inside, `root` is as its checkout stands, where it is the place of a task: uncommitted changes to
    tracked files included, with the task's params as params.yaml. What stages made there stays; its dvc.lock
    is `locks/<task>.lock` of the checkout, before and afterwards.

    Raises InputError where the checkout has no such task any more.
    """
    checkout = environment.home(root)
    if environment.is_trial(root) or checkout == root.resolve():
        yield
        return
    params, lock = parameters.load(checkout / "params.yaml"), _lock_of(root)
    if root.name not in params.tasks:
        raise InputError(f"{checkout / 'params.yaml'} has no task {root.name!r}, whose place {root} was")
    _renew(root, checkout, parameters.of_task(params, root.name))
    before = _text(lock)
    _follow(root, before)
    try:
        yield
    finally:
        _keep_lock(root, before)


def _renew(place: Path, checkout: Path, params: Params) -> None:
    _git(checkout, "worktree", "repair", str(place))  # where the checkout was moved
    _configure(checkout, place)
    _git(place, "checkout", "--detach", "--force", "--quiet", _git(checkout, "rev-parse", "HEAD"))
    _git(place, "read-tree", "--reset", "-u", _snapshot(checkout))
    files.write_text(place / "params.yaml", parameters.dump(params))


def _follow(place: Path, lock: str | None) -> None:
    """What `lock` says that preparation has made is there then, the ledger of splits above all; what else
    stages have made stays. `last` is the lock that the place had when its data were made."""
    last = _folder(place) / "last.lock"
    if lock is None:
        (place / LOCK).unlink(missing_ok=True)
        return
    files.write_text(place / LOCK, lock)
    if lock != _text(last):
        _bring(place, (PreparedText.stage,))


def _keep_lock(place: Path, before: str | None) -> None:
    """As the checkout's, unless that is another one by now: then what was made here is made again."""
    if (made := _text(place / LOCK)) is None:
        return
    files.write_text(_folder(place) / "last.lock", made)
    if _text(lock := _lock_of(place)) != before:
        log.warning("%s was changed meanwhile and stays as it is: the next run follows it", lock)
        return
    lock.parent.mkdir(exist_ok=True)
    files.write_text(lock, made)


def _lock_of(place: Path) -> Path:
    return environment.home(place) / LOCKS / f"{place.name}.lock"


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def named_by_locks(checkout: Path) -> set[str]:
    """Digests of all that a lock of a task names, now or in any commit."""
    texts = [path.read_text(encoding="utf-8") for path in (checkout / LOCKS).glob("*.lock")]
    texts.append(_git(checkout, "log", "--all", "-m", "-p", "--format=", "--", str(LOCKS)))
    return {found for text in texts for found in NAMED.findall(text)}


def rebuild(checkout: Path, revision: str, params: str, *, like: Path) -> Path:
    """A worktree `.regraft/rebuilds/<id>` of `checkout` at `revision`, with the params.yaml `params` as that
    revision understood it, that is a checkout of its own: no resume point, cached state or run of `checkout`
    is found from there. Its ledger of splits is that of `like`, `checkout` or the place of a task.

    Raises WorkspaceError where git no longer has `revision`.
    """
    target = checkout / REBUILDS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    _git(checkout, "worktree", "add", "--detach", "--quiet", str(target), revision)
    try:
        _configure(checkout, target)
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
    with FileLock(_lock(checkout)):
        if not _has(checkout, revision):
            _git(checkout, "fetch", "--all", "--quiet")
        if not _has(checkout, revision):
            raise InputError(
                f"{checkout} has no commit {revision}, and neither have its git remotes: push it from where "
                "the run began"
            )
        target = checkout / RUNS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        _git(checkout, "worktree", "add", "--detach", "--quiet", str(target), revision)
    try:
        _configure(checkout, target)
        (target / "dvc.lock").unlink(missing_ok=True)
        files.write_text(target / "params.yaml", params)
    except BaseException:
        remove(checkout, target)
        raise
    return target


def _has(checkout: Path, revision: str) -> bool:
    with suppress(WorkspaceError):
        return bool(_git(checkout, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"))
    return False


def committed(root: Path) -> str:
    """The commit that other clones may have of `root`, a checkout or a workspace of one.

    Raises InputError with the files of our code that differ from it: they cannot go there.
    """
    subject = _git(root, "log", "-1", "--format=%s")
    revision = _git(root, "rev-parse", "HEAD^1" if subject.endswith(f": {SNAPSHOT}") else "HEAD")
    differing = _git(root, "diff", "--name-only", "--relative", revision, "--", *CODE)
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE)
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
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "diff", "HEAD", "--", *CODE)
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE)
    return files.digest_json([commit, changes, unknown])


def _pushed(root: Path, revision: str) -> str:
    """The commit that git's remotes have, where none since has changed our code, as those of dvc.lock; else
    `revision` itself."""
    unpushed = _git(root, "rev-list", "--first-parent", revision, "--not", "--remotes").splitlines()
    if not unpushed or not _git(root, "branch", "--remotes"):
        return revision
    parents = _git(root, "rev-list", "--parents", "--max-count=1", unpushed[-1]).split()[1:]
    same = parents and not _git(root, "diff", "--name-only", parents[0], revision, "--", *CODE)
    return parents[0] if same else revision


def commit(root: Path, message: str) -> None:
    """Commit dvc.lock, or that of the task whose place `root` is, and each changed `.dvc` file, as they are
    now; what else is staged stays staged."""
    checkout, ours = environment.home(root), LOCK
    if checkout != root.resolve():
        ours = str(LOCKS / _lock_of(root).name)
        _keep_lock(root, _text(_lock_of(root)))
    _git(checkout, "add", "--", ours)
    if changed := _git(checkout, "diff", "--name-only", "--relative", "HEAD", "--", ours, "*.dvc"):
        how = ("--quiet", "--no-verify", "--no-gpg-sign", "-m", message)  # nobody is there to be asked
        _git(checkout, *IDENTITY, "commit", *how, "--only", "--", *changed.splitlines())


def _link(source: Path, target: Path) -> None:
    """A source that git does not track."""
    if source.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)


def _lock(checkout: Path) -> Path:
    return _folder(checkout) / "workspace.lock"


def _folder(root: Path) -> Path:
    folder = root / RUNS.parent
    folder.mkdir(exist_ok=True)
    return folder


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
    try:
        with chdir(target), Repo() as repo:
            repo.checkout(list(stages), force=True, allow_missing=True)
    except DvcException as error:
        raise WorkspaceError(f"DVC: {error}; is {target / LOCK}, or where it comes from, torn?") from error


def _git(checkout: Path, *words: str) -> str:
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
