"""Write files and directories whole or not at all, and say what is in them by digest."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def digest_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def digest_tree(directory: Path, *, without: str | None = None) -> str:
    """Digest of every file below `directory` by relative path and content, whatever the listing order."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != without)
    lines = sorted(f"{path.relative_to(directory).as_posix()} {digest_file(path)}" for path in files)
    return digest_bytes("\n".join(lines).encode())


def digest_json(value: Any) -> str:
    return digest_bytes(canonical_json(value).encode())


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Yield an empty draft beside `target`; it takes target's place if the body ends well, else vanishes,
    with the directories above it that were made for it.

    A draft left by a killed process is removed first.
    """
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    above = [parent for parent in draft.parents if not parent.exists()]
    try:
        draft.mkdir(parents=True)
        yield draft
        _swap(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        _remove_empty(above)
        raise


def _remove_empty(directories: Iterable[Path]) -> None:
    """The innermost first, up to the first that somebody uses."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()


def _swap(draft: Path, target: Path) -> None:
    former = target.with_name(f".{target.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        target.rename(former)
    draft.rename(target)
    _sync(target.parent)
    shutil.rmtree(former, ignore_errors=True)


@contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, renamed over it if the body ends well, else removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.draft")
    try:
        yield draft
        with draft.open("rb") as stream:
            os.fsync(stream.fileno())
        draft.replace(target)
        _sync(target.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def link(source: Path, target: Path) -> None:
    """`target` becomes another name of what `source` is now, or a copy where the disk has no second names."""
    with replace_file(target) as draft:
        draft.unlink(missing_ok=True)
        try:
            draft.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, draft)


@contextmanager
def synced(paths: Iterable[Path]) -> Iterator[None]:
    """While the body goes on, the disk takes in the files; it has them when the body has ended.

    Raises OSError where it could not.
    """
    from concurrent.futures import ThreadPoolExecutor  # late: slow to import, and not always needed

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(_sync, path) for path in paths]
        yield
        for one in waiting:
            one.result()


def taken(folder: Path, seen: set[tuple[int, int]] | None = None) -> int:
    """Bytes that `folder` takes of the disk, 0 where there is none; a file that is linked to several names
    counts once, and not where `seen` (device and inode) has it already."""
    seen, total = set() if seen is None else seen, 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                about = os.lstat(Path(place) / name)
                if (key := (about.st_dev, about.st_ino)) not in seen:
                    seen.add(key)
                    total += about.st_blocks * 512
    return total


def write_text(target: Path, text: str) -> None:
    with replace_file(target) as draft:
        draft.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
