"""A model of another width: doubled it computes the same, smaller it has the sizes that were asked for."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig, RobertaConfig, T5Config

from tasks.errors import InputError, ProofError
from tasks.weights import families, loading, proof
from tasks.weights.families import AXES, find_naming
from tasks.weights.families.axes import Layout
from tasks.weights.formats import open_checkpoint
from tasks.weights.transcribe import planned, transcribe

LLAMA = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 19,
}
GPT2 = {"vocab_size": 37, "n_positions": 19, "n_embd": 24, "n_layer": 3, "n_head": 4}
BERT = {"hidden_size": 24, "intermediate_size": 44, "num_attention_heads": 4, "num_hidden_layers": 3}
SIZES = {"vocab_size": 37, "max_position_embeddings": 19}
CASES = {  # naming, config, class
    "gpt2": ("gpt2", GPT2Config(**GPT2, n_inner=44), "GPT2LMHeadModel"),
    "gpt2 with a head": ("gpt2", GPT2Config(**GPT2, tie_word_embeddings=False), "GPT2LMHeadModel"),
    "llama": ("llama", LlamaConfig(**LLAMA), "LlamaForCausalLM"),
    "llama of wide heads": (
        "llama",
        LlamaConfig(**LLAMA, head_dim=10, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "LlamaForCausalLM",
    ),
    "bert": ("bert", BertConfig(**BERT, **SIZES), "BertModel"),
    "roberta": ("roberta", RobertaConfig(**BERT, **SIZES), "RobertaModel"),
    "distilbert": (
        "distilbert",
        DistilBertConfig(dim=24, hidden_dim=44, n_heads=4, n_layers=3, **SIZES),
        "DistilBertModel",
    ),
}
FOREIGN = {"nanogpt": "gpt2", "gpt-textbook-split": "gpt2", "llama-original": "llama", "llama2c": "llama"}
every_case = pytest.mark.parametrize("case", CASES)


def saved(directory, case, **fields):
    """The case's random model, biases and norms too, also in `directory`."""
    _, config, architecture = CASES[case]
    torch.manual_seed(3)
    kind = getattr(transformers, architecture)
    model = kind(type(config).from_dict(config.to_dict() | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory)
    return model


def outputs(model):
    """Each (rows, tokens, width or words), a pooler's (rows, width)."""
    with torch.no_grad():
        found = model(**proof.sequences(model.config))
    pooled = getattr(found, "pooler_output", None)
    return [found[0]] + ([] if pooled is None else [pooled])


def proven(made):
    return lambda draft: {"parity": proof.preserved(made.whole.plan, made.whole.config, draft)}


def converted(tmp_path, naming, wanted, source="theirs", **options):
    made = planned(open_checkpoint(tmp_path / source), find_naming(naming), wanted=wanted, **options)
    transcribe(made, tmp_path / "ours", prove=proven(made) if made.plan.preserves == "exact" else None)
    return made


def loaded(directory, case):
    model, found = loading.load(directory, getattr(transformers, CASES[case][2]))
    assert "no tensor missing" in found
    return model


def same(model, wider):
    """Whether `wider` computes what `model` does, an encoder each value twice."""
    for ours, theirs in zip(outputs(wider), outputs(model), strict=True):
        copies = ours.shape[-1] // theirs.shape[-1]
        difference = (ours - torch.cat([theirs] * copies, dim=-1)).abs().max()
        if not difference <= 1e-6 * theirs.abs().max():
            return False
    return True


# --- twice as wide ---------------------------------------------------------------------------------


@every_case
def test_a_doubled_model_computes_what_the_source_does(tmp_path, case):
    model = saved(tmp_path / "theirs", case)
    made = converted(tmp_path, CASES[case][0], "double")
    wider = loaded(tmp_path / "ours", case)
    assert wider.config.hidden_size == 48
    assert wider.config.num_attention_heads == 2 * model.config.num_attention_heads
    assert same(model, wider)
    assert made.plan.preserves == "exact"


@every_case
def test_every_matrix_of_a_doubled_model_is_wider(tmp_path, case):
    saved(tmp_path / "theirs", case)
    converted(tmp_path, CASES[case][0], "double")
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert all(after[name].numel() in (2 * t.numel(), 4 * t.numel()) for name, t in before.items())


@pytest.mark.parametrize("naming", FOREIGN)
@pytest.mark.parametrize("bias", [True, False])
def test_another_projects_model_is_doubled_on_its_way(tmp_path, naming, bias):
    case, family = FOREIGN[naming], find_naming(naming)
    fields = {"n_inner": None, "activation_function": "gelu"} if case == "gpt2" else {"rms_norm_eps": 1e-5}
    model = saved(tmp_path / "theirs", case, **fields)
    if not bias:
        without_biases(model, tmp_path / "theirs")
    transcribe(planned(described(tmp_path / "theirs", bias), family, reverse=True), tmp_path / "foreign")
    made = converted(tmp_path, naming, "double", source="foreign")
    assert same(model, loaded(tmp_path / "ours", case))
    assert made.plan.preserves == "exact"


def without_biases(model, directory):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.zeros_like(parameter) if name.endswith("bias") else parameter)
    model.save_pretrained(directory)


def described(directory, bias):
    held = open_checkpoint(directory)
    return replace(held, config={**held.config, "bias": bias})


@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_inserted_blocks_and_twice_the_width_go_together(tmp_path, case):
    model = saved(tmp_path / "theirs", case)
    made = converted(tmp_path, CASES[case][0], "double", layers=(0, 0, 1, 2, 2))
    assert same(model, loaded(tmp_path / "ours", case))
    assert made.plan.preserves == "exact"


def test_a_layer_left_out_is_told_whatever_the_width(tmp_path):
    saved(tmp_path / "theirs", "gpt2")
    assert converted(tmp_path, "gpt2", "double", layers=(0, 2)).plan.preserves == "no"
    assert loaded(tmp_path / "ours", "gpt2").config.n_layer == 2


CONTRACTIONS = [
    (case, template)
    for case in ("gpt2", "llama", "bert", "distilbert")
    for template, layout in AXES[CASES[case][2]].layouts.items()
    if layout.contracted is not None and template not in ("lm_head.weight", "pooler.dense.weight")
]


@pytest.mark.parametrize(("case", "template"), CONTRACTIONS)
def test_an_axis_that_is_summed_over_and_not_halved_is_found_out(tmp_path, case, template, monkeypatch):
    architecture, axes = CASES[case][2], AXES[CASES[case][2]]
    forgotten = {**axes.layouts, template: Layout(axes.layouts[template].axes)}
    monkeypatch.setitem(families.AXES, architecture, replace(axes, layouts=forgotten))
    saved(tmp_path / "theirs", case)
    with pytest.raises(ProofError, match="differ by up to"):
        converted(tmp_path, CASES[case][0], "double")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


# --- narrower --------------------------------------------------------------------------------------

NARROW = {  # of width 12: heads, heads of keys, inner size
    "gpt2": (2, 2, 22),
    "llama": (3, 1, 22),
    "llama of wide heads": (3, 1, 22),
    "bert": (2, 2, 22),
    "roberta": (2, 2, 22),
    "distilbert": (2, 2, 22),
}


@pytest.mark.parametrize("case", NARROW)
def test_a_smaller_model_loads_and_has_the_sizes_asked_for(tmp_path, case):
    saved(tmp_path / "theirs", case)
    made = converted(tmp_path, CASES[case][0], 12)
    heads, keys, inner = NARROW[case]
    config = loaded(tmp_path / "ours", case).config
    found = getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert (config.hidden_size, config.num_attention_heads, found) == (12, heads, keys)
    assert inner in (getattr(config, name, None) for name in ("n_inner", "intermediate_size", "hidden_dim"))
    assert made.plan.preserves == "approximate"


def test_a_smaller_model_holds_whole_heads_and_the_same_channels_everywhere(tmp_path):
    model = saved(tmp_path / "theirs", "llama").state_dict()
    converted(tmp_path, "llama", 12)
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    channels = list(range(0, 24, 2))
    layer = "model.layers.1."
    assert torch.equal(tensors["model.embed_tokens.weight"], model["model.embed_tokens.weight"][:, channels])
    assert torch.equal(tensors[f"{layer}mlp.up_proj.weight"], model[f"{layer}mlp.up_proj.weight"][::2, ::2])
    for name, rows in (("q", range(12)), ("k", range(4)), ("v", range(4))):
        whole = model[f"{layer}self_attn.{name}_proj.weight"]
        assert torch.equal(tensors[f"{layer}self_attn.{name}_proj.weight"], whole[list(rows)][:, channels])


def test_queries_are_thinned_where_keys_are_too_few_to_halve(tmp_path):
    saved(tmp_path / "theirs", "llama", num_key_value_heads=1)
    converted(tmp_path, "llama", 8)
    config = loaded(tmp_path / "ours", "llama").config
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (8, 2, 1)


def test_a_tied_head_stays_tied_in_a_smaller_model(tmp_path):
    saved(tmp_path / "theirs", "gpt2")
    converted(tmp_path, "gpt2", 12)
    assert "lm_head.weight" not in load_file(tmp_path / "ours" / "model.safetensors")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("case", "wanted", "message"),
    [
        ("gpt2", 13, "width 13 does not keep heads whole, 4 in 24 with 4 of keys: write 12 or 18"),
        ("llama", 20, "width 20 does not keep heads whole, 6 in 24 with 2 of keys: write 16$"),
        ("llama", 10, "write 8 or 12$"),
        ("gpt2", 0, "write 6$"),
        ("gpt2", 5, "write 6$"),
        ("gpt2", 23, "write 18$"),
        ("gpt2", 24, "width 24: the model has 24, and becomes wider by doubling alone, to 48"),
        ("gpt2", 96, "becomes wider by doubling alone, to 48"),
        ("gpt2", -6, "write 6$"),
    ],
)
def test_a_width_that_cannot_be_is_refused_with_the_nearest(tmp_path, case, wanted, message):
    saved(tmp_path / "theirs", case)
    with pytest.raises(InputError, match=message):
        converted(tmp_path, CASES[case][0], wanted)


def test_a_model_of_one_head_has_no_smaller_width(tmp_path):
    saved(tmp_path / "theirs", "gpt2", n_head=1)
    with pytest.raises(InputError, match="none does, so leave out --width"):
        converted(tmp_path, "gpt2", 12)


def test_twice_the_width_may_be_written_as_a_number(tmp_path):
    saved(tmp_path / "theirs", "gpt2")
    assert converted(tmp_path, "gpt2", 48).plan.preserves == "exact"


def test_a_class_that_computes_with_its_width_is_refused(tmp_path):
    config = T5Config(vocab_size=37, d_model=24, d_kv=7, d_ff=40, num_layers=2, num_heads=5)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="the width of T5ForConditionalGeneration cannot be changed"):
        converted(tmp_path, "t5", "double")


def test_a_width_is_not_changed_on_the_way_back(tmp_path):
    saved(tmp_path / "theirs", "gpt2")
    with pytest.raises(InputError, match="convert so first, then --reverse"):
        converted(tmp_path, "nanogpt", "double", reverse=True)
