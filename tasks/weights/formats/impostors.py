"""Say what stands where a checkpoint should: a pointer, a web page, a pickle, a torn file."""

from pathlib import Path

from tasks.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
REMEDY = "write it again with transformers' save_pretrained(), which makes model.safetensors"


def refuse_impostors(path: Path, opening: bytes, size: int) -> None:
    """Say what stands at `path` if it is a well-known something else."""
    if size < 8:
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
