"""Laws that hold for every naming: its table is usable both ways, and accounts for every tensor by name."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig, RobertaConfig, T5Config

from tasks.errors import CheckpointError, PlanError
from tasks.weights.families import NAMINGS, find_naming
from tasks.weights.formats import TensorEntry
from tasks.weights.plan import Target, plan
from tasks.weights.rules import check, expand

every_naming = pytest.mark.parametrize("naming", NAMINGS.values(), ids=list(NAMINGS))
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["there", "back"])

SIZES = {"vocab_size": 37, "block_size": 19, "n_layer": 2, "n_head": 4, "n_embd": 24}
PARAMS = {"dim": 24, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 37}
META = {**PARAMS, "multiple_of": 5, "norm_eps": 1e-3}
TINY = {
    "GPT2LMHeadModel": GPT2Config(
        vocab_size=37, n_positions=19, n_embd=24, n_layer=3, n_head=4, activation_function="gelu"
    ),
    "LlamaForCausalLM": LlamaConfig(
        vocab_size=37,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=19,
        rms_norm_eps=1e-5,
    ),
    "T5ForConditionalGeneration": T5Config(
        vocab_size=37,
        d_model=24,
        d_kv=7,
        d_ff=40,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=5,
        relative_attention_num_buckets=11,
        feed_forward_proj="gated-gelu",
    ),
}
BERT = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 3}
TINY |= {
    "BertModel": BertConfig(**BERT, vocab_size=37, max_position_embeddings=19),
    "RobertaModel": RobertaConfig(**BERT, vocab_size=37, max_position_embeddings=19),
    "DistilBertModel": DistilBertConfig(
        dim=24, hidden_dim=40, n_heads=4, n_layers=3, vocab_size=37, max_position_embeddings=19
    ),
}
DEPTHS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")


def tiny(naming, **fields):
    return TINY[naming.architecture].to_dict() | fields


@cache
def state_dict(architecture):
    """Names and shapes of transformers' model, each tensor that it ties once."""
    with torch.device("meta"):
        model = getattr(transformers, architecture)(TINY[architecture])
    ties = set(model.all_tied_weights_keys)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in ties}


def entries(shapes):
    return {name: TensorEntry(name, "F32", shape, Path("x"), 0, 0) for name, shape in shapes.items()}


def explain(naming, held, config, *, reverse):
    expected = {name: Target() for name in naming.expected(config, reverse=reverse)}
    return plan(held, naming.table(config, reverse=reverse), expected)


def held(naming, *, reverse):
    """Entries of a checkpoint that the table takes: transformers' own, or what the table makes of it."""
    ours = entries(state_dict(naming.architecture))
    if reverse:
        return ours
    made = explain(naming, ours, tiny(naming), reverse=True)
    return entries({move.target: move.shape for move in made.moves})


@every_naming
def test_a_table_makes_every_tensor_of_transformers_model(naming):
    made = explain(naming, held(naming, reverse=False), tiny(naming), reverse=False)
    assert {move.target: move.shape for move in made.moves} == state_dict(naming.architecture)


@every_naming
@both_ways
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_table_is_usable_and_each_rule_undoes_its_undoing(naming, reverse, tie, bias):
    config = tiny(naming, tie_word_embeddings=tie, bias=bias)
    check(naming.table(config, reverse=reverse))
    for rule in naming.rules(config):
        assert not rule.lossy
        assert rule.inverse().inverse() == rule


@every_naming
@both_ways
def test_no_two_rules_make_the_same_name(naming, reverse):
    sides = [rule.sources if reverse else rule.targets for rule in naming.rules(tiny(naming))]
    names = [name for side in sides for name in expand(side, naming.numbers(tiny(naming)))]
    assert len(set(names)) == len(names)
    assert set(names) <= set(naming.expected(tiny(naming), reverse=reverse))


@every_naming
@both_ways
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_with_a_wrappers_prefix_are_accepted(naming, reverse, prefix):
    plain = held(naming, reverse=reverse)
    wrapped = {prefix + name: replace(entry, name=prefix + name) for name, entry in plain.items()}
    made, same = (explain(naming, h, tiny(naming), reverse=reverse) for h in (wrapped, plain))
    assert [move.target for move in made.moves] == [move.target for move in same.moves]
    assert {move.reason for move in made.moves} == {f"prefix {prefix}"}


@every_naming
@both_ways
def test_a_tensor_that_is_there_with_and_without_prefix_is_refused(naming, reverse):
    plain = held(naming, reverse=reverse)
    name = next(name for name in plain if "norm" in name.lower() or "ln" in name)
    with pytest.raises(PlanError, match="would be made 2 times"):
        explain(naming, plain | entries({f"module.{name}": plain[name].shape}), tiny(naming), reverse=reverse)


@every_naming
@both_ways
def test_a_layer_too_few_or_too_many_is_named(naming, reverse):
    depth = next(name for name in DEPTHS if name in tiny(naming))
    layers = tiny(naming)[depth]
    found = held(naming, reverse=reverse)
    for wrong_depth, message in ((layers + 1, "have no source: .*3"), (layers - 1, "does not have: .*2")):
        with pytest.raises(PlanError, match=message):
            explain(naming, found, tiny(naming, **{depth: wrong_depth}), reverse=reverse)


@every_naming
@both_ways
def test_each_tensor_that_is_missing_is_named(naming, reverse):
    found = held(naming, reverse=reverse)
    for move in explain(naming, found, tiny(naming), reverse=reverse).moves:
        for gone in move.step.sources:
            left = {name: entry for name, entry in found.items() if name != gone.name}
            with pytest.raises(PlanError) as caught:
                explain(naming, left, tiny(naming), reverse=reverse)
            assert move.target in str(caught.value) or gone.name in str(caught.value)


@every_naming
@both_ways
def test_a_tensor_that_nobody_knows_is_named(naming, reverse):
    extra = entries({"value_head.weight": (1, 24)})
    with pytest.raises(PlanError, match=r"match no rule: value_head\.weight"):
        explain(naming, held(naming, reverse=reverse) | extra, tiny(naming), reverse=reverse)


EXTRAS = {  # naming -> buffers and second names that its checkpoints may hold, then transformers'
    "gpt2": (["transformer.h.0.attn.bias", "h.2.attn.masked_bias", "lm_head.weight"],) * 2,
    "nanogpt": (["transformer.h.0.attn.bias", "_orig_mod.transformer.h.2.attn.bias"], ["lm_head.weight"]),
    "gpt-textbook": (["blocks.0.attn.mask"], ["transformer.h.0.attn.bias", "h.1.attn.masked_bias"]),
    "llama-original": (["rope.freqs"], ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
    "llama2c": (["freqs.cos", "freqs.sin", "layers.1.attention.mask"], ["model.rotary_emb.inv_freq"]),
    "gguf-llama": ([], ["model.rotary_emb.inv_freq"]),
    "t5": (["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"],) * 2,
}


@pytest.mark.parametrize("name", EXTRAS)
@both_ways
def test_buffers_and_second_names_are_dropped_with_a_reason(name, reverse):
    naming, names = find_naming(name), EXTRAS[name][reverse]
    found = held(naming, reverse=reverse) | entries(dict.fromkeys(names, (1,)))
    made = explain(naming, found, tiny(naming), reverse=reverse)
    dropped = {unused.source.name: unused.rule.reason for unused in made.unused}
    assert dropped.keys() >= set(names)
    assert all(dropped.values())
    assert made.preserves == "exact"


@pytest.mark.parametrize("name", [name for name, naming in NAMINGS.items() if naming.base])
def test_transformers_names_without_the_base_prefix_are_accepted(name):
    naming = find_naming(name)
    found = {key.removeprefix(naming.base): entry for key, entry in held(naming, reverse=True).items()}
    bare = {key: replace(entry, name=key) for key, entry in found.items()}
    made = explain(naming, bare, tiny(naming), reverse=True)
    assert {move.target for move in made.moves} == set(naming.expected(tiny(naming), reverse=True))


# --- descriptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("nanogpt", {"model_args": {"n_layer": 2}}, "lacks vocab_size, block_size, n_head, n_embd"),
        ("gpt-textbook", SIZES | {"n_head": 5}, "n_embd 24 does not divide into n_head 5 heads"),
        ("llama-original", {"dim": 24}, "lacks n_layers, n_heads, vocab_size, multiple_of, norm_eps"),
        ("llama-original", META | {"vocab_size": -1}, "number of rows of tok_embeddings.weight"),
        ("llama-original", META | {"use_scaled_rope": True}, "not guessed"),
        (
            "llama2c",
            PARAMS | {"n_kv_heads": 3, "hidden_dim": 40, "seq_len": 19},
            "not into 3 of keys and values",
        ),
        ("llama2c", PARAMS, "lacks hidden_dim, seq_len"),
        ("t5", {}, "lacks num_layers"),
        ("nanogpt", {"model_args": SIZES | {"bias": "false"}}, "bias is 'false', not true or false"),
        ("gpt-textbook", SIZES | {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', not true or"),
        ("gpt-textbook", SIZES | {"bias": 0}, "bias is 0, not true or false"),
        ("llama-original", META | {"use_scaled_rope": "false"}, "use_scaled_rope is 'false', not true or"),
    ],
)
def test_a_description_that_does_not_suffice_is_refused(name, config, message):
    with pytest.raises(CheckpointError, match=message):
        find_naming(name).config(config)


@pytest.mark.parametrize(
    ("name", "fields", "messages"),
    [
        (
            "nanogpt",
            {"activation_function": "gelu_new", "n_inner": 50},
            ["'gelu_new', not 'gelu'", "n_inner is 50"],
        ),
        ("gpt-textbook", {"scale_attn_by_inverse_layer_idx": True}, ["inverse_layer_idx is True, not False"]),
        (
            "llama-original",
            {"head_dim": 8, "attention_bias": True},
            ["head_dim is 8, not 6", "attention_bias"],
        ),
        ("llama-original", {"rope_parameters": {"rope_type": "llama3"}}, ["rope_type is 'llama3'"]),
        ("llama2c", {"rms_norm_eps": 1e-6}, ["rms_norm_eps is 1e-06, not 1e-05"]),
    ],
)
def test_a_model_that_the_other_project_cannot_compute_is_refused(name, fields, messages):
    naming = find_naming(name)
    with pytest.raises(CheckpointError) as caught:
        naming.back(tiny(naming, **fields))
    assert all(message in str(caught.value) for message in messages)


@every_naming
@pytest.mark.parametrize("field", ["tie_word_embeddings", "bias", "attention_bias", "mlp_bias"])
def test_a_text_is_not_taken_for_true_or_false(naming, field):
    config = tiny(naming, **{field: "false"})
    for asked in (naming.theirs.checked, naming.table, naming.expected):
        with pytest.raises(CheckpointError, match=f"{field} is 'false', not true or false"):
            asked(config)


@given(st.integers(1, 400), st.integers(1, 3), st.integers(1, 3000))
def test_any_width_of_the_feed_forward_layer_survives_metas_description(pairs, heads, inner):
    naming = find_naming("llama-original")
    sizes = {"hidden_size": 2 * pairs * heads, "num_attention_heads": heads, "num_key_value_heads": heads}
    config = tiny(naming, **sizes, intermediate_size=inner, head_dim=2 * pairs)
    assert naming.config(naming.back(config))["intermediate_size"] == inner


def test_an_unknown_naming_gets_a_suggestion():
    with pytest.raises(CheckpointError, match=r"no naming is called 'nanogtp'; did you mean 'nanogpt'\?"):
        find_naming("nanogtp")
