"""A network of its own for servers, by one cable that can be pulled out."""

import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

NEAR, FAR, MASK = "10.213.77.1", "10.213.77.2", 30


class Link:
    """The cable between here and the network namespace `name`, where a server is at the address FAR."""

    def __init__(self, name: str) -> None:
        self._name, self._near, self._far = name, f"{name}n", f"{name}f"
        _ip("netns", "add", name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", name)
        _ip("address", "add", f"{NEAR}/{MASK}", "dev", self._near)
        _ip("link", "set", self._near, "up")
        self._there("address", "add", f"{FAR}/{MASK}", "dev", self._far)
        self._there("link", "set", "lo", "up")
        self.heal()

    def inside(self, command: Sequence[str]) -> tuple[str, ...]:
        """`command` as it is started there."""
        return ("ip", "netns", "exec", self._name, *command)

    def cut(self) -> None:
        """Whoever waits for an answer hears nothing more, no refusal either."""
        self._there("link", "set", self._far, "down")

    def heal(self) -> None:
        self._there("link", "set", self._far, "up")

    def remove(self) -> None:
        with suppress(RuntimeError):
            _ip("link", "delete", self._near)
        _ip("netns", "delete", self._name)

    def _there(self, *words: str) -> None:
        _ip("-netns", self._name, *words)


@contextmanager
def link() -> Iterator[Link]:
    name = f"rg{secrets.token_hex(3)}"  # a device's name has at most 15 characters
    made = Link(name)
    try:
        yield made
    finally:
        made.remove()


def missing() -> str | None:
    """Why no such network can be had here."""
    if not shutil.which("ip"):
        return "there is no `ip` (iproute2)"
    try:
        with link():
            return None
    except RuntimeError as error:
        return f"network namespaces are not permitted: {error}"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
