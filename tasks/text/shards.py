"""Tables in parts: how rows lie on disk between the steps of preparation, and who works on which part.

A shard is one Parquet file of a bounded number of rows. Every step is a plain function from shard to shard,
so that a thread, a process or a Ray worker can run it, and memory is bounded by shards, not by the table.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as parquet

from tasks import environment

KEPT = "kept column "  # begins the names of what comes along, so that none of them is one of ours
Engine = Literal["thread", "process", "ray"]
Task = TypeVar("Task")
Result = TypeVar("Result")

# What every document has, whatever its kind; the kind's own columns (tasks/text/kinds.py) follow.
DOCUMENT = pa.schema(
    {
        "id": pa.string(),  # the table's own, or null: then made from `content`
        "content": pa.uint64(),  # hash of all that the row says
        "place": pa.string(),  # file and line, or file and row
        "split": pa.string(),  # the table's own, or null
        "text": pa.string(),  # what duplicates and splits are told by
    }
)
QUARANTINED = pa.schema(
    {
        "id": pa.string(),
        "content": pa.uint64(),
        "stage": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "file": pa.string(),
        "line": pa.int64(),  # from 1; of Parquet and Arrow the row, from 1
        "raw": pa.binary(),  # as it stood, capped
    }
)
DROPPED = pa.schema(
    {
        "id": pa.string(),
        "step": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "text": pa.string(),
        "duplicate_of": pa.string(),  # id of the row that stays, of duplicates
        "similarity": pa.float64(),  # Jaccard, of duplicates
    }
)


def write(table: pa.Table, path: Path) -> Path:
    parquet.write_table(table, path)
    return path


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    return parquet.read_table(path, columns=columns, memory_map=True)


def run(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    engine: Engine = "thread",
    workers: int | None = None,
) -> Iterator[Result]:
    """`function` of each task, in the order of `tasks`, at most two tasks a worker ahead of what is taken.

    With "process" and "ray" function, tasks and results travel: let them be small, such as paths. Raises
    ParamsError for "ray" where Ray is not installed.
    """
    count, pending = workers or os.cpu_count() or 1, iter(tasks)
    first = list(islice(pending, 2))
    if len(first) < 2 and engine != "ray":  # nobody to share with
        yield from map(function, first)
        return
    if engine == "ray":
        yield from _on_ray(function, chain(first, pending), count)
        return
    with _pool(engine, count) as pool:
        waiting = []
        for task in chain(first, pending):
            waiting.append(pool.submit(function, task))
            if len(waiting) > 2 * count:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


@contextmanager
def _pool(engine: Engine, workers: int) -> Iterator[Executor]:
    """A failure must not wait for work that nobody will look at."""
    pool: Executor
    if engine == "process":  # spawned: forking a process that has threads may deadlock
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    else:
        pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """On the cluster of RAY_ADDRESS, or one on this machine; shards must lie where every worker sees them."""
    environment.demand("ray", extra="ray", wanted="preparation.engine: ray")
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=None if os.environ.get("RAY_ADDRESS") else workers, log_to_driver=False)
    remote = ray.remote(_call)  # Ray takes no partial
    waiting: list[object] = []
    for task in tasks:
        waiting.append(remote.remote(function, task))
        if len(waiting) > 2 * workers:
            yield ray.get(waiting.pop(0))
    for reference in waiting:
        yield ray.get(reference)


def _call(function: Callable[[Task], Result], task: Task) -> Result:
    return function(task)
