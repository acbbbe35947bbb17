"""How long a stage took and what it needed: told in reports/timings.json, never in data/*, whose digests must
not depend on the machine. Imports nothing heavy."""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from tasks import environment, files


@dataclass(frozen=True)
class Timing:
    seconds: float
    peak_memory_bytes: (
        int  # of the process since it began, what it was forked with and former stages included
    )
    host: str
    date: str


@contextmanager
def measured(stage: str, root: Path) -> Iterator[None]:
    """Merge the body's wall time into reports/timings.json; a body that fails leaves no figure."""
    begun = time.monotonic()
    yield
    _merge(root, {stage: asdict(since(begun))})


def since(begun: float) -> Timing:
    """`begun` is a `time.monotonic()`."""
    seconds, date = round(time.monotonic() - begun, 3), datetime.now(UTC).isoformat(timespec="seconds")
    return Timing(seconds, environment.peak_memory(), platform.node(), date)


def _merge(root: Path, found: Mapping[str, Mapping[str, object]]) -> None:
    target, lock = root / "reports" / "timings.json", root / ".regraft" / "timings.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # two stages may end at once
        former = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
        files.write_text(target, files.canonical_json({**former, **found}))
