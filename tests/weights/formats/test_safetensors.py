import os
import pickle  # noqa: TID251 - the test plays the attacker
import struct
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint
from tasks.weights.formats.header import read_header

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_reads_what_the_formats_own_library_reads(save, tmp_path):
    path = save(tmp_path, "bert") / "model.safetensors"
    entries, tensors = read_header(path), load_file(path)
    assert entries.keys() == tensors.keys()
    for name, entry in entries.items():
        assert entry.shape == tuple(tensors[name].shape)
        assert path.read_bytes()[entry.start : entry.stop] == tensors[name].numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": {**F32, "shape": [3]}}, bytes(8), r"F32 \(3,\) takes 12 bytes, its range holds 8"),
        ({"a": {**F32, "dtype": "F33"}}, bytes(8), "unknown dtype 'F33'"),
        ({"a": {**F32, "dtype": []}}, bytes(8), "its dtype must be a string"),
        ({"a": {**F32, "shape": [1] * 100}}, bytes(8), "a shape of 100 dimensions"),
        ({"a": {**F32, "extra": 1}}, bytes(8), "dtype, shape and data_offsets, and nothing else"),
        ({"a": {**F32, "shape": [True, 2]}}, bytes(8), "must be lists of whole numbers"),
        ({"a": {**F32, "shape": [-1]}}, bytes(8), "must be lists of whole numbers"),
        ({"a": {**F32, "shape": [0, 10**18], "data_offsets": [0, 0]}}, b"", "beyond anything that exists"),
        ({"a": F32, "b": F32}, bytes(8), "'b' overlaps the one before it by 8 bytes"),
        ({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, bytes(20), "4 bytes before tensor 'b'"),
        ({"a": F32}, bytes(9), "1 bytes after the last tensor belong to no tensor"),
        ({"a": F32}, bytes(7), "it is torn: its tensors end at byte"),
        ({"a\x1b[31m": F32}, bytes(8), "control characters"),
        ({"../a": F32}, bytes(8), "looks like a path"),
        ({"": F32}, bytes(8), "1 to 512 characters"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ must map names to strings"),
    ],
)
def test_a_header_must_account_for_every_byte(pack, tmp_path, header, data, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(header, data))
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b' {"a": 1}', r"does not start with '\{'"),
        (b'{"a": {}, "a": {}}', "'a' stands in it twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "'dtype' stands in it twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": \xff}', "not usable JSON"),
        (b'{"a":' * 20000, "not usable JSON"),
    ],
)
def test_a_header_must_be_plain_json(pack, tmp_path, raw, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(None, raw=raw))
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: fetch it again"),
        (b"1234", "only 4 bytes long"),
        (struct.pack("<Q", 2**63) + b"{}", "claim a header of 9,223,372,036,854,775,808 bytes"),
        (struct.pack("<Q", 900) + b"{}", "is torn: its header alone takes 900 bytes"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n",
            r"git-LFS pointer, not the file \(oid sha256:4d7a, 90868376 bytes\): run `git lfs pull`",
        ),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (b"PK\x03\x04" + bytes(60), "is a pickle: opening it would run"),
    ],
)
def test_what_is_no_safetensors_file_is_named_for_what_it_is(tmp_path, content, message):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


class Malicious:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "x.ckpt"])
def test_a_bare_pickle_is_refused_and_nothing_in_it_runs(tmp_path, name):
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / name).write_bytes(pickle.dumps(Malicious(canary)))
    with pytest.raises(CheckpointError, match=r"is a pickle.*refused.*save_pretrained"):
        open_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"is a pickle|to read {name}, give the path of that file"):
        open_checkpoint(tmp_path)
    assert not canary.exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert canary.exists(), "the attack must work where someone does unpickle, or this test shows nothing"


def test_a_pickle_under_a_safetensors_name_is_refused_too(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Malicious(canary)))
    with pytest.raises(CheckpointError, match="is a pickle"):
        open_checkpoint(tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no model.safetensors; it holds nothing"),
        ({"adapter_model.safetensors": "x"}, "an adapter is no checkpoint"),
        ({"model.safetensors": "", "model.safetensors.index.json": ""}, "remove the one that is stale"),
    ],
)
def test_a_directory_without_weights_says_what_it_holds(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_a_missing_directory_and_a_plain_file(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(bytes(8))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_one_file_is_a_checkpoint_with_the_config_beside_it_if_any(pack, tmp_path):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(pack({"a": F32}, bytes(8)))
    assert (open_checkpoint(path).config, open_checkpoint(path).format) == ({}, "safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert open_checkpoint(path).config == {"model_type": "bert"}
    (tmp_path / "config.json").write_text("{broken}")
    with pytest.raises(CheckpointError, match=r"config.json is not usable JSON"):
        open_checkpoint(path)


def test_params_beside_one_file_are_read_where_there_is_no_config(pack, tmp_path):
    path = tmp_path / "consolidated.safetensors"
    path.write_bytes(pack({"a": F32}, bytes(8)))
    (tmp_path / "params.json").write_text('{"dim": 16, "n_layers": 2}')
    assert open_checkpoint(path).config == {"dim": 16, "n_layers": 2}
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert open_checkpoint(path).config == {"model_type": "llama"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "config.json is missing"),
        ("", "config.json is empty: fetch it again"),
        ('{"a": 1e999}', "config.json is not usable JSON: 1e999 is beyond any number"),
        ('{"a": [-1e400]}', "config.json is not usable JSON: -1e400 is beyond any number"),
        ('{"a": NaN}', "config.json is not usable JSON: NaN is not JSON"),
        ('{"a": -Infinity}', "config.json is not usable JSON: -Infinity is not JSON"),
        (r'{"a": ["\ud800"]}', r"config.json is not usable JSON: '\\ud800' is half of a character"),
        (r'{"\udfff": 1}', r"config.json is not usable JSON: '\\udfff' is half of a character"),
        ('{"a": 1, "a": 2}', "config.json is not usable JSON: 'a' stands in it twice"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "run `git lfs pull`"),
        ("<!DOCTYPE html><html>Sign in</html>", "config.json is a web page"),
        (" " * (16 * 2**20 - 1) + "{}", "has 16,777,217 bytes, more than the 16,777,216 that are allowed"),
        ("[1, 2, 3]", "is a JSON list, not an object"),
        ("{not json}", "is not usable JSON"),
    ],
)
def test_the_config_must_say_what_the_tensors_make_up(pack, tmp_path, config, message):
    (tmp_path / "model.safetensors").write_bytes(pack({"a": F32}, bytes(8)))
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("{}", {}),
        ('{"a": 1e308, "b": 0.0}', {"a": 1e308, "b": 0.0}),
        (r'{"\ud83d\ude00": "\u00e9"}', {"😀": "é"}),
        ("{}" + " " * (16 * 2**20 - 2), {}),
    ],
    ids=["shortest", "finite", "escapes", "longest"],
)
def test_a_sound_config_is_taken_as_it_stands(pack, tmp_path, text, config):
    (tmp_path / "model.safetensors").write_bytes(pack({"a": F32}, bytes(8)))
    (tmp_path / "config.json").write_text(text)
    assert open_checkpoint(tmp_path).config == config
    assert open_checkpoint(tmp_path / "model.safetensors").config == config


def shards(directory: Path, pack, index: str) -> Path:
    (directory / "config.json").write_text('{"model_type": "bert"}')
    for name in "ab":
        (directory / f"{name}.safetensors").write_bytes(pack({name: F32}, bytes(8)))
    (directory / "model.safetensors.index.json").write_text(index)
    return directory


def test_shards_become_one_mapping(pack, tmp_path):
    index = '{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
    entries = open_checkpoint(shards(tmp_path, pack, index)).entries
    assert {name: entry.file.name for name, entry in entries.items()} == {
        "a": "a.safetensors",
        "b": "b.safetensors",
    }


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "must map tensor names to file names"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "points outside the checkpoint's directory"),
        ('{"weight_map": {"a": "/etc/a.safetensors"}}', "points outside the checkpoint's directory"),
        (r'{"weight_map": {"a": "..\\a.safetensors"}}', "points outside the checkpoint's directory"),
        ('{"weight_map": {"a": "a.bin"}}', "no .safetensors file and was not opened"),
        ('{"weight_map": {"a": "c.safetensors"}}', "shard 'c.safetensors' is missing"),
        ('{"weight_map": {"z": "a.safetensors"}}', "'z' should be in a.safetensors and is not"),
        ('{"weight_map": {"z": "a.safetensors"}}', "'a' of a.safetensors is not in the index"),
        (r'{"weight_map": {"a": "a\u0000.safetensors"}}', "points outside the checkpoint's directory"),
        (
            '{"weight_map": {"a": "b.safetensors", "b": "a.safetensors"}}',
            "'b' of b.safetensors is said to be in a.safetensors",
        ),
    ],
)
def test_an_index_must_agree_with_its_shards(pack, tmp_path, index, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(shards(tmp_path, pack, index))
