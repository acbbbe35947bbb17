"""Processes of stages, forked from one that has imported their libraries, which takes seconds each time.

Libraries alone, so that a stage runs by the code of its own checkout. Run as a script, by its path, this is
the server: until it forks it imports nothing of ours. For Linux: macOS's frameworks do not outlive a fork.
"""

import atexit
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, TextIO

import psutil
from setproctitle import setproctitle

TRACKING = ("mlflow.tracking", "scipy.stats")  # the threads that libraries start sleep when a fork is made
LIBRARIES = (
    *TRACKING,
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "datasets",
    "evaluate",
    "sklearn.metrics",
)
SAFE = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # CUDA that was begun, if only to be asked, outlives no fork
THEIRS = {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "_RJEM_MALLOC_CONF"}  # libraries set them
PR_SET_PDEATHSIG = 1  # of prctl(2)
OFTEN = 0.05  # seconds between looks at a child and at the caller
PARTING = 60.0  # seconds for a stage to save what it did, as in tasks/__main__.py
_current: list["ForkServer"] = []


class ForkServer:
    """It ends with this process. environment: its own, which libraries may read when they are imported."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = _ours(environment)
        self._wire, theirs = socket.socketpair()
        with theirs:
            command, kept = [sys.executable, "-P", __file__, str(theirs.fileno())], [theirs.fileno()]
            self._process = subprocess.Popen(
                command, env={**SAFE, **environment}, pass_fds=kept, stdin=subprocess.DEVNULL
            )
        self._requests = self._wire.makefile("w", encoding="utf-8")
        self._said = b""  # by the server, and not yet heard
        self._child: psutil.Process | None = None
        self._awaited = False  # a run whose caller was broken off: what is said of it answers nobody

    def lives(self) -> bool:
        """Whether it can be asked."""
        return not self._awaited and not self._said and self._process.poll() is None

    def load(self, libraries: Sequence[str]) -> None:
        """Begin to import them, and do not wait."""
        self._ask(libraries=list(libraries))

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        folder: str,
        environment: Mapping[str, str],
        *,
        libraries: Sequence[str] = (),
        meanwhile: Sequence[str] = (),
    ) -> int:
        """`python -m module arguments` in `folder`; returns its exit code, the negative number of the signal
        that ended it. One at a time.

        libraries: it finds them imported. meanwhile: for others, imported while it runs.
        Raises ChildProcessError where the server is gone before that, once the stage is too.
        """
        imported = {"libraries": list(libraries), "meanwhile": list(meanwhile)}
        self._ask(
            module=module, arguments=list(arguments), folder=folder, environment=dict(environment), **imported
        )
        self._awaited, self._child = True, None
        self._child = _process(self._heard())
        with _deaf():
            code = self._heard()
        self._awaited = False
        return code

    def close(self) -> None:
        """A stage that still runs is told to end, and waited for."""
        with suppress(ConnectionError):
            self._requests.close()
        self._process.kill()
        self._gone()
        self._wire.close()

    def _ask(self, **request: Any) -> None:
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except ConnectionError:
            raise self._gone() from None

    def _heard(self) -> int:
        """The next number that the server says."""
        while b"\n" not in self._said:
            if select.select([self._wire], [], [], 1)[0]:  # a time-out or a signal is noticed between
                self._receive()
        line, _, self._said = self._said.partition(b"\n")
        return int(line)

    def _receive(self) -> None:
        with suppress(ConnectionError):
            if part := self._wire.recv(4096):
                self._said += part
                return
        raise self._gone()

    def _gone(self) -> ChildProcessError:
        """Without the server its stage has heard that it must end; one that has not in time is killed."""
        code = self._process.wait()
        if self._awaited and self._child is None:
            with suppress(OSError, IndexError):  # nothing was said
                self._child = _process(int((self._said + self._wire.recv(4096)).splitlines()[0]))
        with suppress(psutil.Error):
            if self._awaited and self._child and psutil.wait_procs([self._child], timeout=PARTING)[1]:
                self._child.kill()
        return ChildProcessError(f"what forks the processes of stages ended with {code}")


def _process(number: int) -> psutil.Process | None:
    """None where it is over already."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(number)
    return None


def current(environment: Mapping[str, str]) -> ForkServer:
    """The one of this process, begun anew where it has ended or `environment` is another one."""
    if _current and not (_current[0].lives() and _current[0].environment == _ours(environment)):
        _current.pop().close()
    if not _current:
        _current.append(ForkServer(environment))
        atexit.register(_current[0].close)
    return _current[0]


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C reaches the stage, which then ends in its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in THEIRS}


def serve(wire: socket.socket) -> None:
    """Says of each stage the number of its process, then its exit code, and more where it says nothing after
    that. Ends with its caller. Returns in each child too, whose module has run by then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: a stage has its own answer
    lines = wire.makefile("rw", encoding="utf-8")
    while line := lines.readline():
        request = json.loads(line)
        _load(request["libraries"])
        if "module" not in request:
            continue
        _end_with_caller(wire)
        child, came = _forked()
        if not child:
            os.close(wire.detach())
            _become(request)
            return
        _say(lines, f"{child}\n")
        for library in request["meanwhile"]:
            _end_with_caller(wire)
            _load([library])
        code = _ended(child, wire)
        _say(lines, f"{code}\n{'last' if came else ''}")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if came:
            sys.exit()


def _say(lines: TextIO, words: str) -> None:
    lines.write(words)
    lines.flush()


def _load(libraries: Sequence[str]) -> None:
    for library in libraries:
        import_module(library)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it marks


def _forked() -> tuple[int, Sequence[int]]:
    """As `os.fork`, for a child that ends as by SIGTERM once this process is gone, and hears Ctrl-C again;
    and the times that SIGTERM has come here, which is passed on to it: it may have something to save."""
    came: list[int] = []
    server, stops = os.getpid(), (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # what comes meanwhile is the child's, once it is ready
    if not (child := os.fork()):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != server:
            os.kill(os.getpid(), signal.SIGTERM)
    else:
        signal.signal(signal.SIGTERM, partial(_pass_on, child, came))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    return child, came


def _pass_on(child: int, came: list[int], number: int, _: FrameType | None) -> None:
    came.append(number)
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _become(request: Mapping[str, Any]) -> None:
    setproctitle(" ".join(["python -m", request["module"], *request["arguments"]]))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path.insert(0, request["folder"])
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _ended(child: int, wire: socket.socket) -> int:
    """The exit code."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        _end_with_caller(wire, wait=OFTEN)


def _end_with_caller(wire: socket.socket, *, wait: float = 0) -> None:
    """The caller says nothing while a child works but that it is gone."""
    if select.select([wire], [], [], wait)[0]:
        sys.exit()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
