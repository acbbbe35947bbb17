"""Attacks on the reader of pickles: each would leave a canary, were anything in it carried out."""

import argparse
import collections
import os
import pickle  # noqa: TID251 - the test plays the attacker
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from tasks.errors import CheckpointError
from tasks.weights.formats import inert, open_checkpoint
from tasks.weights.formats.torch_names import NAMES

PROTO2, STOP = b"\x80\x02", b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def attacks(canary: str) -> dict[str, bytes]:
    """One for each instruction by which a pickle can call: each makes the folder `canary`."""
    path, mkdir = text(canary), b"cos\nmkdir\n"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    return {
        "REDUCE": PROTO2 + mkdir + path + b"\x85R" + STOP,
        "STACK_GLOBAL": b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + path + b"\x85R" + STOP,
        "INST": PROTO2 + b"(" + path + b"ios\nmkdir\n" + STOP,
        "OBJ": PROTO2 + b"(" + mkdir + path + b"o" + STOP,
        "NEWOBJ": PROTO2 + mkdir + path + b"\x85\x81" + STOP,
        "NEWOBJ_EX": b"\x80\x04" + mkdir + path + b"\x85}\x92" + STOP,
        "BUILD": PROTO2 + mkdir + path + b"\x85R}" + text("x") + b"K\x01sb" + STOP,
        "inside a dict": PROTO2 + b"}" + text("a") + mkdir + path + b"\x85Rs" + STOP,
        "as a tensor's offset": PROTO2 + rebuild + mkdir + path + b"\x85RK\x04\x85K\x01\x85\x89}tR" + STOP,
        "as a tensor's hooks": PROTO2 + rebuild + b"K\x00K\x04\x85K\x01\x85\x89" + mkdir + path + b"\x85RtR" + STOP,
        "as a storage": PROTO2 + b"(" + text("storage") + mkdir + path + b"\x85R" + text("0") + text("cpu") + b"K\x04tQ" + STOP,
        "as a dict's key": PROTO2 + b"}" + mkdir + path + b"\x85RK\x01s" + STOP,
        "by an allowed module": PROTO2 + b"ctorch._utils\nos.mkdir\n" + path + b"\x85R" + STOP,
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(attacks("")))
def test_no_instruction_runs_anything(zipped, tmp_path, kind):
    canary = tmp_path / "canary"
    data = attacks(str(canary))[kind]
    with pytest.raises(
        CheckpointError, match=r"refers to \S*mkdir, which is not a tensor: nothing was executed"
    ):
        open_checkpoint(zipped({"data.pkl": data, "data/0": bytes(16)}))
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["REDUCE", "STACK_GLOBAL", "INST", "OBJ", "inside a dict"])
def test_the_attacks_work_where_someone_does_unpickle(tmp_path, kind):
    canary = tmp_path / "canary"
    pickle.loads(attacks(str(canary))[kind])
    assert canary.exists(), "else the test before this one shows nothing"


class Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_malicious_checkpoint_of_torch_save_is_refused_by_name(saved, tmp_path, protocol):
    path = saved({"a": torch.ones(2), "b": [{"c": Malicious(tmp_path / "canary")}]}, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"refers to posix.mkdir, which is not a tensor"):
        open_checkpoint(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_foreign_name_is_listed_at_once(saved, protocol):
    arguments = argparse.Namespace(rate=0.1, best=np.float64(3.0), counts=collections.Counter("aab"))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(saved({"model": {"a": torch.ones(2)}, "args": arguments}, pickle_protocol=protocol))
    for name in ("argparse.Namespace", "numpy._core.multiarray.scalar", "collections.Counter"):
        assert f"refers to {name}" in str(caught.value)


def test_a_name_with_control_characters_does_not_reach_the_terminal(zipped):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(zipped({"data.pkl": PROTO2 + b"c\x1b[31mos\nmkdir\n" + STOP}))
    assert "\x1b" not in str(caught.value)


HASHED_FOR_YEARS = PROTO2 + b"}" + b")" + b"q\x00h\x00\x86" * 80 + b"K\x01s" + STOP


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PROTO2 + b"\x82\x01" + STOP, "instruction EXT1 has no place"),
        (PROTO2 + b"\x83\x01\x00" + STOP, "instruction EXT2 has no place"),
        (PROTO2 + b"\x84\x01\x00\x00\x00" + STOP, "instruction EXT4 has no place"),
        (b"\x80\x05\x97" + STOP, "instruction NEXT_BUFFER has no place"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + STOP, "expected 4611686018427387904 bytes"),
        (PROTO2 + b"Px\n" + STOP, "instruction PERSID has no place"),
        (PROTO2 + b"\xff" + STOP, "opcode b'\\\\xff' unknown"),
        (PROTO2 + b"}", "exhausted before seeing STOP"),
        (PROTO2 + b"0" + STOP, "instruction POP has no place"),
        (PROTO2 + b"R" + STOP, "cannot be read"),
        (PROTO2 + b"}}" + STOP, "does not end where its value does"),
        (PROTO2 + b"}" + STOP + b"}", "does not end where its value does"),
        (PROTO2 + b"(}" + STOP, "does not end where its value does"),
        (PROTO2 + b"h\x07" + STOP, "cannot be read"),
        (PROTO2 + b"}K\x01Q" + STOP, "a int stands where a storage should be described"),
        (PROTO2 + b"K\x01)R" + STOP, "it calls a int"),
        (PROTO2 + b"ctorch\nfloat16\n)R" + STOP, "it calls a Name"),
        (PROTO2 + b"ctorch\nSize\nK\x01R" + STOP, "without a tuple of arguments"),
        (PROTO2 + b"ctorch\nSize\nK\x01\x85R" + STOP, "a torch.Size holds no tuple"),
        (PROTO2 + b"ctorch\nSize\n)R" + STOP, "cannot be read"),
        (PROTO2 + b"ctorch\nSize\n)\x81" + STOP, "it makes an object of a Name"),
        (PROTO2 + b"ccollections\nOrderedDict\n]\x85R" + STOP, "as only Python 2 wrote them"),
        (PROTO2 + b"ctorch\nSize\n}b" + STOP, "it sets attributes of a Name"),
        (PROTO2 + b"}}b" + STOP, "it sets attributes of a dict"),
        (PROTO2 + b"}K\x01a" + STOP, "it appends to a dict"),
        (PROTO2 + b"]K\x01K\x01s" + STOP, "it sets an item of a list"),
        (PROTO2 + b"}(K\x01u" + STOP, "cannot be read"),
        (PROTO2 + b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R" + STOP, "a parameter holds no tensor"),
        (HASHED_FOR_YEARS, "it has a dict key of type tuple"),
    ],
)
def test_instructions_that_make_no_sense_are_refused(tmp_path, data, message):
    with pytest.raises(CheckpointError, match=message):
        inert.load(tmp_path / "model.pt", data)


@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_tensor_v3"])
@pytest.mark.parametrize("arguments", [b")", b"(K\x01K\x01))\x89}t", b"(NNNNNNNt", b"(]]]]]]]]]]t"])
def test_a_tensor_without_its_parts_is_refused(tmp_path, name, arguments):
    assert f"torch._utils {name}" in NAMES
    data = PROTO2 + f"ctorch._utils\n{name}\n".encode() + arguments + b"R" + STOP
    with pytest.raises(CheckpointError, match="cannot be read"):
        inert.load(tmp_path / "model.pt", data)


def test_a_bomb_in_the_memo_or_the_instructions_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(inert, "MOST_INSTRUCTIONS", 1000)
    tracemalloc.start()
    try:
        bomb = (
            PROTO2 + b"}r\xf0\xff\xff\xff" + STOP
        )  # C's unpickler makes its memo as large as the number says
        assert inert.load(tmp_path / "model.pt", bomb) == {}
        with pytest.raises(CheckpointError, match="more than 1,000 instructions"):
            inert.load(tmp_path / "model.pt", PROTO2 + b"]" * 100_000 + STOP)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_pickle_longer_than_any_description_of_weights_is_not_read(tmp_path, zipped, monkeypatch):
    monkeypatch.setattr(inert, "LONGEST", 100)
    with pytest.raises(CheckpointError, match="a pickle of 101 bytes; 100 are allowed"):
        inert.load(tmp_path / "model.pt", bytes(101))
    with pytest.raises(CheckpointError, match=r"'archive/data.pkl' has 101 bytes, more than the 100"):
        open_checkpoint(zipped({"data.pkl": bytes(101)}))


@pytest.mark.parametrize(
    "settings",
    [
        b"}" + text("x") + b"]" + b"q\x00(h\x00h\x00e" * 60 + b"s",  # contains itself
        b"}" + text("x") + b")" + b"q\x00h\x00\x86" * 60 + b"s",  # 2**60 empty tuples
        b"}" + text("x") + b"]" * 100 + b"a" * 99 + b"s",
        b"}" + text("x") + b"ctorch\nfloat16\ns",
    ],
)
def test_settings_that_are_too_much_are_left_out(settings, zipped):
    """They are no reason to refuse the weights beside them."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x04\x85K\x01\x85\x89}tR"
    data = (
        PROTO2
        + b"}"
        + text("args")
        + settings
        + b"s"
        + text("model")
        + b"}"
        + text("a")
        + tensor
        + b"ss"
        + STOP
    )
    found = open_checkpoint(zipped({"data.pkl": data, "data/0": bytes(16)}))
    assert (set(found.entries), found.config) == ({"a"}, {})
