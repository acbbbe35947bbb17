"""A Llama becomes a Mixtral: copies compute what the one network did, and nothing of it goes unaccounted."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tasks.errors import CheckpointError, InputError, ProofError
from tasks.weights import language, proof, values
from tasks.weights.families import SPARSE, find_naming
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
OTHERWISE = {  # than Mixtral has by default
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-3,
    "head_dim": 10,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 5,
    "hidden_act": "gelu",
}
LAYER = "model.layers.1.block_sparse_moe"
NETWORK = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def saved(directory, **fields):
    """A random Llama, norms too, also in `directory`."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | fields))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory)
    return model


def converted(tmp_path, experts, naming="llama", source="dense", target="sparse", **options):
    made = planned(open_checkpoint(tmp_path / source), find_naming(naming), experts=experts, **options)
    transcribe(made, tmp_path / target)
    return made


def loaded(directory):
    """As a user loads it."""
    model, info = MixtralForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(**proof.sequences(model.config)).logits


def apart(model, other):
    """The largest difference of their logits, of the largest logit."""
    one = logits(other)
    return float((logits(model) - one).abs().max() / one.abs().max())


def tensors(directory):
    return load_file(directory / "model.safetensors")


# --- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [1, 2, 4])
@pytest.mark.parametrize("fields", [{}, OTHERWISE], ids=["default", "otherwise"])
def test_copies_compute_what_the_dense_model_does(tmp_path, chosen, fields):
    dense = saved(tmp_path / "dense", **fields)
    made = converted(tmp_path, Mixture(4, chosen))
    sparse = loaded(tmp_path / "sparse")
    assert sparse.config.num_experts_per_tok == chosen
    assert apart(sparse, dense) < 1e-5
    prompts = [[3, 14, 15], [9, 2, 6]]
    assert [language._greedy(sparse, p, 12) for p in prompts] == [
        language._greedy(dense, p, 12) for p in prompts
    ]
    assert made.plan.preserves == "exact"


def test_another_expert_computes_something_else(tmp_path):
    dense = saved(tmp_path / "dense")
    converted(tmp_path, Mixture(4, 2))
    sparse = loaded(tmp_path / "sparse")
    with torch.no_grad():
        sparse.model.layers[1].mlp.experts.down_proj[2] *= 1.5
    assert apart(sparse, dense) > 1e-3


def test_the_parameters_are_those_of_the_formula(tmp_path):
    dense = saved(tmp_path / "dense")
    converted(tmp_path, Mixture(5, 2))
    network, router = 3 * 24 * 40, 5 * 24
    assert loaded(tmp_path / "sparse").num_parameters() == dense.num_parameters() + 3 * (4 * network + router)


def test_every_tensor_has_its_place(tmp_path):
    dense = saved(tmp_path / "dense")
    made = converted(tmp_path, Mixture(3)).plan
    held, ours = dense.state_dict(), tensors(tmp_path / "sparse")
    for name, network in NETWORK.items():
        for expert in range(3):
            made_of = held[f"model.layers.1.mlp.{network}.weight"]
            assert torch.equal(ours[f"{LAYER}.experts.{expert}.{name}.weight"], made_of)
    assert not made.unused
    assert {move.source.name for move in made.moves if move.source} == held.keys()
    assert made.parameters()["replicated"] == 3 * 3 * 3 * 24 * 40


def test_routers_are_drawn_with_the_seed_and_a_reason(tmp_path):
    saved(tmp_path / "dense", initializer_range=0.05)
    made = converted(tmp_path, Mixture(3, seed=7)).plan
    name = f"{LAYER}.gate.weight"
    assert made.fresh() == tuple(name.replace("1", str(layer), 1) for layer in range(3))
    row = next(row for row in made.rows() if row["target"] == name)
    assert row["reason"].startswith("normal(0, 0.05) seed 7: a router, whose choice is of no effect")
    expected = values.stream(7, name).normal(0.0, 0.05, (3, 24)).astype("float32")
    assert torch.equal(tensors(tmp_path / "sparse")[name], torch.from_numpy(expected))


def test_transformers_writes_the_names_that_we_write(tmp_path):
    saved(tmp_path / "dense")
    converted(tmp_path, Mixture(3))
    ours = tensors(tmp_path / "sparse")
    loaded(tmp_path / "sparse").save_pretrained(tmp_path / "theirs")
    theirs = tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("fields", [{}, OTHERWISE], ids=["default", "otherwise"])
def test_the_config_is_the_dense_ones_wherever_both_have_a_field(tmp_path, fields):
    saved(tmp_path / "dense", **fields)
    converted(tmp_path, Mixture(4, 3))
    dense, sparse = (
        LlamaConfig.from_pretrained(tmp_path / "dense"),
        MixtralConfig.from_pretrained(tmp_path / "sparse"),
    )
    both = dense.to_dict().keys() & sparse.to_dict().keys() - {"architectures", "model_type"}
    assert {n: sparse.to_dict()[n] for n in both} == {n: dense.to_dict()[n] for n in both}
    found = sparse.num_local_experts, sparse.num_experts_per_tok, sparse.router_aux_loss_coef
    assert (*found, sparse.sliding_window) == (4, 3, 0.01, None)


def test_what_config_json_leaves_out_is_the_dense_models_default(tmp_path):
    """Mixtral's own would be another base, epsilon and length."""
    saved(tmp_path / "dense", max_position_embeddings=2048)
    path = tmp_path / "dense" / "config.json"
    needed = {"model_type", "architectures", "vocab_size", *SIZES} - {"max_position_embeddings"}
    path.write_text(json.dumps({n: v for n, v in json.loads(path.read_text()).items() if n in needed}))
    converted(tmp_path, Mixture(2, 1))
    sparse = loaded(tmp_path / "sparse")
    assert sparse.config.max_position_embeddings == 2048
    assert apart(sparse, LlamaForCausalLM.from_pretrained(tmp_path / "dense")) < 1e-5


def test_old_words_for_the_rotary_base_are_understood(tmp_path):
    saved(tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    told = {n: v for n, v in json.loads(path.read_text()).items() if n != "rope_parameters"}
    old = {"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "sliding_window": 2}
    path.write_text(json.dumps(told | old))
    converted(tmp_path, Mixture(2, 1))
    assert apart(loaded(tmp_path / "sparse"), LlamaForCausalLM.from_pretrained(tmp_path / "dense")) < 1e-5


@pytest.mark.parametrize("naming", ["llama-original", "llama2c"])
def test_another_projects_llama_becomes_a_mixture_on_its_way(tmp_path, naming):
    dense = saved(tmp_path / "dense", rms_norm_eps=1e-5)
    transcribe(
        planned(open_checkpoint(tmp_path / "dense"), find_naming(naming), reverse=True), tmp_path / "foreign"
    )
    made = converted(tmp_path, Mixture(2), naming, source="foreign")
    assert apart(loaded(tmp_path / "sparse"), dense) < 1e-5
    assert made.plan.preserves == "exact"


def test_an_expert_that_is_no_copy_is_found_out(tmp_path, monkeypatch):
    saved(tmp_path / "dense")
    made = planned(open_checkpoint(tmp_path / "dense"), find_naming("llama"), experts=Mixture(2))
    transcribe(made, tmp_path / "sparse")
    path = tmp_path / "sparse" / "model.safetensors"
    held = tensors(tmp_path / "sparse")
    held[f"{LAYER}.experts.1.w2.weight"] *= 1.01
    save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(ProofError, match="differ by up to"):
        proof.preserved(made.whole.plan, made.whole.config, tmp_path / "sparse")


# --- drawn anew ------------------------------------------------------------------------------------


def test_half_of_an_experts_channels_are_drawn_anew_in_all_of_its_tensors(tmp_path):
    dense = saved(tmp_path / "dense", intermediate_size=400).state_dict()
    made = converted(tmp_path, Mixture(3, begin="drop"))
    held, found = tensors(tmp_path / "sparse"), {}
    for expert in range(3):
        for name, network in NETWORK.items():
            was = dense[f"model.layers.1.mlp.{network}.weight"]
            now = held[f"{LAYER}.experts.{expert}.{name}.weight"]
            along = 0 if name == "w2" else 1
            other = (was != now).all(dim=along)
            assert torch.equal(other, (was != now).any(dim=along))
            found.setdefault(expert, []).append(other)
            drawn, gone = (t.movedim(1 - along, 0)[other] for t in (now, was))
            spread = float(gone.std()) / math.sqrt(gone.numel())
            assert abs(drawn.mean() - gone.mean()) < 5 * spread
            assert abs(drawn.std() - gone.std()) < 5 * spread
    for one in found.values():
        assert all(torch.equal(one[0], other) for other in one)
        assert int(one[0].sum()) == 200
    assert not torch.equal(found[0][0], found[1][0])
    assert made.plan.preserves == "no"


def test_what_is_drawn_anew_depends_on_seed_layer_and_expert_alone(tmp_path):
    dense = saved(tmp_path / "dense")
    for target, seed in (("one", 1), ("again", 1), ("other", 2)):
        converted(tmp_path, Mixture(2, begin="drop", seed=seed), target=target)
    one, again, other = (tensors(tmp_path / target) for target in ("one", "again", "other"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    drawn = [name for name in one if "block_sparse_moe" in name]
    assert all(not torch.equal(one[name], other[name]) for name in drawn)
    places = {
        (layer, expert): tuple((was != now).all(dim=1).tolist())
        for layer in range(3)
        for expert in range(2)
        for was in [dense.state_dict()[f"model.layers.{layer}.mlp.gate_proj.weight"]]
        for now in [one[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"]]
    }
    assert len(set(places.values())) == 6
    assert apart(loaded(tmp_path / "one"), dense) > 1e-2


# --- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "options", "message"),
    [
        (Mixture(1, 1), {}, "1 experts: a mixture has 2 to 1024"),
        (Mixture(10**9), {}, "1000000000 experts: a mixture has 2 to 1024"),
        (Mixture(4, 5), {}, "--top-k 5: 1 to 4 of 4 experts can read a token"),
        (Mixture(4, 0), {}, "--top-k 0"),
        (Mixture(2), {"reverse": True}, "on the way to transformers: leave out --reverse"),
        (Mixture(2), {"layers": (0, 1)}, "--layers and --width come before experts"),
        (Mixture(2), {"wanted": "double"}, "--layers and --width come before experts"),
    ],
)
def test_what_is_no_mixture_is_said_in_words(tmp_path, experts, options, message):
    saved(tmp_path / "dense")
    with pytest.raises(InputError, match=message):
        converted(tmp_path, experts, **options)


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_biases_have_no_place_in_a_mixtral(tmp_path, field):
    saved(tmp_path / "dense", **{field: True})
    with pytest.raises(
        CheckpointError, match=f"Mixtral cannot compute this model: {field} is True, not False"
    ):
        converted(tmp_path, Mixture(2))


def test_a_class_without_a_relative_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=37, n_embd=24, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "dense"
    )
    with pytest.raises(
        CheckpointError, match="no class with experts that computes what GPT2LMHeadModel does"
    ):
        converted(tmp_path, Mixture(2), "gpt2")


def test_every_network_of_a_class_is_in_its_table():
    """Else it would stay behind under its old name."""
    names = find_naming("llama").expected({**SIZES, "model_type": "llama"})
    networks = {name.replace(".0.", ".{n}.") for name in names if ".0.mlp." in name}
    assert networks == SPARSE["LlamaForCausalLM"].tensors.keys()
