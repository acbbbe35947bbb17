"""Processes of stages, forked from one that has imported their libraries, which takes seconds each time.

Libraries alone, so that a stage runs by the code of its own checkout. Run as a script, by its path, this is
the server: until it forks it imports nothing of ours. For Linux: macOS's frameworks do not outlive a fork.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

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
OFTEN = 0.05  # seconds between looks at a child and at the caller
_current: list["ForkServer"] = []


class ForkServer:
    """It ends with this process. environment: its own, which libraries may read when they are imported."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._wire, theirs = socket.socketpair()
        with theirs:
            command, kept = [sys.executable, "-P", __file__, str(theirs.fileno())], [theirs.fileno()]
            self._process = subprocess.Popen(
                command, env={**SAFE, **environment}, pass_fds=kept, stdin=subprocess.DEVNULL
            )
        self._lines = self._wire.makefile("rw", encoding="utf-8")

    def lives(self) -> bool:
        return self._process.poll() is None

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
        Raises ChildProcessError where the server is gone before that.
        """
        imported = {"libraries": list(libraries), "meanwhile": list(meanwhile)}
        self._ask(
            module=module, arguments=list(arguments), folder=folder, environment=dict(environment), **imported
        )
        while not select.select([self._wire], [], [], 1)[0]:  # a time-out or a signal is noticed between
            pass
        if line := self._lines.readline():
            return int(line)
        raise self._gone()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._lines.close()
        self._wire.close()

    def _ask(self, **request: Any) -> None:
        try:
            self._lines.write(json.dumps(request) + "\n")
            self._lines.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def _gone(self) -> ChildProcessError:
        return ChildProcessError(f"what forks the processes of stages ended with {self._process.wait()}")


def current(environment: Mapping[str, str]) -> ForkServer:
    """The one of this process, begun anew where it has ended or `environment` is another one."""
    if _current and not (_current[0].lives() and _current[0].environment == environment):
        _current.pop().close()
    if not _current:
        _current.append(ForkServer(environment))
        atexit.register(_current[0].close)
    return _current[0]


def serve(wire: socket.socket) -> None:
    """Ends with its caller. Returns in each child too, whose module has run by then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: a stage has its own answer
    lines = wire.makefile("rw", encoding="utf-8")
    while line := lines.readline():
        request = json.loads(line)
        _load(request["libraries"])
        if "module" not in request:
            continue
        if not (child := os.fork()):
            os.close(wire.detach())
            _become(request)
            return
        for library in request["meanwhile"]:
            _end_with_caller(wire)
            _load([library])
        lines.write(f"{_ended(child, wire)}\n")
        lines.flush()


def _load(libraries: Sequence[str]) -> None:
    for library in libraries:
        import_module(library)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it marks


def _become(request: Mapping[str, Any]) -> None:
    setproctitle(" ".join(["python -m", request["module"], *request["arguments"]]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
    """The caller says nothing while a child works but that it is gone. The child notices that we are."""
    if select.select([wire], [], [], wait)[0]:
        sys.exit()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
