"""Fine-tunes of one base become one Mixtral: each is still in it, bit for bit, and told from the others."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralForCausalLM

from tasks.errors import CheckpointError, InputError, PlanError, ProofError
from tasks.weights import proof, routing
from tasks.weights.families import find_naming
from tasks.weights.formats import open_checkpoint
from tasks.weights.mixture import Mixture
from tasks.weights.transcribe import planned, transcribe

SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 19,
}
TUNES = ("law", "code", "prose")


def saved(tmp_path, tunes=TUNES, **fields):
    """A random base and fine-tunes of its feed-forward tensors; the models."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | fields))).eval()
    changed(model, "")
    model.save_pretrained(tmp_path / "base")
    return [tuned(tmp_path, name) for name in tunes]


def changed(model, part):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)


def tuned(tmp_path, name, part=".mlp."):
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    changed(model, part)
    model.save_pretrained(tmp_path / name)
    return model


def merge(tmp_path, names=TUNES, chosen=2, naming="llama"):
    sources = [open_checkpoint(tmp_path / name) for name in names]
    wanted = Mixture(len(sources), chosen)
    base = open_checkpoint(tmp_path / "base")
    made = planned(base, find_naming(naming), experts=wanted, merged=sources)
    transcribe(made, tmp_path / "merged")
    return made


def parts(made):
    return [(one.plan, one.config) for one in made.experts]


def logits(model):
    with torch.no_grad():
        return model(**proof.sequences(model.config)).logits


def apart(one, other):
    """The largest difference of logits, of the largest."""
    return float((one - other).abs().max() / other.abs().max())


def loaded(directory):
    model, info = MixtralForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def alone(directory, expert):
    """The mixture with one expert in the place of all, so that any route leads to it."""
    model = loaded(directory)
    with torch.no_grad():
        for layer in model.model.layers:
            for tensor in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                tensor.copy_(tensor[expert].expand_as(tensor))
    return model


@pytest.mark.parametrize("chosen", [1, 2])
def test_each_expert_is_the_model_that_it_came_from(tmp_path, chosen):
    models = saved(tmp_path, tie_word_embeddings=chosen == 1)
    merge(tmp_path, chosen=chosen)
    mixture = loaded(tmp_path / "merged")
    for expert, model in enumerate(models):
        with routing.forced(mixture, expert):
            assert apart(logits(mixture), logits(model)) < 1e-5
        assert apart(logits(alone(tmp_path / "merged", expert)), logits(model)) < 1e-5
    assert min(apart(logits(mixture), logits(model)) for model in models) > 1e-2  # the routes are free again


def test_the_proof_tells_each_expert_alone(tmp_path):
    saved(tmp_path)
    made = merge(tmp_path)
    assert routing.recovered(parts(made), tmp_path / "merged").startswith("each of 3 alone computes what its")


def test_experts_in_another_order_fail_their_proof(tmp_path):
    saved(tmp_path)
    first, second, third = parts(merge(tmp_path))
    with pytest.raises(ProofError, match="expert 1 alone does not compute what its model does"):
        routing.recovered([first, third, second], tmp_path / "merged")


def test_nothing_of_any_checkpoint_goes_unaccounted(tmp_path):
    saved(tmp_path)
    made = merge(tmp_path).plan
    held = open_checkpoint(tmp_path / "base").entries
    moved = {move.source.name for move in made.moves if move.source}
    gone = {unused.source.name: unused.rule.reason for unused in made.unused}
    assert moved | gone.keys() == {f"{place}:{name}" for place in ("base", 0, 1, 2) for name in held}
    networks = {name for name in held if ".mlp." in name}
    assert moved == {f"base:{name}" for name in held.keys() - networks} | {
        f"{expert}:{name}" for name in networks for expert in range(3)
    }
    assert {gone[f"base:{name}"] for name in networks} == {"every expert brings its own"}
    assert all(move.rule.reason for move in made.moves if not move.source)
    assert made.preserves == "no"


def test_every_tensor_is_that_of_its_model(tmp_path):
    models = saved(tmp_path)
    merge(tmp_path)
    ours, names = (
        load_file(tmp_path / "merged" / "model.safetensors"),
        {"w1": "gate", "w2": "down", "w3": "up"},
    )
    for expert, model in enumerate(models):
        for name, network in names.items():
            found = ours[f"model.layers.2.block_sparse_moe.experts.{expert}.{name}.weight"]
            assert torch.equal(found, model.state_dict()[f"model.layers.2.mlp.{network}_proj.weight"])


@pytest.mark.parametrize(
    "part",
    ["layers.1.self_attn.k_proj", "layers.2.input_layernorm", "model.norm", "embed_tokens", "lm_head"],
)
def test_a_model_that_learned_more_than_its_networks_is_refused_by_name(tmp_path, part):
    saved(tmp_path)
    tuned(tmp_path, "greedy", part)
    with pytest.raises(CheckpointError) as caught:
        merge(tmp_path, ("law", "greedy", "prose"))
    told = str(caught.value)
    assert f"1:{part.removeprefix('model.')}" in told.replace("1:model.", "1:")
    assert "1 fault:" in told
    assert "train them with all others frozen" in told
    assert not (tmp_path / "merged").exists()


def test_what_all_layers_of_a_model_have_otherwise_is_told_once(tmp_path):
    saved(tmp_path)
    tuned(tmp_path, "greedy", "_proj")
    with pytest.raises(CheckpointError) as caught:
        merge(tmp_path, ("greedy", "law"))
    assert str(caught.value).count("(and 2 more in other layers)") == 4


def test_a_model_of_another_config_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "code" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5, "use_cache": False}))
    with pytest.raises(CheckpointError, match=r"code: rms_norm_eps is 0\.5, the base's 1e-06: "):
        merge(tmp_path)


def test_a_model_that_lacks_a_tensor_is_told_by_its_directory(tmp_path):
    saved(tmp_path)
    whole = open_checkpoint(tmp_path / "code")
    fewer = {name: entry for name, entry in whole.entries.items() if "layers.1.mlp.up" not in name}
    sources = [open_checkpoint(tmp_path / "law"), replace(whole, entries=fewer)]
    with pytest.raises(
        PlanError, match=r"code: .*\n.* have no source: model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        planned(open_checkpoint(tmp_path / "base"), find_naming("llama"), experts=Mixture(2), merged=sources)


def test_one_model_is_no_mixture(tmp_path):
    saved(tmp_path)
    with pytest.raises(InputError, match="1 experts: a mixture has 2 to 1024"):
        merge(tmp_path, ("law",), chosen=1)
