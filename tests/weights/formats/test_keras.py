"""Keras' .h5: datasets that lie in the file as they are; links, chunks and other files are refused."""

import builtins

import numpy as np
import pytest

from tasks.errors import CheckpointError
from tasks.weights.formats import keras_file, open_checkpoint

h5py = pytest.importorskip("h5py")

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def write(tmp_path):
    """Runs `fill` on an empty HDF5 file."""

    def write(fill):
        with h5py.File(tmp_path / "tf_model.h5", "w") as file:
            fill(file)
        return tmp_path / "tf_model.h5"

    return write


def test_names_shapes_and_bytes_are_those_of_the_datasets(write, bytes_of):
    tensors = {
        "bert/tf_bert_model/bert/encoder/layer_._0/output/dense/kernel:0": KERNEL,
        "half": np.ones(3, np.float16),
        "number": np.array(7, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    found = open_checkpoint(
        write(lambda file: [file.create_dataset(*pair[:1], data=pair[1]) for pair in tensors.items()])
    )
    assert found.format == "keras"
    assert set(found.entries) == {name.replace("/", ".") for name in tensors}
    for name, tensor in tensors.items():
        entry = found.entries[name.replace("/", ".")]
        assert entry.decoded is None
        assert (entry.shape, bytes_of(entry)) == (tensor.shape, tensor.tobytes())


def test_dtypes_are_told_in_safetensors_words(write):
    kinds = {
        kind: np.zeros(2, kind) for kind in keras_file.DTYPES if kind != "|b1"
    }  # HDF5 has an enumeration for it
    entries = open_checkpoint(
        write(lambda file: [file.create_dataset(name, data=kinds[name]) for name in kinds])
    ).entries
    assert {name: entry.dtype for name, entry in entries.items()} == {
        name: keras_file.DTYPES[name] for name in kinds
    }


def circle(file):
    file["a/b/c"] = KERNEL
    file["a/b/d"] = file["a"]


def elsewhere(file):
    file.create_dataset("a", (2, 3), "f4", external=[("passwords.raw", 0, 24)])


def virtual(file):
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[...] = h5py.VirtualSource("other.h5", "a", (2, 3))
    file.create_virtual_dataset("a", layout)


def deep(file):
    file["/".join("a" * 40)] = KERNEL


def links(file):
    file["a"], file["b"] = h5py.SoftLink("/c"), h5py.ExternalLink("other.h5", "/c")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (links, "(?s)'a': it is a link to something else.*'b': it is a link to something else"),
        (elsewhere, "its bytes are in another file, which was not opened"),
        (virtual, "its bytes are in another file"),
        (lambda file: file.create_dataset("a", data=KERNEL, compression="gzip"), "compressed or cut into chunks"),
        (lambda file: file.create_dataset("a", data=KERNEL, chunks=(1, 3)), "compressed or cut into chunks"),
        (lambda file: file.create_dataset("a", (2, 3), "f4"), "do not lie in the file"),
        (lambda file: file.create_dataset("a", data="text"), "are no little-endian numbers"),
        (lambda file: file.create_dataset("a", data=KERNEL.astype(">f4")), "are no little-endian numbers"),
        (lambda file: file.create_dataset("a", data=h5py.Empty("f4")), "are no little-endian numbers"),
        (circle, "it holds itself"),
        (deep, "more groups deep than any model"),
    ],
)  # fmt: skip
def test_what_does_not_lie_in_the_file_as_it_is_is_refused(write, fill, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write(fill))


def test_a_torn_file_is_refused(write):
    path = write(lambda file: file.create_dataset("a", data=np.zeros(1000)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="torn"):
        open_checkpoint(path)


def test_without_h5py_the_remedy_is_named(write, monkeypatch):
    path, imported = write(lambda file: file.create_dataset("a", data=KERNEL)), builtins.__import__

    def absent(name, *rest):
        if name == "h5py":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(CheckpointError, match="is an HDF5 file: `pip install h5py`"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"])
def test_tensorflows_own_format_names_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x00\x14\x08bert" * 20)
    with pytest.raises(
        CheckpointError, match=r"TensorFlow's own format: .* tf\.train\.load_checkpoint.*numpy\.savez"
    ):
        open_checkpoint(tmp_path / name)
