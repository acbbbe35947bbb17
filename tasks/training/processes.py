"""The processes of one training on this host: begun, joined, watched and ended by the first.

The others are `python -m <module>`, which read what they need from standard input and end when it closes, so
that none outlives the first, however that ends. They hear no Ctrl-C: the first alone decides to stop.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, TextIO

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

import tasks
from tasks import progress
from tasks.errors import TrainingError
from tasks.training.ranks import ALONE, Ranks

HOST, LOOPBACK = "127.0.0.1", "lo"
PATIENCE = 600.0  # seconds that an exchange may take before a process counts as stuck
ENDING = 5.0  # seconds in which a process that is gone is seen to be
LOST, ABANDONED = 75, 143  # exit codes: another process is gone; the first is
PORT = "MASTER_PORT"  # which accelerate sets where it is not
WORDS = 2000  # last characters that a process has said which an error repeats


@dataclass(frozen=True)
class Order:
    """What a process is told: which one it is, where the others are found, and what to do (plain values)."""

    rank: int
    size: int
    port: int
    device: str
    patience: float
    task: Mapping[str, Any]


@dataclass(frozen=True)
class _Process:
    rank: int
    popen: subprocess.Popen[str]
    said: IO[str]

    @property
    def words(self) -> str:
        self.said.seek(0)
        return self.said.read().strip()[-WORDS:]


@contextmanager
def together(
    devices: Sequence[str], *, module: str, task: Mapping[str, Any], patience: float = PATIENCE
) -> Iterator[Ranks]:
    """Meanwhile a process for each of `devices` (cpu or cuda:2) trains, the first is this; the others run
    `module`.

    task: what they are told, as JSON can say it.
    Raises TrainingError where one ends or is silent for `patience` seconds, with its last words.
    """
    if (size := len(devices)) == 1:
        yield ALONE
        return
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=patience))
    with ExitStack() as stack:
        others = []
        for rank in range(1, size):
            order = Order(rank, size, store.port, devices[rank], patience, task)
            others.append(stack.enter_context(_begun(module, order)))
        _await(store, others, patience)
        stack.enter_context(_joined(0, size, store, devices[0], patience))
        yield Ranks(0, size, lambda: _lost(others, patience))


def received(stream: TextIO) -> Order:
    """The order that `together` wrote; from now on this process ends when the stream does."""
    order = Order(**json.loads(stream.readline()))
    threading.Thread(target=_end_with, args=(stream,), daemon=True).start()
    return order


@contextmanager
def joined(order: Order) -> Iterator[Ranks]:
    """Meanwhile this process is one of those that `together` began."""
    store = TCPStore(HOST, order.port, is_master=False, timeout=timedelta(seconds=order.patience))
    store.set(_here(order.rank), "")
    with _joined(order.rank, order.size, store, order.device, order.patience):
        yield Ranks(order.rank, order.size)
        threading.Event().wait()  # the first, which may still be reading what this one has sent, ends it


def _end_with(stream: TextIO) -> None:
    stream.read()
    os._exit(ABANDONED)


def _here(rank: int) -> str:
    return f"rank {rank} is here"


@contextmanager
def _begun(module: str, order: Order) -> Iterator[_Process]:
    home = str(Path(tasks.__file__).parents[1])  # the same code, wherever we were started
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {k: v for k, v in os.environ.items() if k != progress.VARIABLE}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        popen = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            text=True,
            start_new_session=True,
            env={
                **variables,
                **_about(order.rank, order.size, order.device),
                "PYTHONPATH": os.pathsep.join(paths),
            },
        )
        try:
            assert popen.stdin
            with suppress(BrokenPipeError):  # gone already, which is noticed
                popen.stdin.write(json.dumps(asdict(order)) + "\n")
                popen.stdin.flush()
            yield _Process(order.rank, popen, said)
        finally:
            popen.kill()
            popen.communicate()


def _about(rank: int, size: int, device: str) -> dict[str, str]:
    """The variables from which accelerate learns who it is and on which GPU; gloo stays on this host, and
    each process has its share of the cores."""
    place = device.partition(":")[2] or str(rank)
    threads = max(1, len(os.sched_getaffinity(0)) // size)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": place,
        **{name: str(size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", LOOPBACK),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _await(store: Store, others: Sequence[_Process], patience: float) -> None:
    """Until all have come; joining at once would wait for one that is gone already."""
    ends = time.monotonic() + patience
    while not store.check([_here(one.rank) for one in others]):
        if time.monotonic() > ends or any(one.popen.poll() is not None for one in others):
            raise TrainingError(_lost(others, patience))
        time.sleep(0.05)


@contextmanager
def _joined(rank: int, size: int, store: Store, device: str, patience: float) -> Iterator[None]:
    """One process group, which accelerate keeps for the whole process; left as it was found."""
    about, threads = _about(rank, size, device), torch.get_num_threads()
    former = {name: os.environ.get(name) for name in (*about, PORT)}
    PartialState._reset_state()  # of a process that was alone
    try:
        os.environ.update(about)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        PartialState(
            cpu=device == "cpu",
            backend="gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=patience),
        )
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        PartialState._reset_state()
        torch.set_num_threads(threads)
        for name in former:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in former.items() if value is not None})


def _lost(others: Sequence[_Process], patience: float) -> str:
    """Who is gone; who went only because another did is not named."""
    ends = time.monotonic() + ENDING
    while not (gone := [one for one in others if one.popen.poll() not in (None, LOST)]):
        if time.monotonic() > ends:
            return (
                f"the {len(others) + 1} processes of this training (finetuning.processes) did not hear from "
                f"one another for {patience:g} s: see whether one is stuck, and run again"
            )
        time.sleep(0.05)
    told = [f"process {one.rank} of {len(others) + 1} {_ending(one)}" for one in gone]
    return f"{'; '.join(told)}; run again to go on from the last resume point"


def _ending(one: _Process) -> str:
    code = one.popen.returncode
    if code < 0:
        return f"was ended by signal {-code}"
    return f"has ended with code {code}: {one.words or 'without a word'}"
