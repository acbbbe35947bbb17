"""DVC's cache: which of its objects nothing names any more."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.gc import gc
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

from flows.checkout import places
from tasks.errors import RegraftError


def home(root: Path) -> Path:
    with Repo(str(root)) as repo:
        return Path(repo.cache.local_cache_dir).resolve()


def unused(root: Path, worktrees: Sequence[Path], before: float) -> list[Path]:
    """The objects that no commit, branch, tag or experiment of `root` names, in a lock of a task either, and
    none of `worktrees`, and that were made before (seconds since 1970).

    Raises RegraftError where another holds DVC's lock, or DVC cannot say what is named.
    """
    with _dvc(root) as repo:
        return [path for odb, used in _needed(repo, worktrees, before) for path in _others(odb, used)]


def empty(root: Path, worktrees: Sequence[Path], before: float) -> None:
    """Delete what `unused` tells. Raises RegraftError as it does."""
    with _dvc(root) as repo:
        for odb, used in _needed(repo, worktrees, before):
            gc(odb, used)


@contextmanager
def _dvc(root: Path) -> Iterator[Repo]:
    """DVC's repository, locked. Raises RegraftError where another holds the lock, or DVC cannot go on."""
    try:
        with Repo(str(root)) as repo, repo.lock:
            yield repo
    except DvcException as error:
        raise RegraftError(f"DVC: {error}; nothing more of its cache was deleted") from error


def _needed(repo: Repo, worktrees: Sequence[Path], before: float) -> Iterator[tuple[Any, set[HashInfo]]]:
    """Each part of the cache with what must stay there: what anything names, and what is young."""
    everywhere = repo.used_objs(
        all_branches=True, all_tags=True, all_commits=True, all_experiments=True, force=True
    )
    named = {one for several in everywhere.values() for one in several}
    for path in worktrees:
        if (path / ".dvc").is_dir():
            with Repo(str(path)) as other:
                named |= {one for several in other.used_objs(force=True).values() for one in several}
    locked, seen = places.named_by_locks(Path(repo.root_dir)), list[Any]()
    for _, odb in repo.cache.by_scheme():
        if odb is not None and odb not in seen and odb.fs.protocol == "local":
            seen.append(odb)
            yield odb, named | _whole(odb, locked) | _young(odb, before)


def _young(odb: Any, before: float) -> set[HashInfo]:
    """What was kept since `before`."""
    return _whole(odb, (oid for oid in odb.all() if _changed(odb.oid_to_path(oid)) >= before))


def _whole(odb: Any, digests: Iterable[str]) -> set[HashInfo]:
    """With those of the files of directories among them."""
    found = {HashInfo(odb.hash_name, digest) for digest in digests}
    trees = [Tree.load(odb, one) for one in found if one.isdir and odb.exists(one.value)]
    return found | {file for tree in trees for _, _, file in tree}


def _others(odb: Any, used: set[HashInfo]) -> list[Path]:
    values = {one.value for one in used if one.name == odb.hash_name}
    return [Path(odb.oid_to_path(oid)) for oid in odb.all() if oid not in values]


def own_size(path: Path) -> int:
    """Bytes that are free once `path` is gone: none where a checkout has a second name for them."""
    about = path.stat()
    return about.st_blocks * 512 if about.st_nlink == 1 else 0


def _changed(path: str) -> float:
    with suppress(FileNotFoundError):
        return Path(path).stat().st_mtime
    return 0.0
