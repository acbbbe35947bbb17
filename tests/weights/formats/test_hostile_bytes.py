"""Mutated files: each is refused with a sentence, or its tensors lie within it; nothing else happens."""

import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint

EXAMPLES = 150
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
PLACES = st.integers(0, 2**20)
EDITS = st.one_of(
    st.tuples(st.just("byte"), PLACES, st.integers(0, 255)),
    st.tuples(st.just("number"), PLACES, st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from(NUMBERS))),
    st.tuples(st.just("cut"), PLACES, st.integers(1, 64)),
    st.tuples(st.just("repeat"), PLACES, st.integers(1, 64)),
    st.tuples(st.just("end"), PLACES, st.none()),
)
Edit = tuple[str, int, object]


def mutated(data: bytes, edits: list[Edit]) -> bytes:
    for kind, far, how in edits:
        place = far % (len(data) + 1)
        match kind, how:
            case "byte", int(value):
                data = data[:place] + bytes([value]) + data[place + 1 :]
            case "number", (width, value):
                item = struct.pack("<Q", value)[:width]
                data = data[:place] + item + data[place + width :]
            case "cut", int(length):
                data = data[:place] + data[place + length :]
            case "repeat", int(length):
                data = data[: place + length] + data[place:]
            case _:
                data = data[:place]
    return data


def survive(path: Path, most: int = 2**22) -> None:
    """Open `path` and read all it tells of; anything but a CheckpointError comes through."""
    tracemalloc.start()
    try:
        entries = open_checkpoint(path).entries
        for entry in entries.values():
            size = entry.file.stat().st_size
            assert 0 <= entry.start <= entry.stop <= size
            if entry.decoded is None:
                assert entry.nbytes == entry.stop - entry.start
            else:
                assert entry.decoded().nbytes == entry.nbytes
        refusal = ""
    except CheckpointError as error:
        refusal = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < most
    assert len(refusal) < 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def torch_bytes() -> bytes:
    buffer = io.BytesIO()
    shared = torch.arange(6.0).reshape(2, 3)
    inner = {"a": shared, "tied": shared, "t": shared.t(), "half": torch.ones(3, dtype=torch.float16)}
    torch.save({"model": inner, "args": {"n": 1, "x": [1.5, None, (True, "é")]}, "step": 3}, buffer)
    return buffer.getvalue()


def safetensors_bytes() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(14)


def numpy_bytes(save: Callable[..., None] = np.savez) -> bytes:
    buffer = io.BytesIO()
    save(
        buffer,
        a=np.arange(6.0).reshape(2, 3),
        f=np.asfortranarray(np.ones((2, 3), "f4")),
        b=np.arange(3, dtype=">i2"),
    )
    return buffer.getvalue()


def llama2c_bytes() -> bytes:
    return struct.pack("<7i", 4, 3, 1, 2, 1, 2, 2) + bytes(4 * (8 + 4 + 16 + 8 + 8 + 16 + 4 + 36 + 4 + 4))


def gguf_bytes() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    values += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    rows = text("w") + struct.pack("<IQQIQ", 2, 2, 3, 0, 0) + text("q") + struct.pack("<IQIQ", 1, 32, 2, 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + values + rows
    return header + bytes(-len(header) % 32) + bytes(32) + bytes(18)


def flax_bytes() -> bytes:
    def array(shape: bytes, dtype: bytes, data: bytes) -> bytes:
        inner = b"\x93" + bytes([0x90 | len(shape)]) + shape + bytes([0xA0 | len(dtype)]) + dtype
        inner += b"\xc4" + bytes([len(data)]) + data
        return b"\xc7" + bytes([len(inner)]) + b"\x01" + inner

    parts = b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa10\x03\xa6chunks\x82"
    parts += b"\xa10" + array(b"\x02", b"int16", bytes(4)) + b"\xa11" + array(b"\x01", b"int16", bytes(2))
    dense = b"\x82\xa6kernel" + array(b"\x02\x03", b"float32", bytes(24)) + b"\xa4bias" + parts
    return b"\x82\xa5dense" + dense + b"\xa5scale" + array(b"", b"bfloat16", bytes(2))


def keras_bytes() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["bert/dense/kernel:0"] = np.arange(6.0).reshape(2, 3)
        file["bert/dense/bias:0"] = np.ones(3, "f2")
        file["step"] = 3
    return buffer.getvalue()


WHOLE = {
    "model.safetensors": safetensors_bytes(),
    "model.pt": torch_bytes(),
    "model.npz": numpy_bytes(),
    "packed.npz": numpy_bytes(np.savez_compressed),
    "model.bin": llama2c_bytes(),
    "model.gguf": gguf_bytes(),
    "model.msgpack": flax_bytes(),
    "model.h5": keras_bytes(),
}


@pytest.mark.parametrize("name", list(WHOLE))
def test_the_files_that_are_mutated_can_be_read(folder, name):
    (folder / name).write_bytes(WHOLE[name])
    assert open_checkpoint(folder / name).entries


@pytest.mark.parametrize("name", list(WHOLE))
def test_a_mutated_file(folder, name):
    @settings(max_examples=EXAMPLES)
    @given(st.lists(EDITS, min_size=1, max_size=4))
    def check(edits):
        (folder / name).write_bytes(mutated(WHOLE[name], edits))
        survive(folder / name)

    check()


@pytest.mark.parametrize("length", range(0, 1200, 37))
def test_a_torn_file(folder, length):
    for name, data in WHOLE.items():
        (folder / name).write_bytes(data[:length])
        survive(folder / name)


def rezipped(data: bytes, suffix: str, change: Callable[[bytes], bytes]) -> bytes:
    """The zip `data` with its members that end in `suffix` changed, and every CRC right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        for info in source.infolist():
            member = source.read(info)
            target.writestr(info.filename, change(member) if info.filename.endswith(suffix) else member)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools on a mutated text
@settings(max_examples=2 * EXAMPLES)
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_a_mutated_pickle_in_a_sound_zip(folder, edits):
    path = folder / "model.pt"
    path.write_bytes(rezipped(WHOLE["model.pt"], "data.pkl", lambda member: mutated(member, edits)))
    survive(path)


@settings(max_examples=EXAMPLES)
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_a_mutated_array_in_a_sound_zip(folder, edits):
    path = folder / "model.npz"
    path.write_bytes(rezipped(WHOLE["model.npz"], ".npy", lambda member: mutated(member, edits)))
    survive(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=200))
def test_any_bytes_as_the_pickle_of_a_sound_zip(folder, data):
    path = folder / "model.pt"
    path.write_bytes(rezipped(WHOLE["model.pt"], "data.pkl", lambda _: b"\x80\x02" + data))
    survive(path)


@settings(max_examples=EXAMPLES)
@given(st.lists(EDITS, max_size=4))
def test_a_mutated_index(folder, edits):
    sharded = folder / "sharded"
    sharded.mkdir(exist_ok=True)
    (sharded / "config.json").write_text('{"model_type": "bert"}')
    (sharded / "s.safetensors").write_bytes(WHOLE["model.safetensors"])
    index = json.dumps({"metadata": {}, "weight_map": {"a": "s.safetensors", "b": "s.safetensors"}}).encode()
    (sharded / "model.safetensors.index.json").write_bytes(mutated(index, edits))
    survive(sharded)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["F32", "BF16", "a", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
        )
    ),
)


@settings(max_examples=EXAMPLES)
@given(JSON, st.integers(0, 32))
@example({"a": {"dtype": [], "shape": None, "data_offsets": None}}, 0)  # was a TypeError
def test_any_json_as_a_header_of_safetensors(folder, header, size):
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    survive(path)
