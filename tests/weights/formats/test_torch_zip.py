import copy
import io
import json
import shutil
import struct
import zipfile

import pytest
import torch
from torch import nn

from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint, zip_members

KINDS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"]  # fmt: skip


def tensor_bytes(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_is_read_as_torch_wrote_it(saved, bytes_of, protocol):
    state = {kind: (torch.arange(6) % 2).reshape(2, 3).to(getattr(torch, kind)) for kind in KINDS}
    state |= {
        "parameter": nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
    }
    entries = open_checkpoint(saved(state, pickle_protocol=protocol)).entries
    assert list(entries) == list(state)
    for name, entry in entries.items():
        assert entry.shape == tuple(state[name].shape)
        assert bytes_of(entry) == tensor_bytes(state[name])


def test_views_are_taken_where_their_bytes_lie_and_permuted_ones_are_decoded(saved, bytes_of):
    base = torch.randn(6, 7)
    state = {
        "rows": base[2:4],
        "transposed": torch.randn(2, 3).t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "thin": torch.randn(1, 5, 1).transpose(0, 2),
    }
    entries = open_checkpoint(saved(state)).entries
    assert {name for name, entry in entries.items() if entry.decoded} == {"transposed", "channels_last"}
    assert entries["rows"].stop - entries["rows"].start == 2 * 7 * 4
    for name, tensor in state.items():
        assert bytes_of(entries[name]) == tensor_bytes(tensor), name


def test_tied_tensors_are_one_range_under_two_names(saved):
    shared = torch.randn(4)
    one, two = open_checkpoint(saved({"one": shared, "two": shared})).entries.values()
    assert (one.start, one.stop) == (two.start, two.stop)


def test_a_training_script_s_checkpoint_gives_the_model_and_its_settings(saved):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": 5, "best": torch.tensor(1.0),
        "model_args": {"n_layer": 2, "bias": False, "betas": (0.9, 0.95), "vocab_size": None},
    }  # fmt: skip
    found = open_checkpoint(saved(checkpoint))
    assert (found.format, set(found.entries)) == ("torch", {"weight", "bias"})
    assert found.config == {
        "model_args": {"n_layer": 2, "bias": False, "betas": [0.9, 0.95], "vocab_size": None}
    }


def test_several_candidates_need_a_key(saved):
    path = saved({"model": {"a": torch.ones(2)}, "state_dict": {"b": torch.ones(3)}, "epoch": 1})
    with pytest.raises(CheckpointError, match=r"It holds 'model', 'state_dict'; name one as `key`"):
        open_checkpoint(path)
    assert set(open_checkpoint(path, key="state_dict").entries) == {"b"}
    with pytest.raises(CheckpointError, match="'epoch' is no dict of tensors in it"):
        open_checkpoint(path, key="epoch")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"ema": {"a": torch.ones(2)}}, "It holds 'ema'; name one as `key`"),
        ({"epoch": 3}, "holds no dict of tensors"),
        ([torch.ones(2)], "holds a list, not a dict of tensors"),
        (torch.ones(2), "holds a tensor, not a dict of tensors"),
        ({"../a": torch.ones(2)}, "looks like a path"),
        ({"a": torch.ones(1).expand(1000, 1000)}, r"strides \(0, 0\) repeat or skip items"),
        ({"a": torch.ones(4, 4)[:, :2]}, r"strides \(4, 1\) repeat or skip items"),
        (
            {"a": torch.ones(2).to_sparse()},
            "a sparse tensor, which safetensors cannot hold: save it with to_dense",
        ),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a tensor of complex numbers"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, "a tensor of complex numbers"),
        ({"a": torch.complex(torch.ones(2), torch.ones(2)).conj().imag}, "conjugated or negated"),
        ({"a": torch.ones(2, device="meta")}, "a tensor without values"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_no_plain_weights_are_is_refused(saved, value, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(saved(value))


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_tensor_is_refused(saved):
    tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match="a quantised tensor, which safetensors cannot hold"):
        open_checkpoint(saved({"a": tensor}))


def test_a_whole_module_is_refused_with_every_name_and_the_remedy(saved):
    with pytest.raises(CheckpointError, match=r"torch.nn.modules.linear.Linear, a whole module") as caught:
        open_checkpoint(saved(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    assert "torch.nn.modules.container.Sequential" in str(caught.value)
    assert "torch.nn.modules.activation.ReLU" in str(caught.value)
    assert "torch.save(model.state_dict(), …)" in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(2)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_file_of_before_1_6_is_refused_with_a_remedy(saved):
    path = saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"is a pickle.*write it again"):
        open_checkpoint(path)


def test_tensors_that_share_bytes_too_often_are_a_bomb(saved):
    shared = torch.zeros(10_000)
    path = saved({str(number): shared for number in range(100)})
    with pytest.raises(CheckpointError, match="its tensors share bytes until"):
        open_checkpoint(path)


@pytest.fixture
def members(saved):
    """What torch.save writes of one tensor of 4 items, by name, without the root; tests change one of them."""
    with zipfile.ZipFile(saved({"a": torch.arange(4.0)})) as archive:
        return {info.filename.removeprefix("model/"): archive.read(info) for info in archive.infolist()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data/0": bytes(12)}, "storage '0' takes 16 bytes, its record holds 12"),
        ({"data/0": bytes(20)}, "storage '0' takes 16 bytes, its record holds 20"),
        ({"byteorder": b"big"}, "byte order is b'big': save it again on a little-endian machine"),
        ({"sub/data.pkl": b"x"}, "holds 2 pickles named data.pkl, not one"),
    ],
)
def test_records_must_be_what_the_pickle_declares(zipped, members, change, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(zipped(members | change))


def test_a_missing_record_is_named(zipped, members):
    members.pop("data/0")
    with pytest.raises(CheckpointError, match="storage '0' is missing"):
        open_checkpoint(zipped(members))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # offset, shape and stride as they stand in the pickle: K 0, K 4 (tuple), K 1 (tuple)
        (b"K\x00K\x04\x85", b"K\x01K\x04\x85", "it ends at byte 20 of a storage of 16"),
        (b"K\x00K\x04\x85", b"J\xff\xff\xff\xffK\x04\x85", "offset -1 and strides .* must not be negative"),
        (b"K\x00K\x04\x85", b"K\x00J\xff\xff\xff\xff\x85", "negative dimension"),
        (b"K\x00K\x04\x85", b"K\x00\x8a\x08" + bytes(7) + b"\x10\x85", "is beyond anything that exists"),
        (b"K\x01\x85", b"J\xff\xff\xff\xff\x85", "must not be negative"),
        (b"K\x01\x85", b"K\x00\x85", r"strides \(0,\) repeat or skip"),
        (b"K\x00K\x04\x85", b"K\x00K\x04K\x04\x86", "no shape with a stride for each dimension"),
        (b"K\x00K\x04\x85", b"K\x00\x88\x85", "must be whole numbers"),
        (b"FloatStorage", b"FluteStorage", "refers to torch.FluteStorage, which is not a tensor"),
    ],
)
def test_a_tensor_must_lie_within_its_storage(zipped, members, old, new, message):
    data = members["data.pkl"]
    for put in range(40):  # without memo puts the instructions of one tensor stand side by side
        data = data.replace(b"q" + bytes([put]), b"", 1) if put > 8 else data
    assert old in data, "the pickle is not what this test expects"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(zipped(members | {"data.pkl": data.replace(old, new)}))


def test_the_device_that_it_was_saved_from_does_not_matter(zipped, members):
    here = members["data.pkl"]
    there = here.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:3")
    assert there != here
    assert set(open_checkpoint(zipped(members | {"data.pkl": there})).entries) == {"a"}


def test_one_storage_in_two_types_is_refused(saved, zipped):
    path = saved({"a": torch.zeros(4), "b": torch.zeros(4, dtype=torch.int32)})
    with zipfile.ZipFile(path) as archive:
        held = {info.filename.removeprefix("model/"): archive.read(info) for info in archive.infolist()}
    held["data.pkl"] = held["data.pkl"].replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000")
    with pytest.raises(CheckpointError, match="storage '0' is declared in two ways"):
        open_checkpoint(zipped(held))


def test_compressed_members_are_refused(zipped, members):
    with pytest.raises(CheckpointError, match=r"'archive/data/0' is compressed; torch.save\(\) never"):
        open_checkpoint(zipped(members, compression=zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(zipped, members):
    path = zipped(members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(CheckpointError, match="'archive/data/0' stands in it twice"):
        open_checkpoint(path)


def test_a_flipped_bit_is_noticed(saved):
    path = saved({"a": torch.arange(4.0), "b": torch.arange(5.0)})
    entry = open_checkpoint(path).entries["b"]
    data = bytearray(path.read_bytes())
    data[entry.start + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'model/data/1' was changed or torn \(Bad CRC-32"):
        zip_members.check(path)
    with pytest.raises(CheckpointError, match=r"'model/data/1' was changed or torn"):
        open_checkpoint(path)


def central(data: bytearray, name: bytes) -> int:
    """Where the directory at the end tells of the member `name`."""
    return data.rindex(name) - 46


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("local", (6, "<H", 0x1), "and the header before it disagree"),  # flags
        ("local", (8, "<H", 8), "and the header before it disagree"),  # method
        ("local", (14, "<I", 1), "and the header before it disagree"),  # CRC
        ("local", (22, "<I", 15), "and the header before it disagree"),  # size
        ("local", (30, "<B", 90), "and the header before it disagree"),  # first letter of the name
        ("local", (0, "<I", 0), "torn or malformed zip"),  # signature
        ("both", (6, "<H", 0x1), "is encrypted"),
        ("both", (8, "<H", 12), "is packed in a way"),
        ("central", (24, "<I", 15), "is stored, but claims two sizes"),
        ("central", (20, "<I", 2**30), "ends beyond the file"),
        ("central", (42, "<I", 0), "overlaps|disagree"),
    ],
)
def test_a_header_that_lies_is_noticed(zipped, members, place, value, message):
    path = zipped(members)
    data = bytearray(path.read_bytes())
    name = b"archive/data/0"
    offset, kind, number = value
    if place != "central":
        struct.pack_into(kind, data, data.index(name) - 30 + offset, number)
    if place != "local":
        struct.pack_into(kind, data, central(data, name) + offset + (2 if place == "both" else 0), number)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_bytes_before_the_first_member_are_refused(zipped, members):
    path = zipped(members)
    inner = path.read_bytes()
    path.write_bytes(b"PK\x03\x04" + bytes(60) + inner)
    with pytest.raises(CheckpointError, match="there are bytes before its first member"):
        open_checkpoint(path)


@pytest.mark.parametrize("keep", [10, 100, 400, -1])
def test_a_torn_zip_is_refused(saved, keep):
    path = saved({"a": torch.arange(4.0)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="fetch it again"):
        open_checkpoint(path)


def test_a_zip_of_something_else_says_what_it_holds(zipped):
    with pytest.raises(
        CheckpointError, match=r"zip of neither PyTorch nor numpy; it holds word/document.xml"
    ):
        open_checkpoint(zipped({"document.xml": b"<a/>"}, root="word/"))


@pytest.fixture
def directory(saved, tmp_path):
    """A directory as transformers wrote them before safetensors, in two shards."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    saved({"a": torch.ones(2)}, "pytorch_model-00001-of-00002.bin")
    saved({"b": torch.ones(3)}, "pytorch_model-00002-of-00002.bin")
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_shards_of_pickles_become_one_mapping(directory):
    found = open_checkpoint(directory)
    assert (found.format, found.directory, found.config) == ("torch", directory, {"model_type": "bert"})
    assert {name: entry.shape for name, entry in found.entries.items()} == {"a": (2,), "b": (3,)}


def test_the_index_of_pickles_has_the_same_rules(directory):
    index = directory / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace('"b"', '"c"').replace("00002-of-00002", "00003-of-00003"))
    with pytest.raises(CheckpointError, match=r"shard 'pytorch_model-00003-of-00003.bin' is missing"):
        open_checkpoint(directory)


def test_one_pickle_in_a_directory_is_read_and_safetensors_come_first(directory, pack):
    (directory / "pytorch_model.bin.index.json").unlink()
    (directory / "pytorch_model-00001-of-00002.bin").rename(directory / "pytorch_model.bin")
    assert set(open_checkpoint(directory).entries) == {"a"}
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    (directory / "model.safetensors").write_bytes(pack(header, bytes(8)))
    assert (open_checkpoint(directory).format, set(open_checkpoint(directory).entries)) == (
        "safetensors",
        {"x"},
    )


def test_a_single_file_and_an_index_of_pickles_contradict(directory):
    shutil.copyfile(directory / "pytorch_model-00001-of-00002.bin", directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="remove the one that is stale"):
        open_checkpoint(directory)


def test_a_buffer_is_read_whatever_root_its_zip_has(tmp_path, bytes_of):
    buffer = io.BytesIO()
    tensor = torch.randn(3)
    torch.save(copy.deepcopy({"a": tensor}), buffer)
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    assert bytes_of(open_checkpoint(tmp_path / "x.pth").entries["a"]) == tensor_bytes(tensor)
