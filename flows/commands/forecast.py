"""`regraft plan`: what a run would do, told from DVC's status and the sources, with nothing run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
from dvc.repo import Repo

from flows.checkout.stage import in_order
from tasks import references
from tasks.artifacts import Sources
from tasks.errors import ArtifactError, InputError
from tasks.params import Params, flatten

UNCHANGED, RUN, ASKED = "unchanged", "runs", "asked again"


@dataclass(frozen=True)
class StageForecast:
    name: str
    state: str
    because: str
    size: int | None  # bytes in data/<stage> now


@dataclass(frozen=True)
class Source:
    name: str
    reference: str
    found: str
    size: int | None


def stages(root: Path, now: Params, wanted: Params) -> list[StageForecast]:
    """Each stage's state if the params became `wanted`; a changed stage changes all that depend on it."""
    with chdir(root), Repo() as repo:
        found, status, graph = list(repo.index.stages), repo.status(), repo.index.graph
        below = {stage.name: {d.name for d in networkx.descendants(graph, stage)} for stage in found}
        reads = {stage.name: _reads(stage) for stage in found}
    reasons = {name: _because(status.get(name, [])) for name in below}
    news = {**_changed_params(now, wanted), **_changed_sources(root, wanted)}
    for name, (params, files) in reads.items():
        causes = [why for what, why in news.items() if what in files or _covers(params, what)]
        reasons[name] = reasons[name] or (causes[0] if causes else "")
    result = []
    for name in in_order(root):
        upstream = [other for other in below[name] if reasons[other] and other != "sources"]
        because = reasons[name] or (f"{sorted(upstream)[0]} changes" if upstream else "")
        state = ASKED if name in ("sources", "promotion") else RUN if because else UNCHANGED
        result.append(StageForecast(name, state, because, _size(root / "data" / name)))
    return result


def touched(root: Path, base: Params, wanted: Sequence[Params]) -> list[list[str]]:
    """For each of `wanted` the stages that read what it has otherwise than `base`, and all that depend on
    them, in order."""
    with chdir(root), Repo() as repo:
        found, graph = list(repo.index.stages), repo.index.graph
        above = {stage.name: {s.name for s in networkx.ancestors(graph, stage)} for stage in found}
        reads = {stage.name: _reads(stage)[0] for stage in found}
    order, result = in_order(root), []
    for params in wanted:
        news = _changed_params(base, params)
        first = {name for name, keys in reads.items() if any(_covers(keys, key) for key in news)}
        all_touched = first.union(*(above[name] for name in first))
        result.append([name for name in order if name in all_touched])
    return result


def _reads(stage: Any) -> tuple[set[str], set[str]]:
    """The keys of params.yaml and the files that a stage of dvc.yaml depends on."""
    params = {key for dependency in stage.deps for key in getattr(dependency, "params", ())}
    return params, {str(dependency.def_path) for dependency in stage.deps}


def _covers(keys: set[str], changed: str) -> bool:
    return any(changed == key or changed.startswith(f"{key}.") for key in keys)


def _changed_params(now: Params, wanted: Params) -> dict[str, str]:
    """Dotted key -> why, for every param that differs."""
    before, after = flatten(now), flatten(wanted)
    return {key: f"{key} changes" for key in sorted({*before, *after}) if before.get(key) != after.get(key)}


def _changed_sources(root: Path, params: Params) -> dict[str, str]:
    """Listing -> why, for every source that is here and no longer what the sources stage saw."""
    text, checkpoint = params.sources.text.path, params.sources.checkpoint.path
    found: dict[str, Callable[[], Path]] = {}
    if not references.is_remote(text, root=root):
        found["text"] = lambda: references.locate_text(text, root=root)
    if not references.is_remote(checkpoint, root=root):
        found["checkpoint"] = lambda: references.locate(checkpoint, root=root)
    changed = {}
    for name, locate in found.items():
        listing = Sources.folder(root) / f"{name}.json"
        try:
            references.check(locate(), listing)
        except (ArtifactError, InputError, FileNotFoundError):
            changed[f"data/sources/{name}.json"] = f"{name} source changed"
    return changed


def _because(changes: Sequence[Any]) -> str:
    """DVC's list of changes as words; `always changed` alone is not a change."""
    kinds = []
    for change in changes:
        if isinstance(change, dict):
            kinds += [f"{path} {state}" for group in change.values() for path, state in _pairs(group)]
        elif change != "always changed":
            kinds.append(str(change))
    return ", ".join(kinds[:2]) + (f" and {len(kinds) - 2} more" if len(kinds) > 2 else "")


def _pairs(group: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`{params.yaml: {finetuning: modified}}` and `{data/x: deleted}` alike as (path, state)."""
    pairs: list[tuple[str, str]] = []
    for path, state in group.items():
        pairs += list(state.items()) if isinstance(state, dict) else [(path, state)]
    return pairs


def sources(root: Path, params: Params) -> list[Source]:
    text, checkpoint = params.sources.text.path, params.sources.checkpoint.path
    return [
        _source("text", text, root, lambda: references.locate_text(text, root=root)),
        _source("checkpoint", checkpoint, root, lambda: references.locate(checkpoint, root=root)),
    ]


def _source(name: str, reference: str, root: Path, locate: Callable[[], Path]) -> Source:
    if references.is_remote(reference, root=root):
        return Source(name, reference, "downloaded from the Hub if it is not in its cache", None)
    try:
        return Source(name, reference, "here", _size(locate()))
    except InputError as error:
        return Source(name, reference, f"missing: {error}", None)


def _size(path: Path) -> int | None:
    if path.is_file():
        return path.stat().st_size
    if not path.exists():
        return None
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
