"""`regraft status`: the champion, what the last runs came to, which data these are, what fills the disk."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.commands.figures import size
from tasks import files
from tasks.artifacts import SPLITS, PreparedText, Promotion, Sources
from tasks.errors import RegraftError
from tasks.params import Params
from tasks.tracking import runs, spool
from tasks.tracking.registry import Registry

LAST = 3  # runs
FIGURES = 3  # of a run, at most


@dataclass(frozen=True)
class Part:
    """What there is to say of one thing; `fault` where it could not be looked at."""

    name: str
    lines: tuple[str, ...]
    fault: bool = False


def look(params: Params, root: Path) -> Iterator[Part]:
    """A part that cannot be looked at keeps no other from being told."""
    for name, tell in PARTS.items():
        try:
            yield Part(name, tuple(tell(params, root)))
        except (RegraftError, DvcException) as error:
            yield Part(name, (str(error),), fault=True)


def _champion(params: Params, root: Path) -> Iterator[str]:
    for name in params.models():
        registry = Registry(root, name)
        if (champion := registry.champion()) is None:
            yield f"{name} has none yet"
            continue
        moves = registry.history()
        yield f"{name} version {champion.number}, of {len(registry.versions())}"
        if moves and moves[-1].version == champion.number:
            yield f"since {moves[-1].at} by {moves[-1].by}: {moves[-1].reason}"


def _verdict(params: Params, root: Path) -> Iterator[str]:
    record = Promotion.load(root)
    yield f"{record.outcome}: {record.model} version {record.version}"
    yield from record.reasons[:1]


def _data(params: Params, root: Path) -> Iterator[str]:
    sources, prepared = Sources.load(root), PreparedText.load(root)
    yield f"source {sources.text[:19]}, prepared {prepared.digest[:19]}"
    kept = ", ".join(f"{prepared.rows[split]:,} {split}" for split in SPLITS)
    gone = sum(prepared.dropped.values()) + sum(prepared.quarantined.values())
    yield f"{prepared.rows_in:,} rows in: {kept}; {gone:,} left out, each with its reason"


def _runs(params: Params, root: Path) -> Iterator[str]:
    for run in runs.table(root, params.promotion.model, LAST):
        named = {name.removeprefix("test."): value for name, value in run.items() if name[:5] == "test."}
        figures = [(name, value) for name, value in named.items() if "." not in name]  # the model's own
        told = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures[:FIGURES])
        yield f"{run['started']}  {run['state']}  {run['run']}{': ' if told else ''}{told}"


def _tracking(params: Params, root: Path) -> Iterator[str]:
    yield spool.told(root) or "nothing waits to be sent to MLflow"


def _disk(params: Params, root: Path) -> Iterator[str]:
    with Repo(str(root)) as repo:
        cache = Path(repo.cache.local_cache_dir)
    seen: set[tuple[int, int]] = set()
    for name, folder in (("DVC's cache", cache), ("data", root / "data"), (".regraft", root / ".regraft")):
        yield f"{size(files.taken(folder, seen))} {name}"
    yield f"{size(shutil.disk_usage(root).free)} free"


PARTS: dict[str, Callable[[Params, Path], Iterator[str]]] = {
    "champion": _champion,
    "last verdict here": _verdict,
    "data": _data,
    "last runs": _runs,
    "tracking": _tracking,
    "disk": _disk,
}
