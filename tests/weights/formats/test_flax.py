"""Flax's .msgpack is read as msgpack's own library reads it, without its bytes; anything else is refused."""

import numpy as np
import pytest

from tasks.errors import CheckpointError
from tasks.weights.formats import flax_file, open_checkpoint

msgpack = pytest.importorskip("msgpack")

WHOLE = np.arange(6, dtype=np.float32).reshape(2, 3)
PLAIN = {
    "whole": WHOLE,
    "half": np.ones((3, 1), np.float16),
    "number": np.array(7, np.int32),
    "flag": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float64),
    "long": np.arange(300, dtype=np.uint8),  # more than a byte tells the length of
    "longer": np.arange(70_000, dtype=np.uint8),
}


def array(tensor, dtype=None, code=1):
    """As Flax packs it."""
    return msgpack.ExtType(code, msgpack.packb((tensor.shape, dtype or tensor.dtype.name, tensor.tobytes())))


def in_parts(tensor, size):
    """As Flax packs an array beyond its limit, which is `size` items here."""
    flat = tensor.reshape(-1)
    chunks = [array(flat[start : start + size]) for start in range(0, flat.size, size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): length for axis, length in enumerate(tensor.shape)},
        "chunks": {str(place): chunk for place, chunk in enumerate(chunks)},
    }


@pytest.fixture
def write(tmp_path):
    def write(tree, name="flax_model.msgpack", behind=b""):
        path = tmp_path / name
        path.write_bytes((tree if isinstance(tree, bytes) else msgpack.packb(tree)) + behind)
        return path

    return write


def test_names_shapes_and_bytes_are_what_was_packed(write, bytes_of):
    found = open_checkpoint(write({"a": {"b": {name: array(tensor) for name, tensor in PLAIN.items()}}}))
    assert found.format == "flax"
    assert set(found.entries) == {f"a.b.{name}" for name in PLAIN}
    for name, tensor in PLAIN.items():
        entry = found.entries[f"a.b.{name}"]
        assert entry.decoded is None
        assert (entry.shape, bytes_of(entry)) == (tensor.shape, tensor.tobytes())


def test_dtypes_are_told_in_safetensors_words(write):
    kinds = {
        name: array(np.zeros(2, np.uint16 if name == "bfloat16" else name), name) for name in flax_file.DTYPES
    }
    entries = open_checkpoint(write(kinds)).entries
    assert {name: entry.dtype for name, entry in entries.items()} == flax_file.DTYPES


def test_a_scalar_is_a_tensor_without_dimensions(write):
    assert open_checkpoint(write({"a": array(np.array(2.5), code=3)})).entries["a"].shape == ()


def test_many_names_in_one_map_are_all_there(write):
    assert len(open_checkpoint(write({f"t{n}": array(WHOLE) for n in range(20)})).entries) == 20


def test_an_array_in_parts_is_put_together(write, bytes_of):
    entries = open_checkpoint(write({"a": in_parts(WHOLE, 4), "b": array(WHOLE)})).entries
    assert entries["a"].shape == (2, 3)
    assert bytes_of(entries["a"]) == bytes_of(entries["b"]) == WHOLE.tobytes()


def test_the_config_beside_it_is_its_description(write, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert open_checkpoint(write({"a": array(WHOLE)})).config == {"model_type": "bert"}


def nested(depth):
    tree = array(WHOLE)
    for _ in range(depth):
        tree = {"a": tree}
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"params": {"a": array(WHOLE)}, "step": 3}, "step is no array; save the params alone"),
        ({"a": msgpack.ExtType(2, b"more than eight")}, "a is no array"),
        ({"a": [array(WHOLE)]}, "a is no array"),
        ({"a": array(WHOLE, "float64")}, r"float64 \(2, 3\) takes 48 bytes, it holds 24"),
        ({"a": array(WHOLE, "complex64")}, "unknown dtype 'complex64'"),
        ({"a/b": array(WHOLE)}, "looks like a path"),
        ({"a": {"b": array(WHOLE)}, "a.b": array(WHOLE)}, "it stands twice"),
        ({7: array(WHOLE)}, "a name is no text"),
        (nested(40), "more than 32 maps stand in one another"),
        ({"a": in_parts(WHOLE, 4) | {"chunks": {"1": array(WHOLE)}}}, "not numbered from 0 on"),
        ({"a": in_parts(WHOLE, 4) | {"chunks": {}}}, "not of one dtype"),
        ({"a": {"__msgpack_chunked_array__": True, "chunks": {}}}, "does not tell of its shape first"),
        ({"a": msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"abcd"))[:-1])}, "holds 4 bytes where there is"),
        ([array(WHOLE)], "it is no map"),
        (b"\xdf\xff\xff\xff\xff" + bytes(60), "claims 4,294,967,295 values, more than there can be"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + bytes(60), "a takes 4,294,967,295 bytes, 60 are left"),
        (b"\x81\xa1a\xc7\x15\x01\x93\x91\xcf" + b"\xff" * 8 + b"\xa7float32\xc4\x00", "dimensions, the largest 18,446"),
    ],
)  # fmt: skip
def test_anything_but_arrays_is_refused(write, tree, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write(tree))


def test_bytes_behind_the_end_are_refused(write):
    with pytest.raises(CheckpointError, match="3 bytes follow behind its end"):
        open_checkpoint(write({"a": array(WHOLE)}, behind=b"abc"))


def test_a_directory_names_the_file_that_can_be_read(write, tmp_path):
    write({"a": array(WHOLE)})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"to read flax_model\.msgpack, give the path of that file"):
        open_checkpoint(tmp_path)
