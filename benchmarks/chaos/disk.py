"""A disk of its own for a trial, which can be full."""

import errno
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 2048  # MB, in memory: more than a trial takes
PIECES = (2**26, 2**20, 2**12)  # bytes that are taken at once: large ones first
PAUSE = 0.1  # seconds between two looks at what has become free
WORDS = ("no space left", "make room")  # of which a run that ended for it must say one


def missing() -> str | None:
    """Why no such disk can be had here."""
    with tempfile.TemporaryDirectory() as scratch:
        done = _mount(Path(scratch), 1)
        if done is None or done.returncode:
            return f"mounting is not permitted: {done.stderr.strip()}" if done else "there is no `mount`"
        _unmount(Path(scratch))
    return None


@contextmanager
def limited(root: Path, megabytes: int = SIZE) -> Iterator[None]:
    """`root` is an empty disk of `megabytes` inside, and no more after it."""
    root.mkdir()
    done = _mount(root, megabytes)
    if done is None or done.returncode:
        raise RuntimeError(f"{root} cannot be mounted: {done.stderr if done else 'no `mount`'}")
    try:
        yield
    finally:
        _unmount(root)


@contextmanager
def full(root: Path) -> Iterator[None]:
    """Inside, all that is or becomes free on the disk of `root` is taken."""
    over = threading.Event()
    filler = root / ".regraft" / "filler"  # where git does not look
    filler.parent.mkdir(exist_ok=True)
    with filler.open("wb") as stream:
        _take(stream.fileno())
        thread = threading.Thread(target=_keep_taking, args=(stream.fileno(), over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            filler.unlink()


def _keep_taking(handle: int, over: threading.Event) -> None:
    while not over.wait(PAUSE):
        _take(handle)


def _take(handle: int) -> None:
    for piece in PIECES:
        try:
            while True:
                os.posix_fallocate(handle, os.fstat(handle).st_size, piece)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _mount(place: Path, megabytes: int) -> "subprocess.CompletedProcess[str] | None":
    if not shutil.which("mount"):
        return None
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "regraft", str(place)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # lazily: who dies may still be in it
