import json
import os
import subprocess
import sys

import pytest

from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NAMES = ["model.safetensors", "pytorch_model.bin", "model.pt", "model.gguf", "model.npz", "model.bin"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: fetch it again"),
        (b"1234", "only 4 bytes long"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "run `git lfs pull`"),
        (b"\n <!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (b'{"error": "Repository not found"}', 'is text, not weights: it begins with \'{"error"'),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "is text, not weights"),
        (b"\x80\x04}.........", "is a pickle: opening it would run"),
    ],
)
def test_what_is_no_weights_is_named_for_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"\x93NUMPY\x01\x00" + bytes(100), bytes(100), b"\x89PNG\r\n\x1a\n" + bytes(9)]
)
def test_any_other_file_says_how_it_begins_and_what_is_known(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"begins with b'.*'; known are safetensors"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_file_is_read_by_what_it_holds_whatever_its_name_says(saved, pack, tmp_path):
    import torch

    assert open_checkpoint(saved({"a": torch.ones(2)}, "model.gguf")).format == "torch"
    (tmp_path / "model.ckpt").write_bytes(pack({"a": F32}, bytes(8)))
    assert open_checkpoint(tmp_path / "model.ckpt").format == "safetensors"


def test_a_safetensors_header_of_any_length_is_not_taken_for_something_else(pack, tmp_path):
    """The first bytes are a length: 0x0280 begins like a pickle, 0x227b like JSON."""
    for length in (0x0280, 0x0480, 0x227B, 0x203C):
        text = json.dumps({"a": F32}).encode()
        (tmp_path / "x.safetensors").write_bytes(pack(None, bytes(8), raw=text.ljust(length)))
        assert set(open_checkpoint(tmp_path / "x.safetensors").entries) == {"a"}


def test_a_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is a pipe, socket or device, not a regular file"):
        open_checkpoint(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is a pipe, socket or device"):
        open_checkpoint(tmp_path.__class__("/dev/null"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_directory_or_pipe_where_a_file_is_needed_is_named(tmp_path, name):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name} is a directory where a file is needed"):
        open_checkpoint(tmp_path)
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} is a pipe, socket or device"):
        open_checkpoint(tmp_path)


@pytest.fixture
def outside(tmp_path, pack):
    """A good file, and a directory beside it with a config."""
    (tmp_path / "secret.safetensors").write_bytes(pack({"a": F32}, bytes(8)))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    return tmp_path / "secret.safetensors"


def test_a_link_out_of_the_directory_is_not_followed(outside):
    directory = outside.parent / "model"
    (directory / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="outside the checkpoint's directory, and was not opened"):
        open_checkpoint(directory)


@pytest.mark.parametrize("name", ["config.json", "params.json"])
def test_a_config_that_is_a_link_out_of_the_directory_is_not_followed(outside, name):
    directory = outside.parent / "model"
    outside.rename(directory / "model.safetensors")
    (directory / "config.json").rename(outside.parent / "secret.json")
    (directory / name).symlink_to("../secret.json")
    with pytest.raises(CheckpointError, match=f"'{name}' is a link to .*, outside the checkpoint's"):
        open_checkpoint(directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"'{name}' is a link to .*, outside the checkpoint's"):
        open_checkpoint(directory)


def test_a_config_that_is_a_pipe_is_never_opened(outside):
    directory = outside.parent / "model"
    outside.rename(directory / "model.safetensors")
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")
    for path in (directory, directory / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"config.json is a pipe, socket or device"):
            open_checkpoint(path)


def test_an_index_that_is_an_impostor_is_named(outside):
    directory = outside.parent / "model"
    (directory / "model.safetensors.index.json").write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(CheckpointError, match=r"index.json is a web page"):
        open_checkpoint(directory)


def test_a_shard_that_is_a_link_out_of_the_directory_is_not_followed(outside):
    directory = outside.parent / "model"
    (directory / "a.safetensors").symlink_to("../secret.safetensors")
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "a.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"'a.safetensors' is a link to .*, outside the checkpoint's"):
        open_checkpoint(directory)


def test_the_links_of_the_hub_s_cache_are_followed(outside):
    snapshot = outside.parent / "models--x" / "snapshots" / "0123abcd"
    blobs = outside.parent / "models--x" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    outside.rename(blobs / "4d7a")
    (snapshot / "model.safetensors").symlink_to("../../blobs/4d7a")
    (blobs / "5e8b").write_text('{"model_type": "bert"}')
    (snapshot / "config.json").symlink_to("../../blobs/5e8b")
    assert set(open_checkpoint(snapshot).entries) == {"a"}


def test_a_link_that_leads_nowhere_is_a_missing_file(tmp_path):
    (tmp_path / "model.pt").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "model.pt")


def test_other_files_of_a_directory_are_named_with_the_way_to_read_them(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"to read model.gguf, give the path of that file"):
        open_checkpoint(tmp_path)


def test_the_reader_of_safetensors_imports_no_numpy(tmp_path, pack):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({"a": F32}, bytes(8)))
    code = (
        "import sys; from pathlib import Path; from tasks.weights.formats import open_checkpoint;"
        "open_checkpoint(Path(sys.argv[1])); sys.exit(', '.join({'numpy', 'torch', 'pickle'} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
