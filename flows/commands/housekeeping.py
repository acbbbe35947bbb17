"""`regraft clean`: what old work has left behind, kind by kind, and how it goes.

Nothing that a registered version needs to be made again is ever among it, and no run that waits to be sent.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from flows.checkout import places, storage, workspace
from tasks import environment, files
from tasks import params as parameters
from tasks.artifacts import Promotion
from tasks.errors import ArtifactError, InputError, RegraftError, WorkspaceError
from tasks.tracking import retention
from tasks.tracking.registry import Registry

AGE = re.compile(r"(?P<count>\d+)(?P<unit>[dh])")
SECONDS = {"d": 86400, "h": 3600}
HIDDEN = Path(".regraft")
CHAMPIONS = HIDDEN / "champions"
LOCKED = {"states": "hidden states, computed again when needed", "resume": "resume point of a training"}
EXPERIMENTS = Path(".dvc") / "tmp" / "exps"


@dataclass(frozen=True)
class Leftover:
    """What may go, why, and how; `size` in bytes of the disk."""

    name: str
    reason: str
    size: int
    delete: Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """Leftovers of one kind; `told` is what a person should know of what stays."""

    name: str
    leftovers: tuple[Leftover, ...]
    told: tuple[str, ...] = ()
    fault: bool = False
    finish: Callable[[], str] | None = None  # once all are deleted


@dataclass(frozen=True)
class Ground:
    """Where is cleaned, and of what age (`before`: seconds since 1970) leftovers are. homes: name of
    each registered model, the project's and those of its tasks -> where it is made."""

    root: Path
    homes: Mapping[str, Path]
    before: float
    champions_only: bool


def ground(root: Path, older_than: str, *, champions_only: bool) -> Ground:
    """Raises InputError for an age that is none, and for a workspace: its checkout cleans up."""
    if not (found := AGE.fullmatch(older_than)):
        raise InputError(f"--older-than {older_than}: write days or hours, such as 30d or 12h")
    if (home := environment.home(root)) != root.resolve():
        raise InputError(f"{root} is a workspace: clean its checkout, --root {home}")
    root, params = root.resolve(), parameters.load(root / "params.yaml")
    made = [root, *(root / places.TASKS / task for task in params.tasks)]
    age = int(found["count"]) * SECONDS[found["unit"]]
    return Ground(root, dict(zip(params.models(), made, strict=True)), time.time() - age, champions_only)


def look(place: Ground) -> Iterator[Kind]:
    """Every kind, the one with copies before what these share; changes nothing. A kind that cannot be looked
    at keeps no other from being told, and loses nothing."""
    for name, find in KINDS.items():
        try:
            yield find(place)
        except RegraftError as error:
            yield Kind(name, (), (str(error),), fault=True)


def carry_out(place: Ground) -> Iterator[Kind]:
    """As `look`, and deletes each kind before it comes to the next; a leftover that could not be deleted is
    told instead.

    Raises WorkspaceError, before anything is deleted, where somebody is at work.
    """
    if work := at_work(place.root):
        raise WorkspaceError(f"{'; '.join(work)}: clean up when that has ended; nothing was deleted")
    for name, find in KINDS.items():
        try:
            yield _deleted(find(place))
        except RegraftError as error:
            yield Kind(name, (), (str(error),), fault=True)


def _deleted(kind: Kind) -> Kind:
    gone, told = [], [*kind.told]
    for leftover in kind.leftovers:
        try:
            leftover.delete()
            gone.append(leftover)
        except (RegraftError, OSError, Timeout) as error:
            told.append(f"{leftover.name} stays: {error}")
    if gone and kind.finish and (sentence := kind.finish()):
        told.append(sentence)
    return Kind(kind.name, tuple(gone), tuple(told), fault=len(gone) < len(kind.leftovers))


def at_work(root: Path) -> list[str]:
    """Sentences about who runs a stage of the checkout, or does anything in a workspace of it.

    DVC notes in `rwlock` which process reads and writes what, for as long as a stage runs.
    """
    places = [root, *_worktrees(root)]
    found = [f"process {pid} runs `{said}` in {place}" for place in places for pid, said in _working(place)]
    inner = [root / folder for folder in (workspace.RUNS, workspace.REBUILDS, EXPERIMENTS)]
    return found + [f"process {pid} is in {where}" for pid, where in _inside(inner)]


def _working(place: Path) -> Iterator[tuple[int, str]]:
    try:
        noted = json.loads((place / ".dvc" / "tmp" / "rwlock").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    readers = [one for several in noted.get("read", {}).values() for one in several]
    everybody = {one["pid"]: one["cmd"] for one in [*noted.get("write", {}).values(), *readers] if one}
    yield from ((pid, said) for pid, said in everybody.items() if psutil.pid_exists(pid))


def _inside(folders: Sequence[Path]) -> Iterator[tuple[int, Path]]:
    """Processes whose current directory is in one of `folders`, as that of a stage's body is."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            where = Path(process.cwd())
            if any(where.is_relative_to(folder) for folder in folders):
                yield process.pid, where


def _workspaces(place: Ground) -> Kind:
    """Those that nothing was written in since, unless a version's only commit is theirs."""
    leftovers, told = [], []
    for path in _old_workspaces(place):
        if pinned := _pinned(place, path):
            told.append(pinned)
            continue
        delete = partial(_remove_workspace, place.root, path)
        leftovers.append(_leftover(place, path, f"untouched for {_days(_touched(path))}", delete))
    return Kind("workspaces", tuple(leftovers), tuple(told))


def _old_workspaces(place: Ground) -> list[Path]:
    tasks = place.root / places.TASKS
    inner = [one.relative_to(place.root) / workspace.RUNS for one in tasks.glob("*")]
    gone = [path for path in _folders(place, places.TASKS) if path not in place.homes.values()]
    found = [*_folders(place, workspace.RUNS, workspace.REBUILDS, *inner), *gone]
    return [path for path in found if _touched(path) < place.before]


def _remove_workspace(root: Path, path: Path) -> None:
    if (path / ".git").exists():
        workspace.remove(root, path)
    else:  # it was never finished
        shutil.rmtree(path)
    _git(root, "worktree", "prune")


def _pinned(place: Ground, path: Path) -> str:
    """A sentence where a version was made from a commit that no branch or tag leads to: git forgets it once
    the worktree is gone."""
    if not (path / ".git").exists():
        return ""
    commit = _git(path, "rev-parse", "HEAD")
    if _git(place.root, "for-each-ref", "--count=1", "--contains", commit):
        return ""
    for model in place.homes:
        if number := retention.commits(place.root, model).get(commit):
            return (
                f"{path.relative_to(place.root)} stays: no branch holds its commit, from which {model} "
                f"version {number} was made; `git branch {model}-{number} {commit[:12]}` lets it go"
            )
    return ""


def _kept_computations(place: Ground) -> Kind:
    """Hidden states and resume points, each below a lock that is held while it is used."""
    found = [
        _leftover(place, path, f"{why}; unused for {_days(touched)}", partial(_remove_locked, path))
        for name, why in LOCKED.items()
        for path in _folders(place, HIDDEN / name)
        if (touched := _touched(path)) < place.before
    ]
    return Kind("resume points and hidden states", tuple(found))


def _remove_locked(path: Path) -> None:
    lock = path.with_name(f"{path.name.strip('.').partition('.')[0]}.lock")
    try:
        with FileLock(lock, timeout=0):
            shutil.rmtree(path)
    except Timeout:
        raise WorkspaceError(f"{lock} is held: it is in use") from None


def _downloads(place: Ground) -> Kind:
    """Former champions that `predict`, `serve` or the gate once fetched."""
    homes = [(home / CHAMPIONS).relative_to(place.root) for home in place.homes.values()]
    if not (folders := _folders(place, *homes)):
        return Kind("downloaded champions", ())
    champions = [(model, Registry(place.root, model).champion()) for model in place.homes]
    stays = tuple(f"{model}-{champion.number}-" for model, champion in champions if champion)
    found = [
        _leftover(place, path, "fetched again when needed", partial(shutil.rmtree, path))
        for path in folders
        if path.stat().st_mtime < place.before and not path.name.startswith(stays)
    ]
    return Kind("downloaded champions", tuple(found))


def _runs(place: Ground) -> Kind:
    found = [
        (
            tree,
            Leftover(
                f"{tree.name} ({tree.runs[0]})",
                _why(tree),
                tree.size,
                partial(retention.delete, place.root, model, tree),
            ),
        )
        for model, home in place.homes.items()
        for tree in _old_trees(place, home, model)
    ]
    trees = [tree for tree, _ in found]
    leftovers = tuple(leftover for _, leftover in found)
    return Kind("MLflow runs", leftovers, finish=partial(retention.purge, place.root, trees))


def _old_trees(place: Ground, home: Path, model: str) -> list[retention.Tree]:
    keep = {record.version} if (record := _last_verdict(home)) else set()
    return retention.old(place.root, model, place.before, champions_only=place.champions_only, keep=keep)


def _why(tree: retention.Tree) -> str:
    several = f"{len(tree.runs)} runs, " if len(tree.runs) > 1 else ""
    if tree.deleted:
        return f"{several}deleted already, and still there"
    if tree.versions:
        return f"{several}old; version {' and '.join(tree.versions)} never was champion"
    return f"{several}old, and no version was made in them"


def _last_verdict(root: Path) -> Promotion | None:
    with suppress(ArtifactError):
        return Promotion.load(root)
    return None


def _cache(place: Ground) -> Kind:
    """Objects of DVC's cache that nothing names: no commit, branch, tag or experiment, no worktree."""
    home = storage.home(place.root)
    if not home.is_relative_to(place.root):
        remedy = "`dvc gc --workspace --all-commits --projects …` with all of them cleans it"
        return Kind("DVC's cache", (), (f"{home} may serve other projects: {remedy}",))
    going = _old_workspaces(place)
    staying = [path for path in _worktrees(place.root) if path not in going]
    unused = storage.unused(place.root, staying, place.before)
    reason = "named by no commit, tag, experiment or worktree: trials of sweeps, data since changed"
    size = sum(map(storage.own_size, unused))
    found = Leftover(f"{len(unused)} objects", reason, size, partial(_empty_cache, place))
    return Kind("DVC's cache", (found,) if unused else ())


def _empty_cache(place: Ground) -> None:
    storage.empty(place.root, _worktrees(place.root), place.before)  # all there are: one may have stayed


def _leftover(place: Ground, path: Path, reason: str, delete: Callable[[], object]) -> Leftover:
    return Leftover(str(path.relative_to(place.root)), reason, files.taken(path), delete)


def _folders(place: Ground, *homes: Path) -> list[Path]:
    found = (path for home in homes for path in (place.root / home).glob("*") if path.is_dir())
    return sorted(path for path in found if not path.is_symlink())


def _touched(folder: Path) -> float:
    """When anything in `folder` was written last, in seconds since 1970."""
    places = [folder, *folder.rglob("*")]
    return max(os.lstat(path).st_mtime for path in places)


def _days(touched: float) -> str:
    days = (time.time() - touched) / 86400
    return f"{days:,.0f} days" if days >= 1 else f"{days * 24:,.0f} hours"


def _worktrees(root: Path) -> list[Path]:
    """The other checkouts of this git repository, workspaces among them."""
    lines = _git(root, "worktree", "list", "--porcelain").splitlines()
    paths = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
    return [path for path in paths if path.is_dir() and path.resolve() != root]


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkspaceError(f"git {' '.join(words)} failed in {root}: {done.stderr.strip()}")
    return done.stdout.strip()


KINDS: dict[str, Callable[[Ground], Kind]] = {
    "workspaces": _workspaces,
    "resume points and hidden states": _kept_computations,
    "downloaded champions": _downloads,
    "MLflow runs": _runs,
    "DVC's cache": _cache,  # behind the workspaces, which name what is in it
}
