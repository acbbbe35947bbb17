"""Which of MLflow's runs may go: the old ones in which nothing was registered that stays.

MLflow deletes softly: a deleted run keeps its place and its files until `mlflow gc` purges it.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from tasks import files
from tasks.errors import TrackingError
from tasks.tracking import history, server, spool
from tasks.tracking.registry import CHAMPION, Registry

PARENT = "mlflow.parentRunId"
PAGE = 1000  # runs that MLflow tells at once
AT_ONCE = 100  # ids on a command line


@dataclass(frozen=True)
class Tree:
    """A pipeline's run, or a sweep's, with all that lies below it."""

    name: str
    runs: tuple[str, ...]  # ids, those that are deleted already among them
    models: tuple[str, ...]  # ids of logged models
    versions: tuple[str, ...]  # numbers of registered ones that never were champion
    size: int  # bytes of its files, where they lie on this machine
    deleted: bool  # softly, all of it


def old(
    root: Path, model: str, before: float, *, champions_only: bool, keep: Iterable[str] = ()
) -> list[Tree]:
    """The trees in the experiment `model` that nothing was told since `before` (seconds since 1970).

    One with a run that is under way stays, and one with a registered version: any, or with `champions_only`
    one that is or was champion, has an alias, is younger than `before` or is among the numbers `keep`.
    Raises TrackingError where MLflow does not answer, or a run waits to be sent to it.
    """
    if spool.waiting(root):
        raise TrackingError(f"{spool.told(root)}: no run is looked at before that")
    client = server.connect(root)
    with server.asking(client.tracking_uri):
        if (experiment := client.get_experiment_by_name(model)) is None:
            return []
        trees = _trees(_all_runs(client, experiment.experiment_id))
        versions = _all(client.search_model_versions)
        free = _free(client, model, before, {*keep}) if champions_only else set()
        bound = {run for one in versions if (one.name, str(one.version)) not in free for run in _made_in(one)}
        logged = _all(partial(client.search_logged_models, [experiment.experiment_id]))
        gone = [runs for runs in trees if _may_go(runs, before, bound)]
        leaving = {run.info.run_id for runs in gone for run in runs}
        sources = {one.source for one in versions if not leaving & _made_in(one)}
        models = [one for one in logged if one.artifact_location not in sources]
        return [_tree(runs, versions, models) for runs in gone]


def commits(root: Path, model: str) -> dict[str, str]:
    """Commit -> number of a version of `model` that was made from it."""
    return {one.tags.get("regraft.commit", ""): one.number for one in Registry(root, model).versions()}


def delete(root: Path, model: str, tree: Tree) -> None:
    """Softly, versions first: what fails half-way is found again."""
    registry, client = Registry(root, model), server.connect(root)
    if tree.versions:
        with registry.locked(), server.asking(client.tracking_uri):
            free = _free(client, model, float("inf"), set())
            for number in tree.versions:
                if (model, number) not in free:
                    raise TrackingError(f"{model} version {number} became champion just now: it stays")
                client.delete_model_version(model, number)
    with server.asking(client.tracking_uri):
        made = {run for one in _all(client.search_model_versions) for run in _made_in(one)}
        if made & {*tree.runs}:
            raise TrackingError(f"{tree.name}: a version was registered in it just now: it stays")
        left = [one for run in tree.runs if (one := client.get_run(run).info).lifecycle_stage == "active"]
        if working := [one.run_name for one in left if one.status == "RUNNING"]:
            raise TrackingError(f"{tree.name}: {working[0]} is under way again just now: it stays")
        for one in tree.models:
            client.delete_logged_model(one)
        for run in left:
            client.delete_run(run.run_id)


def purge(root: Path, trees: Sequence[Tree]) -> str:
    """Let `mlflow gc` free the room of deleted `trees` in the project's own database.

    Returns a sentence where that is left to a person; raises TrackingError where it failed.
    """
    where = server.uri(root)
    if server.sqlite_file(where) is None:
        return "marked as deleted on the server: `mlflow gc --older-than 1d` on its machine frees the room"
    words = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", where, "--tracking-uri", where]
    client = server.connect(root)
    with server.asking(where):
        if client.search_experiments(view_type=ViewType.DELETED_ONLY):  # they would go too
            return (
                f"experiments are deleted too, and you may want them back: `{' '.join(words[2:])}` frees all"
            )
    runs = [run for tree in trees for run in tree.runs]
    for start in range(0, len(runs), AT_ONCE):
        ids = ",".join(runs[start : start + AT_ONCE])
        done = subprocess.run([*words, "--run-ids", ids], capture_output=True, text=True, check=False)
        if done.returncode:
            raise TrackingError(
                f"`mlflow gc` failed: {server.short(done.stderr)}; give the same command again"
            )
    return ""


def _all_runs(client: MlflowClient, experiment: str) -> list[Any]:
    """Deleted ones too: what was begun is finished the next time."""
    return _all(partial(client.search_runs, [experiment], "", ViewType.ALL, PAGE))


def _all(search: Callable[..., Any]) -> list[Any]:
    """Of every page."""
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = search(page_token=token or None)
        found += page
        token = page.token or None
    return found


def _trees(runs: Sequence[Any]) -> list[list[Any]]:
    """Runs by the one that all of them are below, which comes first."""
    known = {run.info.run_id: run for run in runs}
    tops = {run.info.run_id: _top(run.info.run_id, known) for run in runs}
    ordered = sorted(runs, key=lambda run: (tops[run.info.run_id], run.info.run_id != tops[run.info.run_id]))
    return [list(group) for _, group in groupby(ordered, key=lambda run: tops[run.info.run_id])]


def _top(run_id: str, known: Mapping[str, Any]) -> str:
    above = known[run_id].data.tags.get(PARENT)
    return _top(above, known) if above in known else run_id


def _may_go(runs: Sequence[Any], before: float, bound: set[str]) -> bool:
    return not any(
        run.info.run_id in bound
        or (run.info.status == "RUNNING" and run.info.lifecycle_stage == "active")
        or max(run.info.start_time, run.info.end_time or 0) / 1000 >= before
        for run in runs
    )


def _free(client: MlflowClient, model: str, before: float, keep: set[str]) -> set[tuple[str, str]]:
    """Name and number of each version that never was champion, has no alias and is older than `before`."""
    try:
        about = client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return set()
    moved = {move.version for move in history.read(about.tags)} | {about.tags.get(CHAMPION, "")}
    taken = keep | moved | {str(number) for number in about.aliases.values()}
    versions = _all(partial(client.search_model_versions, f"name = '{model}'"))
    old = [one for one in versions if one.creation_timestamp / 1000 < before]
    return {(model, str(one.version)) for one in old if str(one.version) not in taken}


def _made_in(version: Any) -> set[str]:
    """MLflow names the run of the logged model, which an earlier version of the same weights may share."""
    return {version.run_id, version.tags.get("regraft.run", version.run_id)}


def _tree(runs: Sequence[Any], versions: Iterable[Any], models: Iterable[Any]) -> Tree:
    ids = {run.info.run_id for run in runs}
    logged = [one for one in models if one.source_run_id in ids]
    places = [run.info.artifact_uri for run in runs] + [one.artifact_location for one in logged]
    return Tree(
        name=runs[0].info.run_name,
        runs=tuple(run.info.run_id for run in runs),
        models=tuple(one.model_id for one in logged),
        versions=tuple(str(one.version) for one in versions if ids & _made_in(one)),
        size=sum(files.taken(place) for place in map(_local, places) if place),
        deleted=all(run.info.lifecycle_stage == "deleted" for run in runs),
    )


def _local(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
