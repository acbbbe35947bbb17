"""Say what stands where a checkpoint should: a pointer, a web page, a pickle, a torn file."""

from pathlib import Path

from tasks.errors import CheckpointError

REMEDY = "write it again with transformers' save_pretrained(), which makes model.safetensors"


def refuse_impostors(path: Path, opening: bytes, size: int, *, smallest: int = 8) -> None:
    """Say what stands at `path` if it is a well-known something else, or below `smallest` bytes."""
    if size < smallest:
        raise CheckpointError(
            f"{path} is {'empty' if not size else f'only {size} bytes long'}: fetch it again"
        )
    if opening.startswith(b"version https://git-lfs.github.com/spec/"):
        raise CheckpointError(
            f"{path} is a git-LFS pointer, not the file ({_lfs(opening)}): run `git lfs pull`"
        )
    if opening.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(f"{path} is a web page, not weights: the download was refused; fetch it again")
    if opening.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and not (
        opening[8:9] == b"{"
    ):
        raise CheckpointError(pickle_refused(path))


def refuse_text(path: Path, opening: bytes) -> None:
    """Say so if `path` holds the JSON or XML that a server sends instead of a file."""
    if opening.lstrip().startswith((b"{", b"[", b"<?xml")) and b"\0" not in opening[:8]:
        start = opening[:80].decode("utf-8", "replace")
        raise CheckpointError(f"{path} is text, not weights: it begins with {start!r}; fetch it again")


def refuse_irregular(path: Path) -> None:
    """Raises CheckpointError unless `path` is a regular file; a pipe or device is never opened."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the directory or the file of a checkpoint")
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory where a file is needed")
    if not path.is_file():
        raise CheckpointError(f"{path} is a pipe, socket or device, not a regular file")


def read_text(path: Path, *, most: int) -> bytes:
    """The bytes of a JSON file. Raises CheckpointError if there are none, too many, or an impostor's."""
    if (size := path.stat().st_size) > most:
        raise CheckpointError(
            f"{path} has {size:,} bytes, more than the {most:,} that are allowed: put the right file there"
        )
    with path.open("rb") as stream:
        data = stream.read(size)
    refuse_impostors(path, data[:512], len(data), smallest=1)
    return data


def inside(directory: Path, name: str) -> Path:
    """The file `name` of a checkpoint. Raises CheckpointError if it is no file or a link out of it."""
    path = directory / name
    if fault := escape_fault(path, directory):
        raise CheckpointError(f"{directory} is not usable: {fault}; put the file itself there")
    refuse_irregular(path)
    return path


def escape_fault(path: Path, directory: Path) -> str | None:
    """Why a file named inside a checkpoint's `directory` must not be followed, if it is a link out of it.

    The hub's cache keeps every file as a link from snapshots/ to blobs/ beside it, so that one is followed.
    """
    home, target = directory.resolve(), path.resolve()
    snapshots = [parent.with_name("blobs") for parent in home.parents if parent.name == "snapshots"]
    if any(target.is_relative_to(root) for root in (home, *snapshots)):
        return None
    return f"{path.name!r} is a link to {target}, outside the checkpoint's directory, and was not opened"


def _lfs(opening: bytes) -> str:
    fields = dict(
        line.split(" ", 1) for line in opening.decode("ascii", "replace").splitlines() if " " in line
    )
    return f"oid {fields.get('oid', 'unknown')}, {fields.get('size', 'unknown')} bytes"


def pickle_refused(path: Path) -> str:
    return (
        f"{path} is a pickle: opening it would run whatever code it carries, so it was refused and nothing "
        f"in it was read. Where you trust it, {REMEDY}"
    )
