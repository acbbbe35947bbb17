import io
import os
import zipfile

import numpy as np
import pytest

from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint

ARRAYS = {
    "matrix": np.arange(6, dtype="<f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(24, dtype="<f8").reshape(2, 3, 4)),
    "big_endian": np.arange(5, dtype=">i4"),
    "scalar": np.array(3, "<i8"),
    "empty": np.zeros((0, 4), "<f2"),
    "flags": np.array([True, False]),
    "params/dense/kernel": np.ones((2, 2), "<u2"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_is_read_as_numpy_wrote_it(tmp_path, bytes_of, save):
    save(tmp_path / "model.npz", **ARRAYS)
    found = open_checkpoint(tmp_path / "model.npz")
    assert (found.format, found.config, list(found.entries)) == ("numpy", {}, list(ARRAYS))
    for name, entry in found.entries.items():
        array = ARRAYS[name]
        assert entry.shape == array.shape
        assert bytes_of(entry) == array.astype(array.dtype.newbyteorder("<")).tobytes(), name


def test_only_what_is_not_stored_plainly_is_decoded(tmp_path):
    np.savez(tmp_path / "model.npz", **ARRAYS)
    decoded = {
        name for name, entry in open_checkpoint(tmp_path / "model.npz").entries.items() if entry.decoded
    }
    assert decoded == {"fortran", "big_endian"}


class Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_an_array_of_objects_is_refused_and_nothing_in_it_runs(tmp_path):
    objects = np.array([Malicious(tmp_path / "canary")])
    np.savez(tmp_path / "model.npz", a=np.ones(2), b=objects)
    with pytest.raises(CheckpointError, match=r"array 'b.npy': it holds Python objects, which are pickles"):
        open_checkpoint(tmp_path / "model.npz")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["text"]), "items of type '<U4' are no numbers"),
        (np.ones(2, "c8"), "items of type '<c8' are no numbers"),
        (np.ones(2, [("a", "f4")]), "are no numbers"),
        (np.array(["2020"], "M8[Y]"), "are no numbers"),
        (np.ones(2, np.longdouble), "are no numbers"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(tmp_path, array, message):
    np.savez(tmp_path / "model.npz", a=array)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.npz")


def array_bytes(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + data


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.npy", array_bytes(HEADER % "(3,)", bytes(8)), r"F32 \(3,\) takes 12 bytes, it holds 8"),
        ("a.npy", array_bytes(HEADER % "(1,)", bytes(8)), r"F32 \(1,\) takes 4 bytes, it holds 8"),
        ("a.npy", array_bytes(HEADER % "(-1,)", bytes(8)), "negative dimension"),
        ("a.npy", array_bytes(HEADER % "(0, 10**18)"), "its header is not a plain dict"),
        ("a.npy", array_bytes(HEADER % "(0, 1000000000000000000)"), "beyond anything that exists"),
        ("a.npy", array_bytes(HEADER % "3"), "its shape must be a tuple of whole numbers"),
        ("a.npy", array_bytes("{'descr': " + "(" * 9000), "its header is not a plain dict"),
        ("a.npy", array_bytes("{'descr': " + "-" * 9000), "its header is not a plain dict"),
        ("a.npy", array_bytes(" " * 10_001), "its header has 10,001 bytes; 10,000 are allowed"),
        ("a.npy", array_bytes("{'shape': (2,), 'descr': '<f4'}", bytes(8)), "and nothing else"),
        (
            "a.npy",
            array_bytes(HEADER.replace("False", "0") % "(2,)", bytes(8)),
            "its fortran_order true or false",
        ),
        ("a.npy", array_bytes("[1]"), "and nothing else"),
        ("a.npy", array_bytes(HEADER % "(2,)", bytes(8), b"\x03\x00"), "no array of version 1.0 or 2.0"),
        ("a.npy", array_bytes(HEADER % "(2,)", bytes(8), b"\x09\x00"), "no array of version"),
        ("a.npy", b"\x93NUMPY", "it is torn in its header"),
        ("a.npy", b"no array", "no array of version"),
        ("../a.npy", array_bytes(HEADER % "(2,)", bytes(8)), "looks like a path"),
    ],
)
def test_a_header_must_account_for_its_member(zipped, name, data, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(zipped({"ok.npy": array_bytes(HEADER % "(2,)", bytes(8)), name: data}, root=""))


def test_all_faults_are_listed_at_once(zipped):
    with pytest.raises(CheckpointError, match=r"(?s)'a.npy'.*'note.txt': it is no .npy file"):
        open_checkpoint(zipped({"a.npy": b"no array", "note.txt": b"x"}, root=""))


def test_a_bomb_is_refused_before_it_is_unpacked(zipped):
    zeros = array_bytes(HEADER % "(8388608,)") + bytes(2**25)
    with pytest.raises(CheckpointError, match=r"its [\d,]+ bytes unpack to 33,554,\d+, which no weights do"):
        open_checkpoint(zipped({"a.npy": zeros}, root="", compression=zipfile.ZIP_DEFLATED))


def test_a_file_that_changes_after_it_was_opened_is_noticed(tmp_path):
    path = tmp_path / "model.npz"
    np.savez_compressed(path, a=np.ones(100))
    entry = open_checkpoint(path).entries["a"]
    np.savez_compressed(path, b=np.ones(100))
    with pytest.raises(CheckpointError, match=r"changed while 'a.npy' was read"):
        entry.decoded()


def test_a_flipped_bit_is_noticed_packed_or_not(tmp_path):
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, a=np.random.default_rng(0).normal(size=100))
        data = bytearray(buffer.getvalue())
        data[len(data) // 2] ^= 4
        (tmp_path / "model.npz").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"'a.npy' was changed or torn"):
            open_checkpoint(tmp_path / "model.npz")
