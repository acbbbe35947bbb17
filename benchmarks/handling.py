"""A shard's handling with its time, in a module of its own: every worker imports it, and little else."""

import time
from pathlib import Path

from tasks.text import gather
from tasks.text.gather import Handling, Worked

SUFFIX = ".seconds"  # beside the shard
_handle = gather.handle  # `gather.handle` will be replaced by ours


def handle(file: Path, handling: Handling) -> Worked:
    start = time.perf_counter()
    worked = _handle(file, handling)
    file.with_suffix(SUFFIX).write_text(str(time.perf_counter() - start), encoding="utf-8")
    return worked
