"""What goes from one worker to the next: data through a DVC remote, and the entries of dvc.lock that name it.

A run's entries are small objects beside the remote's data, `regraft/<run>/<stage>.json`, each written when
what it names is there. So the next worker needs the remote and the run's name, and no dvc.lock in git.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from dvc.config import ConfigError
from dvc.data_cloud import Remote
from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from flows.checkout import workspace
from tasks import files
from tasks.errors import InputError, RegraftError, WorkspaceError

FOLDER = "regraft"  # beside `files`, which is DVC's own


def producers(root: Path, stage: str) -> list[str]:
    """The stages whose outputs `stage` reads, as dvc.yaml tells."""
    with chdir(root), Repo() as repo:
        (wanted,) = repo.stage.collect(stage)
        return sorted(one.name for one in repo.index.graph.successors(wanted))


def give(root: Path, run: str, stages: Sequence[str], remote: str | None) -> None:
    """Push the outputs of `stages`, then their entries of dvc.lock under `run`.

    Raises InputError without a remote, WorkspaceError where it does not take them or a stage has not run.
    """
    with _opened(root, remote) as (repo, store):
        known = _locked(repo)
        if absent := [stage for stage in stages if stage not in known]:
            raise WorkspaceError(
                f"{LOCK_FILE} of {root} has no {', '.join(absent)}: run `dvc repro` there first"
            )
        repo.push(targets=list(stages), remote=store.name)
        for stage in stages:
            _write(store, _place(store, run, stage), files.canonical_json(known[stage]))


def take(root: Path, run: str, stages: Sequence[str], remote: str | None) -> None:
    """Bring what was given of `stages` under `run`: their outputs, and their entries for `root`'s dvc.lock.

    Raises InputError without a remote, WorkspaceError where an entry or its data are not there.
    """
    with _opened(root, remote) as (repo, store):
        entries = {stage: _read(store, _place(store, run, stage)) for stage in stages}
        _merge(root / LOCK_FILE, entries)
        repo.pull(targets=list(stages), remote=store.name, force=True)


def forget(root: Path, run: str, remote: str | None) -> None:
    """Remove the entries of a run that is over; the data stay, as DVC's do."""
    with _opened(root, remote) as (_, store):
        place = store.fs.join(store.path, FOLDER, run)
        if store.fs.exists(place):
            store.fs.rm(place, recursive=True)


def commit(root: Path, remote: str | None) -> None:
    """Push all that dvc.lock names, and commit it, and the `.dvc` files of imported tables, where they have
    changed, and nothing else.

    Raises InputError without a remote, WorkspaceError where it or git refuses.
    """
    with _opened(root, remote) as (repo, store):
        repo.push(remote=store.name)
    workspace.commit(root, "Reproduce")


@contextmanager
def _opened(root: Path, remote: str | None) -> Iterator[tuple[Repo, Remote]]:
    """The repository with its remote; what DVC or the remote says against it becomes a sentence of ours.

    Each kind of storage fails in its own way: of libraries that are not even installed nothing can be named.
    """
    with chdir(root), Repo() as repo:
        store = _remote(repo, root, remote)
        try:
            yield repo, store
        except RegraftError:
            raise
        except Exception as error:
            said = f"DVC remote {store.name} ({_public(store.path)}): {_told(error)}"
            raise WorkspaceError(
                f"{said}; `dvc remote modify {store.name} …` for address and credentials; `regraft doctor`, "
                "where the worker was started, asks it again"
            ) from error


def _remote(repo: Repo, root: Path, remote: str | None) -> Remote:
    try:
        return repo.cloud.get_remote(remote)
    except (ConfigError, DvcException) as error:
        raise InputError(
            f"workers hand data to one another by a DVC remote, and {root} has "
            f"{f'none named {remote}' if remote else 'no default one'}: `dvc remote add -d NAME URL`, or "
            "name another as operations.remote"
        ) from error
    except ImportError as error:
        name = remote or repo.config["core"].get("remote", "")
        raise InputError(f"DVC remote {name}: {error}: `pip install` that where this runs") from error


def _told(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if isinstance(error, DvcException | OSError) else f"{type(error).__name__}: {words}"


def _public(place: str) -> str:
    """Never a password."""
    return re.sub("//[^/@]*@", "//", place)


def _locked(repo: Repo) -> Mapping[str, Any]:
    found = Lockfile(repo, str(Path(repo.root_dir) / LOCK_FILE)).load()
    return dict(found.get("stages", {}))


def _merge(path: Path, entries: Mapping[str, Any]) -> None:
    with modify_yaml(str(path)) as lock:
        lock.setdefault("schema", "2.0")
        lock.setdefault("stages", {}).update(entries)


def _place(store: Remote, run: str, stage: str) -> str:
    return str(store.fs.join(store.path, FOLDER, run, f"{stage}.json"))


def _write(store: Remote, place: str, text: str) -> None:
    """Whole or not at all: a reader finds what is complete."""
    draft = f"{place}.draft"
    store.fs.makedirs(store.fs.parent(place), exist_ok=True)
    store.fs.pipe_file(draft, text.encode())
    store.fs.mv(draft, place)


def _read(store: Remote, place: str) -> Any:
    try:
        return json.loads(store.fs.cat_file(place))
    except FileNotFoundError:
        raise WorkspaceError(
            f"DVC remote {store.name} has no {place}: the stage before did not hand its result over, or both "
            "workers do not mean the same remote"
        ) from None
