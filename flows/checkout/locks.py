"""What DVC writes in place, made whole again where a killed process or a full disk broke that off."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.dvcfile import LOCK_FILE
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.utils.serialize import ParseError, load_yaml

from tasks import files

log = logging.getLogger(__name__)


@contextmanager
def kept(root: Path, stage: str) -> Iterator[None]:
    """Inside, where DVC writes the entry of `stage`, a copy of `root`'s dvc.lock lies beside; it takes its
    place where that does not come out whole, or is found torn here the next time.

    Raises OSError, with dvc.lock as it was, where there is no room for the copy.
    """
    lock, copy = root / LOCK_FILE, root / ".dvc" / "tmp" / f"{LOCK_FILE}.whole"
    if copy.exists():
        _mend(lock, copy, _is_torn(lock))
    if lock.exists():
        with files.replace_file(copy) as draft:
            shutil.copyfile(lock, draft)
    try:
        yield
    finally:
        if copy.exists():
            _mend(lock, copy, _is_torn(lock) or _has_lost(lock, copy, stage))


def drop_torn(repo: Repo) -> None:
    """The file that says who reads and writes what: half-written it would stop every later run, and names
    nobody."""
    folder = Path(str(repo.tmp_dir))
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder), hardlink_lock=hardlink):
        try:
            json.loads((folder / RWLOCK_FILE).read_bytes())
        except FileNotFoundError:
            return
        except ValueError:
            log.warning(
                "%s was half-written when its process was killed; it is begun anew", folder / RWLOCK_FILE
            )
            (folder / RWLOCK_FILE).unlink()


def _mend(lock: Path, copy: Path, torn: bool) -> None:
    """A renaming needs no room."""
    if torn:
        log.warning("%s was not written to its end; it is as it was before", lock)
        copy.replace(lock)
    copy.unlink(missing_ok=True)


def _is_torn(lock: Path) -> bool:
    """Whole files end with a line; what is cut between two lines cannot be told from a shorter one."""
    try:
        return not (lock.read_bytes().endswith(b"\n") and _stages(lock))
    except FileNotFoundError:  # somebody wants to begin anew
        return False
    except ParseError:
        return True


def _has_lost(lock: Path, copy: Path, stage: str) -> bool:
    """Cut at the end of a line or a word, it may still be read."""
    if not lock.exists():
        return False
    found = _stages(lock)
    return any(found.get(name) != entry for name, entry in _stages(copy).items() if name != stage)


def _stages(path: Path) -> Mapping[str, Any]:
    found = load_yaml(str(path))
    stages = found.get("stages") if isinstance(found, dict) else None
    return stages if isinstance(stages, dict) else {}
