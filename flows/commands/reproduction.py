"""`regraft reproduce`: build a registered version again, from commit, params and data; compare digests."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.checkout import places, workspace
from flows.checkout.stage import in_order, reproduce
from tasks import params as parameters
from tasks.artifacts import MANIFEST
from tasks.tracking.circumstances import manifest_digest
from tasks.tracking.registry import Registry, Version, find


@dataclass(frozen=True)
class Comparison:
    """Digests of one stage's output: the registered one and the one made now."""

    stage: str
    registered: str
    found: str

    @property
    def agrees(self) -> bool:
        return self.registered == self.found


def resolve(reference: str, root: Path) -> tuple[Registry, Version]:
    """models:/NAME@champion, models:/NAME/3, or 3 for a version of the model that params.yaml names."""
    if reference.isdecimal():
        reference = f"models:/{parameters.load(root / 'params.yaml').promotion.model}/{reference}"
    return find(reference, root)


def rebuild(reference: str, root: Path, tell: Callable[[str], None]) -> list[Comparison]:
    """Every stage up to the model runs anew, in a place that shares nothing with `root` but its sources, its
    ledger and DVC's cache, from which no output is taken. The place stays where a digest differs.

    Raises InputError where the version does not say what it was made from.
    """
    root = root.resolve()
    registry, version = resolve(reference, root)
    origin = registry.origin(version)
    tell(f"{registry.name} version {version.number}: commit {origin.commit[:12]}")
    made = places.made_in(root, registry.name)
    with workspace.visited(made):
        place = workspace.rebuild(root, origin.commit, origin.params, like=made)
    compared = []
    with _no_server():
        for stage in [name for name in in_order(place) if name in origin.digests]:
            reproduce(stage, place, "subprocess", lambda message: None, force=True)
            found = manifest_digest(place, stage) or f"no {MANIFEST}"
            compared.append(Comparison(stage, origin.digests[stage], found))
            tell(_line(compared[-1]))
    if all(one.agrees for one in compared):
        workspace.remove(root, place)
    else:
        tell(f"what was made now is in {place}")
    return compared


def _line(one: Comparison) -> str:
    return (
        f"  {one.stage}: agrees"
        if one.agrees
        else f"  {one.stage}: differs, registered {one.registered}, now {one.found}"
    )


@contextmanager
def _no_server() -> Iterator[None]:
    """The rebuilding is tracked in its own place: it is not a run of the project."""
    former = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        yield
    finally:
        if former is not None:
            os.environ["MLFLOW_TRACKING_URI"] = former
