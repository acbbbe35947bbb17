"""Some layers of a model, and blocks inserted that add nothing: held against transformers' own models."""

import json
from copy import deepcopy
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, LlamaConfig

from tasks.errors import CheckpointError, InputError, ProofError
from tasks.weights import content, families, proof
from tasks.weights.families import AXES, BLOCKS, NAMINGS, find_blocks, find_naming
from tasks.weights.formats import Checkpoint, TensorEntry, open_checkpoint
from tasks.weights.rules import DROP, Fill, expand, matches, overlap
from tasks.weights.transcribe import planned, transcribe

LLAMA = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 19,
}
GPT2 = {"vocab_size": 37, "n_positions": 19, "n_embd": 24, "n_layer": 4, "n_head": 3}
BERT = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_hidden_layers": 4}
CASES = {  # of four layers, no two sizes equal: naming, config, class, its layers
    "gpt2": ("gpt2", GPT2Config(**GPT2), "GPT2LMHeadModel", "transformer.h"),
    "llama": ("llama", LlamaConfig(**LLAMA), "LlamaForCausalLM", "model.layers"),
    "llama with biases": (
        "llama",
        LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "LlamaForCausalLM",
        "model.layers",
    ),
    "bert": (
        "bert",
        BertConfig(**BERT, vocab_size=37, max_position_embeddings=19),
        "BertModel",
        "encoder.layer",
    ),
}
every_case = pytest.mark.parametrize("case", CASES)
growing = pytest.mark.parametrize("case", [case for case in CASES if case != "bert"])


def saved(directory, case):
    """The case's random model, biases and norms too, also in `directory`; the naming."""
    naming, config, architecture, _ = CASES[case]
    torch.manual_seed(3)
    model = getattr(transformers, architecture)(deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory)
    return model, find_naming(naming)


def outputs(model):
    with torch.no_grad():
        return model(**proof.sequences(model.config))[0]


def converted(tmp_path, naming, layers, **options):
    made = planned(open_checkpoint(tmp_path / "theirs"), naming, layers=layers, **options)
    transcribe(made, tmp_path / "ours")
    return made


def loaded(directory, case):
    model, found = proof.load(directory, getattr(transformers, CASES[case][2]))
    assert "no tensor missing" in found
    return model


@every_case
@pytest.mark.parametrize("layers", [(0, 2), (3,), (3, 1, 0), (0, 1, 0, 1, 2, 3)])
def test_the_result_computes_what_the_source_does_with_these_layers(tmp_path, case, layers):
    model, naming = saved(tmp_path / "theirs", case)
    made = converted(tmp_path, naming, layers)
    parent, _, name = CASES[case][3].rpartition(".")
    blocks = model.get_submodule(CASES[case][3])
    setattr(model.get_submodule(parent), name, torch.nn.ModuleList(blocks[layer] for layer in layers))
    ours = loaded(tmp_path / "ours", case)
    assert ours.config.num_hidden_layers == len(layers)
    model.config.num_hidden_layers, model.config.use_cache = len(layers), False
    assert torch.allclose(outputs(ours), outputs(model), atol=1e-6)
    assert made.plan.preserves == "no"


@every_case
def test_layers_that_are_not_taken_are_dropped_with_a_reason(tmp_path, case):
    _, naming = saved(tmp_path / "theirs", case)
    made = converted(tmp_path, naming, (0, 2))
    place = CASES[case][3]
    dropped = {unused.source.name: unused.rule.reason for unused in made.plan.unused}
    held = open_checkpoint(tmp_path / "theirs").entries
    assert dropped == {
        name: f"layer {layer} is not among those taken"
        for layer in (1, 3)
        for name in held
        if name.startswith(f"{place}.{layer}.")
    }


@growing
@pytest.mark.parametrize("layers", [(0, 0, 1, 1, 2, 2, 3, 3), (0, 1, 1, 1, 2, 3)])
def test_inserted_blocks_leave_the_function_as_it_was(tmp_path, case, layers):
    model, naming = saved(tmp_path / "theirs", case)
    made = converted(tmp_path, naming, layers)
    ours = loaded(tmp_path / "ours", case)
    assert ours.config.num_hidden_layers == len(layers)
    assert (outputs(ours) - outputs(model)).abs().max().item() <= 1e-6
    assert made.plan.preserves == "exact"
    proof.preserved(made.whole.plan, made.whole.config, tmp_path / "ours")


@growing
def test_an_inserted_block_is_a_copy_but_for_what_closes_it(tmp_path, case):
    _, naming = saved(tmp_path / "theirs", case)
    converted(tmp_path, naming, (0, 1, 1, 2, 3))
    tensors, place = load_file(tmp_path / "ours" / "model.safetensors"), CASES[case][3]
    block = {name for name in tensors if name.startswith(f"{place}.2.")}
    zeros = {name for name in block if not tensors[name].any()}
    closing = BLOCKS[CASES[case][2]].closing
    assert zeros == {
        name for name in block if any(matches(template, name) is not None for template in closing)
    }
    assert zeros
    for name in block - zeros:
        assert torch.equal(tensors[name], tensors[name.replace(f"{place}.2.", f"{place}.1.")])


@growing
def test_a_table_that_forgets_a_closing_projection_is_found_out(tmp_path, case, monkeypatch):
    _, naming = saved(tmp_path / "theirs", case)
    blocks = find_blocks(naming.architecture)
    monkeypatch.setitem(families.BLOCKS, naming.architecture, replace(blocks, closing=blocks.closing[:1]))
    made = planned(open_checkpoint(tmp_path / "theirs"), naming, layers=(0, 1, 1, 2, 3))
    assert made.plan.preserves == "exact"
    with pytest.raises(ProofError, match=r"logits differ by up to [0-9.]+, more than"):
        transcribe(
            made,
            tmp_path / "ours",
            prove=lambda draft: {"parity": proof.preserved(made.whole.plan, made.whole.config, draft)},
        )
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_what_is_wrong_in_a_copied_block_is_noticed(tmp_path):
    _, naming = saved(tmp_path / "theirs", "gpt2")
    made = converted(tmp_path, naming, (0, 1, 1, 2, 3))
    path = tmp_path / "ours" / "model.safetensors"
    data = bytearray(path.read_bytes())
    entry = open_checkpoint(path).entries["transformer.h.2.mlp.c_proj.weight"]
    data[entry.start + 3] = 0x3F
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"transformer\.h\.2\.mlp\.c_proj\.weight is not"):
        content.content(made.plan, path)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_are_chosen_on_the_way_back_too(tmp_path, bias):
    _, gpt2 = saved(tmp_path / "source", "gpt2")
    nanogpt, layers = find_naming("nanogpt"), (0, 0, 3)
    config = {"model_args": {"vocab_size": 37, "block_size": 19, "n_embd": 24, "n_layer": 4, "n_head": 3}}
    held = open_checkpoint(tmp_path / "source")
    described = {**held.config, **nanogpt.config(config | {"bias": bias})} | {"bias": bias}
    if not bias:
        held = without_biases(held, tmp_path / "zeros")
    source = replace(held, config=described)
    transcribe(planned(source, nanogpt, reverse=True, layers=layers), tmp_path / "back")
    transcribe(planned(source, nanogpt, reverse=True), tmp_path / "whole")
    again = planned(open_checkpoint(tmp_path / "whole"), nanogpt, layers=layers)
    transcribe(again, tmp_path / "there")
    transcribe(planned(open_checkpoint(tmp_path / "back"), nanogpt), tmp_path / "same")
    there, same = (load_file(tmp_path / name / "model.safetensors") for name in ("there", "same"))
    assert there.keys() == same.keys()
    assert all(torch.equal(tensor, same[name]) for name, tensor in there.items())
    transcribe(planned(source, gpt2, layers=layers), tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in there.items())


def without_biases(source: Checkpoint, directory: Path) -> Checkpoint:
    tensors = load_file(source.directory / "model.safetensors")
    zeros = {n: torch.zeros_like(t) if n.endswith(".bias") else t for n, t in tensors.items()}
    directory.mkdir()
    save_file(zeros, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(dict(source.config)))
    return open_checkpoint(directory)


# --- from names alone -----------------------------------------------------------------------------


def named(naming, config):
    """A checkpoint of names and shapes, without a file."""
    shapes = {name: AXES[naming.architecture].shape(name, config) for name in naming.expected(config)}
    entries = {name: TensorEntry(name, "F32", shape, Path("x"), 0, 0) for name, shape in shapes.items()}
    return Checkpoint(Path("x"), entries, dict(config))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_every_tensor_comes_from_its_layer_or_is_silent(layers):
    naming = find_naming("gpt2")
    made = planned(named(naming, GPT2 | {"model_type": "gpt2"}), naming, layers=layers)
    assert made.config["n_layer"] == len(layers)
    for move in made.plan.moves:
        if (
            bound := matches("transformer.h.{n}.{m:attn.c_proj|mlp.c_proj|ln_1}.weight", move.target)
        ) is None:
            continue
        place = int(bound["n"])
        silent = place > 0 and layers[place - 1] == layers[place] and bound["m"] != "ln_1"
        assert isinstance(move.rule.op, Fill) == silent
        if not silent:
            assert move.source.name == f"transformer.h.{layers[place]}.{bound['m']}.weight"
    gone = {int(unused.source.name.split(".")[2]) for unused in made.plan.unused if unused.rule.op == DROP}
    assert gone == set(range(4)) - set(layers)
    in_order = [layer for layer, _ in groupby(layers)] == [0, 1, 2, 3]
    assert made.plan.preserves == ("exact" if in_order else "no")


@pytest.mark.parametrize(
    "naming", [n for n in NAMINGS.values() if n.architecture in BLOCKS], ids=lambda n: n.name
)
def test_a_rule_makes_closing_projections_alone_or_none(naming):
    """Else what stands beside them in one template would become zeros too."""
    config = {**GPT2, **LLAMA, **BERT, "n_layers": 4, "tie_word_embeddings": True}
    closing = find_blocks(naming.architecture).closing
    found = [
        rule for rule in naming.rules(config) if any(overlap(t, c) for t in rule.targets for c in closing)
    ]
    assert len(found) >= len(closing)
    for name in expand((target for rule in found for target in rule.targets), {"n": range(4)}):
        assert any(matches(template, name) is not None for template in closing)


def test_all_that_speaks_against_a_choice_is_told_at_once():
    naming = find_naming("bert")
    source = named(naming, BERT | {"model_type": "bert"})
    with pytest.raises(InputError) as caught:
        planned(source, naming, layers=(0, 2, 2, 7, -1))
    told = str(caught.value)
    assert "the model has layers 0 to 3, not -1, 7" in told
    assert "layer 2 stands twice in a row: no block of this model can be inserted without effect" in told


def test_no_layers_at_all_are_refused():
    naming = find_naming("gpt2")
    with pytest.raises(InputError, match="no layer is named"):
        planned(named(naming, GPT2), naming, layers=())


def test_attention_that_counts_its_layers_takes_no_inserted_block():
    naming = find_naming("gpt2")
    source = named(naming, GPT2 | {"scale_attn_by_inverse_layer_idx": True})
    with pytest.raises(
        InputError, match="scale_attn_by_inverse_layer_idx makes a block depend on its number"
    ):
        planned(source, naming, layers=(0, 0, 1, 2, 3))
    assert planned(source, naming, layers=(0, 1, 2, 3)).plan.preserves == "exact"
    assert planned(source, naming, layers=(0, 1)).plan.preserves == "no"


def test_a_model_of_two_stacks_is_converted_whole():
    naming = find_naming("t5")
    source = named(naming, {"num_layers": 2})
    with pytest.raises(CheckpointError, match="layers of T5ForConditionalGeneration cannot be chosen"):
        planned(source, naming, layers=(0,))
