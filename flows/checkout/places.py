"""Where the tasks of params.yaml are made: a worktree each, which stays, with a lock that git keeps.

DVC knows nothing of these locks: what they name is told to whoever empties its cache.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.checkout.worktrees import LOCK, configure, folder, git, restore, snapshot
from tasks import environment, files
from tasks import params as parameters
from tasks.artifacts import PreparedText
from tasks.errors import InputError
from tasks.params import Params

TASKS, LOCKS = Path(*environment.TASKS), Path("locks")
LAST = "last.lock"  # that the place had when its data were made
NAMED = re.compile(r"\bmd5: ([0-9a-f]{32}(?:\.dir)?)\b")
log = logging.getLogger(__name__)


def of(checkout: Path, task: str) -> Path:
    """A worktree `.regraft/tasks/<task>` of `checkout`, made where there is none yet."""
    target = checkout / TASKS / task
    if not (target / ".git").exists():
        git(checkout, "worktree", "prune")
        git(checkout, "worktree", "add", "--detach", "--quiet", str(target), "HEAD")
    return target


def made_in(checkout: Path, model: str) -> Path:
    """Where the registered `model` is made: the place of a task, else `checkout` itself."""
    params = parameters.load(checkout / "params.yaml")
    named = {parameters.of_task(params, task).promotion.model: task for task in params.tasks}
    return of(checkout, named[model]) if model in named else checkout


def is_place(root: Path) -> bool:
    """Whether `root` is the place of a task, and neither a checkout nor something that is tried out."""
    return not environment.is_trial(root) and environment.home(root) != root.resolve()


@contextmanager
def current(root: Path) -> Iterator[None]:
    """Inside, `root` is as its checkout stands, where it is the place of a task: uncommitted changes to
    tracked files included, with the task's params as params.yaml. What stages made there stays; its dvc.lock
    is `locks/<task>.lock` of the checkout, before and afterwards. Nobody else may work there meanwhile.

    Raises InputError where the checkout has no such task any more.
    """
    if not is_place(root):
        yield
        return
    checkout = environment.home(root)
    params, lock = parameters.load(checkout / "params.yaml"), _lock_of(root)
    if root.name not in params.tasks:
        raise InputError(f"{checkout / 'params.yaml'} has no task {root.name!r}, whose place {root} was")
    _renew(root, checkout, parameters.of_task(params, root.name))
    before = _text(lock)
    _follow(root, before)
    try:
        yield
    finally:
        _keep(root, before)


def _renew(place: Path, checkout: Path, params: Params) -> None:
    git(checkout, "worktree", "repair", str(place))  # where the checkout was moved
    configure(checkout, place)
    git(place, "checkout", "--detach", "--force", "--quiet", git(checkout, "rev-parse", "HEAD"))
    git(place, "read-tree", "--reset", "-u", snapshot(checkout))
    files.write_text(place / "params.yaml", parameters.dump(params))


def _follow(place: Path, lock: str | None) -> None:
    """What `lock` says that preparation has made is there then, the ledger of splits above all; what else
    stages have made stays."""
    last = folder(place) / LAST
    if lock is None:
        (place / LOCK).unlink(missing_ok=True)
        return
    files.write_text(place / LOCK, lock)
    if lock != _text(last):
        restore(place, (PreparedText.stage,))


def _keep(place: Path, before: str | None) -> None:
    """As the checkout's, unless that is another one by now: then what was made here is made again."""
    if (made := _text(place / LOCK)) is None:
        return
    files.write_text(folder(place) / LAST, made)
    if _text(lock := _lock_of(place)) not in (before, made):
        log.warning("%s was changed meanwhile and stays as it is: the next run follows it", lock)
        return
    lock.parent.mkdir(exist_ok=True)
    files.write_text(lock, made)


def keep_lock(place: Path) -> Path:
    """Make dvc.lock of the place of a task, as it is now, its checkout's; returns where that is."""
    _keep(place, _text(lock := _lock_of(place)))
    return lock


def _lock_of(place: Path) -> Path:
    return environment.home(place) / LOCKS / f"{place.name}.lock"


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def named_by_locks(checkout: Path) -> set[str]:
    """Digests of all that a lock of a task names, now or in any commit."""
    texts = [path.read_text(encoding="utf-8") for path in (checkout / LOCKS).glob("*.lock")]
    texts.append(git(checkout, "log", "--all", "-m", "-p", "--format=", "--", str(LOCKS)))
    return {found for text in texts for found in NAMED.findall(text)}
