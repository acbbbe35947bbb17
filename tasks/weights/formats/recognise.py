"""Read one file of a checkpoint by what it holds, whatever its name says."""

from pathlib import Path

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import Checkpoint
from tasks.weights.formats.header import read_header
from tasks.weights.formats.impostors import refuse_impostors, refuse_irregular, refuse_text

ZIP = b"PK\x03\x04"


def read_file(path: Path, key: str | None = None) -> Checkpoint:
    """The checkpoint in one file.

    key: of the dict of tensors in a PyTorch file that holds several.
    Raises CheckpointError saying what stands there where it is none that can be read.
    """
    refuse_irregular(path)
    with path.open("rb") as stream:
        opening = stream.read(512)
    if not opening.startswith(ZIP) or opening[8:9] == b"{":
        refuse_impostors(path, opening, path.stat().st_size)
    refuse_text(path, opening)
    if opening[8:9] == b"{":
        return Checkpoint(path.parent, read_header(path), {}, "safetensors")
    if opening.startswith(ZIP):
        return _read_zip(path, key)
    return _read_other(path, opening)


def _read_zip(path: Path, key: str | None) -> Checkpoint:
    from tasks.weights.formats import numpy_zip, torch_zip, zip_members

    members = zip_members.check(path)
    if any(name.split("/")[-1] == torch_zip.PICKLE for name in members):
        return torch_zip.read(path, members, key)
    if any(name.endswith(numpy_zip.SUFFIX) for name in members):
        return numpy_zip.read(path, members)
    held = ", ".join(sorted(members)[:5]) or "nothing"
    raise CheckpointError(f"{path} is a zip of neither PyTorch nor numpy; it holds {held}")


def _read_other(path: Path, opening: bytes) -> Checkpoint:
    from tasks.weights.formats import flax_file, gguf_file, keras_file, llama2c

    if opening.startswith(gguf_file.MAGIC):
        return gguf_file.read(path)
    if opening.startswith(keras_file.MAGIC):
        return keras_file.read(path)
    if path.suffix == ".bin" and llama2c.is_llama2c(opening):
        return llama2c.read(path)
    if path.suffix == flax_file.SUFFIX:
        return flax_file.read(path)
    if path.suffix == ".safetensors":
        return Checkpoint(path.parent, read_header(path), {}, "safetensors")
    keras_file.refuse_tensorflow(path)
    raise CheckpointError(
        f"{path} is no checkpoint that can be read: it begins with {opening[:8]!r}; known are safetensors, "
        "PyTorch's zip, GGUF, .npz, llama2.c's .bin, Flax's .msgpack and Keras' .h5"
    )
