"""`--family transformers`, as a person types it."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from flows import cli
from tasks.errors import RegraftError

SIZES = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 3, "max_position_embeddings": 33,
}  # fmt: skip


def regraft(*words, code=0):
    done = CliRunner().invoke(cli.app, list(map(str, words)), env={"COLUMNS": "120"})
    assert done.exit_code == code, (done.output, done.exception)
    assert code == 0 or isinstance(done.exception, RegraftError), done.exception
    return done.output if code == 0 else str(done.exception)


@pytest.fixture
def old(tmp_path):
    torch.manual_seed(3)
    MixtralForCausalLM(MixtralConfig(**SIZES)).save_pretrained(tmp_path / "old")
    return tmp_path / "old"


def test_experts_saved_one_by_one_are_stacked_and_taken_apart_again(old, tmp_path):
    told = regraft("plan-weights", old, "--family", "transformers")
    assert "order(6 tensors), stack(6), reshape((6, 40, 24), (3, 80, 24))" in told
    assert "and 0.0 kB of memory" in told
    told = regraft("convert", old, tmp_path / "new", "--family", "transformers")
    assert "load: MixtralForCausalLM: no tensor missing, unexpected or of another shape" in told
    told = regraft("convert", tmp_path / "new", tmp_path / "back", "--family", "transformers", "--reverse")
    assert "shapes: MixtralForCausalLM of this config" in told
    before, after = (load_file(folder / "model.safetensors") for folder in (old, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("option", [("--layers", "0"), ("--width", "double"), ("--experts", "2")])
def test_layers_widths_and_experts_need_a_table_of_ours(old, option):
    told = regraft("plan-weights", old, "--family", "transformers", *option, code=1)
    assert "convert with --family transformers first" in told


def test_a_family_that_is_misspelt_is_told(old):
    assert "did you mean 'transformers'?" in regraft("plan-weights", old, "--family", "transformer", code=1)
