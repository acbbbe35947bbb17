"""Meta's Llama in several files: a forward pass that lets every file compute its own share, as their code
does, agrees with transformers' on the joined model."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tasks.errors import CheckpointError, PlanError
from tasks.weights.families import find_naming
from tasks.weights.formats import open_checkpoint
from tasks.weights.transcribe import planned, transcribe

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 3, 2, 36]])
LAYERS, WIDTH, HEADS, KEYS, WORDS, INNER = 2, 32, 8, 4, 40, 88  # 85 up to a multiple of 8
EPSILON, BASE = 1e-3, 500.0
PARAMS = {
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KEYS,
    "vocab_size": WORDS,
    "multiple_of": 8,
    "norm_eps": EPSILON,
    "rope_theta": BASE,
}
every_division = pytest.mark.parametrize("by", ["width", "vocabulary"])
every_count = pytest.mark.parametrize("count", [2, 4])

# --- as Meta computes ------------------------------------------------------------------------------


def parts(count, by):
    """The tensors of each file, random but for the copies; those of one rank alone tell its share."""
    torch.manual_seed(3)
    size = WIDTH // HEADS
    queries, keys, inner = HEADS * size // count, KEYS * size // count, INNER // count
    words = (WORDS, WIDTH // count) if by == "width" else (WORDS // count, WIDTH)
    shapes = {"tok_embeddings.weight": words, "output.weight": (WORDS // count, WIDTH)}
    copies = {"norm.weight": (WIDTH,), "rope.freqs": (size // 2,)}
    for n in range(LAYERS):
        shapes |= {
            f"layers.{n}.attention.wq.weight": (queries, WIDTH),
            f"layers.{n}.attention.wk.weight": (keys, WIDTH),
            f"layers.{n}.attention.wv.weight": (keys, WIDTH),
            f"layers.{n}.attention.wo.weight": (WIDTH, queries),
            f"layers.{n}.feed_forward.w1.weight": (inner, WIDTH),
            f"layers.{n}.feed_forward.w2.weight": (WIDTH, inner),
            f"layers.{n}.feed_forward.w3.weight": (inner, WIDTH),
        }
        copies |= dict.fromkeys(
            (f"layers.{n}.attention_norm.weight", f"layers.{n}.ffn_norm.weight"), (WIDTH,)
        )
    same = {name: torch.randn(shape) * 0.3 for name, shape in copies.items()}
    own = [{name: torch.randn(shape) * 0.3 for name, shape in shapes.items()} for _ in range(count)]
    return [{**mine, **{name: tensor.clone() for name, tensor in same.items()}} for mine in own]


def turned(x, heads):
    """Two neighbouring numbers of a head are one complex number, turned by its position."""
    batch, tokens, rows = x.shape
    size = rows // heads
    frequencies = 1.0 / BASE ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(tokens).float(), frequencies)
    pairs = torch.view_as_complex(x.reshape(batch, tokens, heads, size // 2, 2))
    found = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    return torch.view_as_real(found).reshape(batch, tokens, heads, size).transpose(1, 2)


def attended(x, layer, heads, keys):
    """What the heads of one rank add, (batch, tokens, width)."""
    batch, tokens, _ = x.shape
    q, k = turned(x @ layer["wq"].T, heads), turned(x @ layer["wk"].T, keys)
    v = (x @ layer["wv"].T).view(batch, tokens, keys, -1).transpose(1, 2)
    k, v = (side.repeat_interleave(heads // keys, dim=1) for side in (k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    future = torch.triu(torch.ones(tokens, tokens, dtype=torch.bool), diagonal=1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
    return mixed.transpose(1, 2).reshape(batch, tokens, -1) @ layer["wo"].T


def logits(ranks, by):
    """(batch, tokens, words): ranks add what RowParallelLinear gives, and put side by side what others give."""
    tables = [rank["tok_embeddings.weight"] for rank in ranks]
    x = torch.cat([t[IDS] for t in tables], -1) if by == "width" else torch.cat(tables)[IDS]
    for n in range(LAYERS):
        layers = [
            {name.split(".")[-2]: tensor for name, tensor in rank.items() if name.startswith(f"layers.{n}.")}
            for rank in ranks
        ]
        h = functional.rms_norm(x, (WIDTH,), layers[0]["attention_norm"], EPSILON)
        x = x + sum(attended(h, own, HEADS // len(ranks), KEYS // len(ranks)) for own in layers)
        h = functional.rms_norm(x, (WIDTH,), layers[0]["ffn_norm"], EPSILON)
        x = x + sum((functional.silu(h @ own["w1"].T) * (h @ own["w3"].T)) @ own["w2"].T for own in layers)
    x = functional.rms_norm(x, (WIDTH,), ranks[0]["norm.weight"], EPSILON)
    return torch.cat([x @ rank["output.weight"].T for rank in ranks], -1)


# --- as it is read ---------------------------------------------------------------------------------


def save(directory, ranks, **params):
    directory.mkdir()
    for number, tensors in enumerate(ranks):
        torch.save(tensors, directory / f"consolidated.{number:02}.pth")
    (directory / "params.json").write_text(json.dumps(PARAMS | params))


def convert(source, target, **options):
    made = planned(open_checkpoint(source), find_naming("llama-original"), **options)
    transcribe(made, target)
    return made


@every_count
@every_division
def test_the_joined_model_computes_what_its_parts_do_together(tmp_path, count, by):
    ranks = parts(count, by)
    save(tmp_path / "theirs", ranks)
    made = convert(tmp_path / "theirs", tmp_path / "ours")
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values()), told
    expected = logits(ranks, by)
    with torch.no_grad():
        assert (model(IDS).logits - expected).abs().max() < 1e-5 < expected.std()
    assert made.plan.preserves == "exact"


@every_count
@every_division
def test_the_parts_come_back_as_one_file(tmp_path, count, by):
    ranks = parts(count, by)
    save(tmp_path / "theirs", ranks)
    convert(tmp_path / "theirs", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", reverse=True)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == ranks[0].keys() - {"rope.freqs"}
    for name, whole in back.items():
        axis = 0 if whole.shape[0] != ranks[0][name].shape[0] else -1
        divided = whole.shape != ranks[0][name].shape
        found = whole.chunk(count, axis) if divided else [whole] * count
        assert all(torch.equal(part, rank[name]) for part, rank in zip(found, ranks, strict=True)), name


def test_some_layers_of_a_model_in_parts_can_be_taken(tmp_path):
    ranks = parts(2, "width")
    save(tmp_path / "theirs", ranks)
    convert(tmp_path / "theirs", tmp_path / "ours", layers=(1, 1))
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    wv = torch.cat([rank["layers.1.attention.wv.weight"] for rank in ranks])
    assert torch.equal(tensors["model.layers.1.self_attn.v_proj.weight"], wv)
    assert not tensors["model.layers.1.self_attn.o_proj.weight"].any()


def test_every_copy_that_differs_is_named_and_nothing_is_written(tmp_path):
    ranks = parts(4, "width")
    ranks[2]["layers.1.ffn_norm.weight"][5] += 1
    ranks[3]["rope.freqs"][1] += 1
    save(tmp_path / "theirs", ranks)
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "theirs", tmp_path / "ours")
    assert "2:layers.1.ffn_norm.weight should be 0:layers.1.ffn_norm.weight" in str(caught.value)
    assert "3:rope.freqs should be 0:rope.freqs" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "tok_embeddings.weight",
            (20, 16),
            r"is \(20, 16\) in each of 2 files: with vocab_size 40 and dim 32",
        ),
        ("layers.0.attention.wo.weight", (16, 32), r"are not of \(16, 16\) along axis 1"),
        ("layers.1.feed_forward.w1.weight", (88, 32), r"are not of \(44, 44\) along axis 0"),
    ],
)
def test_parts_of_another_shape_than_the_params_say_are_refused(tmp_path, name, shape, message):
    ranks = parts(2, "width")
    for rank in ranks:
        rank[name] = torch.zeros(shape)
    save(tmp_path / "theirs", ranks)
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_embeddings_divided_in_two_ways_are_refused(tmp_path):
    ranks = parts(2, "width")
    ranks[1]["tok_embeddings.weight"] = torch.zeros(WORDS // 2, WIDTH)
    save(tmp_path / "theirs", ranks)
    with pytest.raises(PlanError, match=r"0:tok_embeddings\.weight, 1:tok_embeddings\.weight: .*\(20, 32\)"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_sizes_that_do_not_divide_are_named(tmp_path):
    save(tmp_path / "theirs", parts(2, "width"), vocab_size=41, multiple_of=87)
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "theirs", tmp_path / "ours")
    assert "tok_embeddings.weight is (40, 16)" in str(caught.value)
    (tmp_path / "theirs" / "params.json").write_text(json.dumps(PARAMS | {"multiple_of": 87}))
    with pytest.raises(CheckpointError, match=r"equal parts of .*w1\.weight \(87\), .*w2\.weight \(87\)"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_a_family_that_cannot_join_parts_says_so(tmp_path):
    save(tmp_path / "theirs", parts(2, "width"), hidden_dim=INNER, seq_len=19)
    with pytest.raises(CheckpointError, match="in 2 parts, and llama2c has no rules that join them"):
        planned(open_checkpoint(tmp_path / "theirs"), find_naming("llama2c"))


# --- the files -------------------------------------------------------------------------------------


def test_a_file_that_is_missing_is_named(tmp_path):
    save(tmp_path / "theirs", parts(4, "width"))
    (tmp_path / "theirs" / "consolidated.00.pth").unlink()
    (tmp_path / "theirs" / "consolidated.02.pth").unlink()
    with pytest.raises(CheckpointError, match=r"lacks consolidated\.00\.pth, consolidated\.02\.pth"):
        open_checkpoint(tmp_path / "theirs")


def test_the_last_file_missing_leaves_parts_that_do_not_fit(tmp_path):
    save(tmp_path / "theirs", parts(4, "width"))
    (tmp_path / "theirs" / "consolidated.03.pth").unlink()
    with pytest.raises(CheckpointError, match=r"tok_embeddings\.weight is \(40, 8\) in each of 3 files"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_a_tensor_that_one_file_lacks_is_named_with_the_file(tmp_path):
    ranks = parts(2, "width")
    del ranks[1]["norm.weight"], ranks[0]["layers.1.attention.wo.weight"]
    save(tmp_path / "theirs", ranks)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "theirs")
    assert "'norm.weight' is missing in consolidated.01.pth" in str(caught.value)
    assert "'layers.1.attention.wo.weight' is missing in consolidated.00.pth" in str(caught.value)


def test_a_part_that_is_a_link_out_of_the_directory_is_not_followed(tmp_path):
    save(tmp_path / "theirs", parts(2, "width"))
    (tmp_path / "theirs" / "consolidated.01.pth").rename(tmp_path / "secret.pth")
    (tmp_path / "theirs" / "consolidated.01.pth").symlink_to("../secret.pth")
    with pytest.raises(CheckpointError, match=r"'consolidated\.01\.pth' is a link to"):
        open_checkpoint(tmp_path / "theirs")


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.pth", "model.pt"])
def test_one_file_in_a_directory_is_read_with_its_params(tmp_path, name):
    """`consolidated.00.pth` alone holds whole tensors, under their own names."""
    (whole,) = parts(1, "width")
    (tmp_path / "theirs").mkdir()
    torch.save(whole, tmp_path / "theirs" / name)
    (tmp_path / "theirs" / "params.json").write_text(json.dumps(PARAMS))
    found = open_checkpoint(tmp_path / "theirs")
    assert (found.config, found.format, found.entries.keys()) == (PARAMS, "torch", whole.keys())
    convert(tmp_path / "theirs", tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert (model(IDS).logits - logits([whole], "width")).abs().max() < 1e-5


def test_of_two_files_in_a_directory_none_is_chosen(tmp_path):
    for name in ("model.pt", "optimizer.pt"):
        torch.save({"a": torch.ones(2)}, tmp_path / name)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    with pytest.raises(CheckpointError, match=r"to read model\.pt or optimizer\.pt, give the path"):
        open_checkpoint(tmp_path)
