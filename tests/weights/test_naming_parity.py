"""Other projects' models, written out as they compute, give the same logits in transformers after the table,
and come back byte for byte."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, T5Config

from tasks.errors import CheckpointError
from tasks.weights import place
from tasks.weights.families import find_naming
from tasks.weights.formats import open_checkpoint
from tasks.weights.ops import Rotary
from tasks.weights.plan import Target, plan
from tasks.weights.rules import KEEP

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 3, 2, 36]])

# --- other projects' models ------------------------------------------------------------------------


def attend(q, k, v, heads, key_heads):
    """Causal attention, (batch, tokens, rows) each; every key head serves its neighbours."""
    batch, tokens, width = q.shape
    q = q.view(batch, tokens, heads, width // heads).transpose(1, 2)
    k, v = (x.view(batch, tokens, key_heads, width // heads).transpose(1, 2) for x in (k, v))
    k, v = (x.repeat_interleave(heads // key_heads, dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(width // heads)
    future = torch.triu(torch.ones(tokens, tokens, dtype=torch.bool), diagonal=1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
    return mixed.transpose(1, 2).reshape(batch, tokens, width)


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out)."""

    def __init__(self, before, after, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(before, after))
        self.bias = nn.Parameter(torch.empty(after)) if bias else None

    def forward(self, x):
        return x @ self.weight + (0 if self.bias is None else self.bias)


class NanoBlock(nn.Module):
    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.attn.c_proj = nn.Linear(width, width, bias=bias)
        self.mlp.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.mlp.c_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x):
        q, k, v = self.attn.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        x = x + self.attn.c_proj(attend(q, k, v, self.heads, self.heads))
        return x + self.mlp.c_proj(functional.gelu(self.mlp.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    def __init__(self, *, n_layer, n_head, n_embd, block_size, bias, vocab_size, **_):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(vocab_size, n_embd)
        self.transformer.wpe = nn.Embedding(block_size, n_embd)
        self.transformer.h = nn.ModuleList(NanoBlock(n_embd, n_head, bias) for _ in range(n_layer))
        self.transformer.ln_f = nn.LayerNorm(n_embd, bias=bias)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, ids):
        x = self.transformer.wte(ids) + self.transformer.wpe.weight[: ids.shape[1]]
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class TextbookBlock(nn.Module):
    def __init__(self, width, inner, heads, bias, linear, split):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attn, self.mlp = nn.Module(), nn.Module()
        if split:
            self.attn.q, self.attn.k, self.attn.v = (linear(width, width, bias=bias) for _ in range(3))
            self.attn.proj = linear(width, width, bias=bias)
        else:
            self.attn.c_attn = linear(width, 3 * width, bias=bias)
            self.attn.c_proj = linear(width, width, bias=bias)
        self.mlp.fc1, self.mlp.fc2 = linear(width, inner, bias=bias), linear(inner, width, bias=bias)

    def forward(self, x):
        a, h = self.attn, self.ln1(x)
        q, k, v = (a.q(h), a.k(h), a.v(h)) if hasattr(a, "q") else a.c_attn(h).chunk(3, dim=-1)
        out = a.proj if hasattr(a, "q") else a.c_proj
        x = x + out(attend(q, k, v, self.heads, self.heads))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.ln2(x))))


class TextbookGPT(nn.Module):
    def __init__(self, config, linear=nn.Linear, split=False):
        super().__init__()
        width, words, bias = config["n_embd"], config["vocab_size"], config.get("bias", True)
        inner = config.get("n_inner") or 4 * width
        self.tok_emb = nn.Embedding(words, width)
        self.pos_emb = nn.Embedding(config["block_size"], width)
        self.blocks = nn.ModuleList(
            TextbookBlock(width, inner, config["n_head"], bias, linear, split)
            for _ in range(config["n_layer"])
        )
        self.ln_f = nn.LayerNorm(width, bias=bias)
        self.lm_head = nn.Linear(width, words, bias=False)
        if config["tie_word_embeddings"]:
            self.lm_head.weight = self.tok_emb.weight

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def turned(x, heads, base):
    """Rotary positions as Meta's code has them: two neighbouring numbers of a head are one complex number."""
    batch, tokens, rows = x.shape
    size = rows // heads
    frequencies = 1.0 / base ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(tokens).float(), frequencies)
    pairs = torch.view_as_complex(x.reshape(batch, tokens, heads, size // 2, 2))
    found = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    return torch.view_as_real(found).reshape(batch, tokens, rows)


class LlamaBlock(nn.Module):
    def __init__(self, width, inner, heads, key_heads, epsilon, base):
        super().__init__()
        self.heads, self.key_heads, self.base = heads, key_heads, base
        keys = width // heads * key_heads
        self.attention_norm, self.ffn_norm = nn.RMSNorm(width, epsilon), nn.RMSNorm(width, epsilon)
        self.attention, self.feed_forward = nn.Module(), nn.Module()
        sizes = {"wq": (width, width), "wk": (width, keys), "wv": (width, keys), "wo": (width, width)}
        for name, size in sizes.items():
            setattr(self.attention, name, nn.Linear(*size, bias=False))
        for name, size in {"w1": (width, inner), "w2": (inner, width), "w3": (width, inner)}.items():
            setattr(self.feed_forward, name, nn.Linear(*size, bias=False))

    def forward(self, x):
        a, f, h = self.attention, self.feed_forward, self.attention_norm(x)
        q, k = turned(a.wq(h), self.heads, self.base), turned(a.wk(h), self.key_heads, self.base)
        x = x + a.wo(attend(q, k, a.wv(h), self.heads, self.key_heads))
        h = self.ffn_norm(x)
        return x + f.w2(functional.silu(f.w1(h)) * f.w3(h))


class Llama(nn.Module):
    def __init__(self, params, inner, *, shared=False, epsilon=1e-5, base=10000.0):
        super().__init__()
        width, words = params["dim"], params["vocab_size"]
        self.tok_embeddings = nn.Embedding(words, width)
        self.layers = nn.ModuleList(
            LlamaBlock(width, inner, params["n_heads"], params["n_kv_heads"], epsilon, base)
            for _ in range(params["n_layers"])
        )
        self.norm = nn.RMSNorm(width, epsilon)
        if not shared:
            self.output = nn.Linear(width, words, bias=False)

    def forward(self, ids):
        x = self.tok_embeddings(ids)
        for block in self.layers:
            x = block(x)
        head = self.output.weight if hasattr(self, "output") else self.tok_embeddings.weight
        return self.norm(x) @ head.T


# --- cases: no two sizes are equal -----------------------------------------------------------------

SIZES = {"vocab_size": 37, "block_size": 19, "n_layer": 2, "n_head": 4, "n_embd": 24}
MODEL_ARGS = {**SIZES, "dropout": 0.0}
TIED = {**SIZES, "tie_word_embeddings": True}
UNTIED = {**SIZES, "tie_word_embeddings": False, "n_inner": 50, "bias": False}
PARAMS = {"dim": 24, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 37}
META = {**PARAMS, "multiple_of": 5, "norm_eps": 1e-3, "rope_theta": 500.0}  # 64 up to a multiple of 5: 65
RUN_C = {**PARAMS, "hidden_dim": 40, "seq_len": 19}

CASES = {  # name of the case -> naming, its config, its model
    "nanogpt": (
        "nanogpt",
        {"model_args": {**MODEL_ARGS, "bias": True}},
        lambda: NanoGPT(**MODEL_ARGS, bias=True),
    ),
    "nanogpt without biases": (
        "nanogpt",
        {"model_args": {**MODEL_ARGS, "bias": False}},
        lambda: NanoGPT(**MODEL_ARGS, bias=False),
    ),
    "textbook": ("gpt-textbook", TIED, lambda: TextbookGPT(TIED)),
    "textbook, untied, without biases": ("gpt-textbook", UNTIED, lambda: TextbookGPT(UNTIED)),
    "split": ("gpt-textbook-split", TIED, lambda: TextbookGPT(TIED, split=True)),
    "split, untied, without biases": (
        "gpt-textbook-split",
        UNTIED,
        lambda: TextbookGPT(UNTIED, split=True),
    ),
    "conv1d": ("gpt-textbook-conv1d", TIED, lambda: TextbookGPT(TIED, linear=Conv1D)),
    "conv1d, untied, without biases": (
        "gpt-textbook-conv1d",
        UNTIED,
        lambda: TextbookGPT(UNTIED, linear=Conv1D),
    ),
    "llama": ("llama-original", META, lambda: Llama(META, 65, epsilon=1e-3, base=500.0)),
    "llama2.c": ("llama2c", RUN_C, lambda: Llama(RUN_C, 40)),
    "llama2.c, shared": ("llama2c", RUN_C, lambda: Llama(RUN_C, 40, shared=True)),
}
every_case = pytest.mark.parametrize("case", CASES)


def randomise(model):
    """Every parameter random, so that none can be mistaken; the model."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def save(directory, case, **extra):
    """The case's checkpoint in `directory` with `extra` tensors; its naming and logits."""
    name, config, build = CASES[case]
    model = randomise(build())
    directory.mkdir()
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(tensors | extra, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        return find_naming(name), model(IDS)


def convert(source, target, naming, *, reverse=False):
    checkpoint = open_checkpoint(source / "model.safetensors")
    held = {**checkpoint.config, "tensors": frozenset(checkpoint.entries)}
    config = checkpoint.config if reverse else naming.config(held)
    expected = {name: Target() for name in naming.expected(config, reverse=reverse)}
    made = plan(checkpoint.entries, naming.table(config, reverse=reverse), expected)
    described = naming.back(config) if reverse else {**config, "architectures": [naming.architecture]}
    place.write(made, target, described, metadata={})
    return made


def load(directory):
    """transformers' model and its logits; nothing may be missing or too much."""
    model, told = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(told.values()), told
    with torch.no_grad():
        return model, model(IDS).logits


def difference(directory, logits):
    return (load(directory)[1] - logits).abs().max().item()


# --- the same function, the same bytes -------------------------------------------------------------


@every_case
def test_transformers_computes_the_logits_of_the_other_project(tmp_path, case):
    naming, logits = save(tmp_path / "theirs", case)
    made = convert(tmp_path / "theirs", tmp_path / "ours", naming)
    assert difference(tmp_path / "ours", logits) < 1e-5 < logits.std()
    assert made.preserves == "exact"


@every_case
def test_there_and_back_every_tensor_is_the_same_to_the_byte(tmp_path, case):
    naming, _ = save(tmp_path / "theirs", case)
    convert(tmp_path / "theirs", tmp_path / "ours", naming)
    load(tmp_path / "ours")[0].save_pretrained(tmp_path / "saved")  # as transformers writes it after training
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    for name in ("ours", "saved"):
        made = convert(tmp_path / name, tmp_path / f"{name} back", naming, reverse=True)
        after = load_file(tmp_path / f"{name} back" / "model.safetensors")
        assert after.keys() == before.keys()
        assert all(after[key].numpy().tobytes() == tensor.numpy().tobytes() for key, tensor in before.items())
        assert made.preserves == "exact"


@every_case
def test_its_description_comes_back_too(tmp_path, case):
    naming, logits = save(tmp_path / "theirs", case)
    convert(tmp_path / "theirs", tmp_path / "ours", naming)
    convert(tmp_path / "ours", tmp_path / "back", naming, reverse=True)
    convert(tmp_path / "back", tmp_path / "again", naming)
    first, again = ((tmp_path / name / "config.json").read_text() for name in ("ours", "again"))
    assert again == first
    assert difference(tmp_path / "again", logits) < 1e-5


def wrong(naming, **ops):
    """The naming with another op for the rules whose target ends in a name, `__` for a dot."""

    def rules(config):
        return tuple(
            next(
                (replace(rule, op=op) for end, op in ops.items() if end.replace("__", ".") in str(rule)), rule
            )
            for rule in naming.rules(config)
        )

    return replace(naming, rules=rules)


@pytest.mark.parametrize(
    ("case", "ops"),
    [
        ("llama", {"q_proj": KEEP, "k_proj": KEEP}),
        ("llama", {"k_proj": Rotary(1)}),  # one head of keys, not two
        ("nanogpt", {"attn__c_proj": KEEP}),  # square: fits either way
        ("textbook", {"attn__c_proj": KEEP}),
    ],
)
def test_a_wrong_table_that_fits_in_shape_computes_something_else(tmp_path, case, ops):
    naming, logits = save(tmp_path / "theirs", case)
    convert(tmp_path / "theirs", tmp_path / "ours", wrong(naming, **ops))
    assert difference(tmp_path / "ours", logits) > 1e-2


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        ("textbook", {"n_head": 3}),
        ("textbook", {"activation_function": "relu"}),
        ("llama", {"n_heads": 2, "n_kv_heads": 1}),
        ("llama", {"rope_theta": 10000.0}),
    ],
)
def test_a_wrong_config_that_fits_in_shape_computes_something_else(tmp_path, case, fields):
    naming, logits = save(tmp_path / "theirs", case)
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    convert(tmp_path / "theirs", tmp_path / "ours", naming)
    assert difference(tmp_path / "ours", logits) > 1e-3


# --- what is refused -------------------------------------------------------------------------------


def test_a_head_that_is_tied_may_be_absent_and_is_written_again(tmp_path):
    naming, logits = save(tmp_path / "theirs", "nanogpt")
    path = tmp_path / "theirs" / "model.safetensors"
    before = load_file(path)
    save_file({name: tensor for name, tensor in before.items() if name != "lm_head.weight"}, path)
    convert(tmp_path / "theirs", tmp_path / "ours", naming)
    assert difference(tmp_path / "ours", logits) < 1e-5
    convert(tmp_path / "ours", tmp_path / "back", naming, reverse=True)
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert torch.equal(after["lm_head.weight"], before["transformer.wte.weight"])


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_head_that_should_be_tied_and_differs_is_refused(tmp_path, prefix):
    naming, _ = save(tmp_path / "theirs", "nanogpt")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][5, 7] += 1
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight should be .*wte\.weight under a second name"):
        convert(tmp_path / "theirs", tmp_path / "ours", naming)


def test_biases_that_were_trained_are_not_lost(tmp_path):
    naming, _ = save(tmp_path / "theirs", "nanogpt without biases")
    convert(tmp_path / "theirs", tmp_path / "ours", naming)
    path = tmp_path / "ours" / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.c_fc.bias"][5] = 0.25
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.bias: 1 of 96 biases are not zero"):
        convert(tmp_path / "ours", tmp_path / "back", naming, reverse=True)


def test_a_hub_checkpoint_of_gpt2_without_prefix_and_with_masks_becomes_transformers_own(tmp_path):
    config = GPT2Config(vocab_size=37, n_positions=19, n_embd=24, n_layer=3, n_head=4)
    model = randomise(AutoModelForCausalLM.from_config(config))
    config.save_pretrained(tmp_path / "hub")
    tensors = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 19, 19) for layer in range(3)}
    save_file(tensors | masks, tmp_path / "hub" / "model.safetensors")
    convert(tmp_path / "hub", tmp_path / "ours", find_naming("gpt2"))
    with torch.no_grad():
        assert difference(tmp_path / "ours", model(IDS).logits) == 0.0
    written = load_file(tmp_path / "ours" / "model.safetensors").keys()
    assert written == {f"transformer.{name}" for name in tensors}


def test_an_old_checkpoint_of_t5_computes_the_same_without_its_second_names(tmp_path):
    sizes = {"vocab_size": 37, "d_model": 24, "d_kv": 7, "d_ff": 40, "num_layers": 3, "num_heads": 5}
    config = T5Config(**sizes, num_decoder_layers=2, relative_attention_num_buckets=11)
    model = randomise(AutoModelForSeq2SeqLM.from_config(config))
    config.save_pretrained(tmp_path / "old")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    second = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    unread = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(11, 5)}
    save_file(tensors | unread, tmp_path / "old" / "model.safetensors")
    convert(tmp_path / "old", tmp_path / "ours", find_naming("t5"))
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == tensors.keys() - second
    found, told = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values())
    with torch.no_grad():
        ours, theirs = (m(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits for m in (found, model))
    assert torch.equal(ours, theirs)
