import struct

import numpy as np
import pytest

from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint

SIZES = {
    "dim": 12,
    "hidden_dim": 20,
    "n_layers": 2,
    "n_heads": 6,
    "n_kv_heads": 3,
    "vocab_size": 7,
    "seq_len": 5,
}
LAYER = {
    "attention_norm": (12,), "attention.wq": (12, 12), "attention.wk": (6, 12), "attention.wv": (6, 12),
    "attention.wo": (12, 12), "ffn_norm": (12,), "feed_forward.w1": (20, 12), "feed_forward.w2": (12, 20),
    "feed_forward.w3": (20, 12),
}  # fmt: skip


def export(*, shared: bool = True, **sizes: int) -> tuple[bytes, dict[str, np.ndarray]]:
    """What legacy_export of llama2.c writes: header, then tensor by tensor, of each all layers."""
    shapes = {"tok_embeddings.weight": (7, 12)}
    for name, shape in LAYER.items():
        shapes |= {f"layers.{layer}.{name}.weight": shape for layer in range(2)}
    shapes |= {"norm.weight": (12,), "freqs.cos": (5, 1), "freqs.sin": (5, 1)}
    shapes |= {} if shared else {"output.weight": (7, 12)}
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    header = SIZES | {"vocab_size": 7 if shared else -7} | sizes
    return struct.pack("<7i", *header.values()) + b"".join(t.tobytes() for t in tensors.values()), tensors


@pytest.mark.parametrize("shared", [True, False])
def test_every_tensor_is_found_layer_by_layer(tmp_path, bytes_of, shared):
    data, tensors = export(shared=shared)
    (tmp_path / "stories.bin").write_bytes(data)
    found = open_checkpoint(tmp_path / "stories.bin")
    assert (found.format, found.config) == ("llama2.c", SIZES | {"shared": shared})
    assert list(found.entries) == list(tensors)
    for name, tensor in tensors.items():
        assert (found.entries[name].shape, found.entries[name].dtype) == (tensor.shape, "F32")
        assert bytes_of(found.entries[name]) == tensor.tobytes()


def test_a_config_beside_it_does_not_override_its_sizes(tmp_path):
    (tmp_path / "stories.bin").write_bytes(export()[0])
    (tmp_path / "config.json").write_text('{"dim": 999}')
    assert open_checkpoint(tmp_path / "stories.bin").config == SIZES | {"shared": True}


@pytest.mark.parametrize("change", [-4, 4])
def test_sizes_must_account_for_every_byte(tmp_path, change):
    data, _ = export()
    (tmp_path / "model.bin").write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(
        CheckpointError, match=f"its header tells of {len(data):,} bytes, the file has {len(data) + change:,}"
    ):
        open_checkpoint(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "sizes",
    [{"dim": 0}, {"n_layers": -1}, {"n_layers": 2000}, {"n_heads": 5}, {"n_kv_heads": 4}, {"vocab_size": 0}],
)
def test_numbers_that_describe_no_model_make_it_an_unknown_file(tmp_path, sizes):
    (tmp_path / "model.bin").write_bytes(export(**sizes)[0])
    with pytest.raises(CheckpointError, match="no checkpoint that can be read: it begins with"):
        open_checkpoint(tmp_path / "model.bin")


def test_a_newer_version_is_named(tmp_path):
    (tmp_path / "model.bin").write_bytes(struct.pack("<Ii", 0x616B3432, 1) + bytes(248))
    with pytest.raises(
        CheckpointError, match=r"not a llama2.c file of version 0: write it with `export.py --version 0`"
    ):
        open_checkpoint(tmp_path / "model.bin")


def test_the_largest_numbers_take_no_time_and_no_memory(tmp_path):
    largest = 2**31 - 2
    (tmp_path / "model.bin").write_bytes(struct.pack("<7i", largest, largest, 1024, 1, 1, largest, largest))
    with pytest.raises(CheckpointError, match="the file has 28"):
        open_checkpoint(tmp_path / "model.bin")
