"""What each family asks of a config, and that a tiny model of every family goes there and back and loads."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig, RobertaConfig, T5Config

from tasks.errors import CheckpointError, PlanError
from tasks.weights import proof
from tasks.weights.families import NAMINGS, find_naming
from tasks.weights.formats import open_checkpoint
from tasks.weights.transcribe import planned, transcribe

every_naming = pytest.mark.parametrize("naming", NAMINGS.values(), ids=list(NAMINGS))

LLAMA = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 19,
    "rms_norm_eps": 1e-5,
}
BERT = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 2}
SIZES = {"vocab_size": 37, "max_position_embeddings": 19}
T5 = {"vocab_size": 37, "d_model": 24, "d_kv": 7, "d_ff": 40, "num_layers": 2, "num_heads": 5}
DISTILBERT = {"dim": 24, "hidden_dim": 40, "n_heads": 4, "n_layers": 2}
TINY = {
    "GPT2LMHeadModel": GPT2Config(
        vocab_size=37, n_positions=19, n_embd=24, n_layer=2, n_head=4, activation_function="gelu"
    ),
    "LlamaForCausalLM": LlamaConfig(**LLAMA),
    "T5ForConditionalGeneration": T5Config(**T5),
    "BertModel": BertConfig(**BERT, **SIZES),
    "RobertaModel": RobertaConfig(**BERT, **SIZES),
    "DistilBertModel": DistilBertConfig(**DISTILBERT, **SIZES),
}
GPT = {"vocab_size": 37, "block_size": 19, "n_layer": 2, "n_head": 4, "n_embd": 24}
PARAMS = {"dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 37}
GGUF = {
    "general.architecture": "llama",
    "llama.context_length": 19,
    "llama.block_count": 2,
    "llama.feed_forward_length": 40,
    "llama.embedding_length": 24,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 37,
}
DESCRIBED = {  # naming -> a config that suffices
    "nanogpt": GPT,
    "gpt-textbook": GPT,
    "llama-original": {**PARAMS, "multiple_of": 5, "norm_eps": 1e-5},
    "llama2c": {**PARAMS, "hidden_dim": 40, "seq_len": 19},
    "gguf-llama": GGUF,
    "gpt2": {"model_type": "gpt2", "n_layer": 2},
    "llama": {"model_type": "llama", **LLAMA},
    "t5": {"model_type": "t5", **T5},
    "bert": {"model_type": "bert", **BERT, **SIZES},
    "roberta": {"model_type": "roberta", **BERT, **SIZES},
    "distilbert": {"model_type": "distilbert", **DISTILBERT, **SIZES},
}


def theirs(naming, **fields):
    return TINY[naming.architecture].to_dict() | fields


def saved(directory, architecture):
    """A random model of transformers' class in `directory`, biases and norms random too."""
    torch.manual_seed(3)
    model = getattr(transformers, architecture)(TINY.get(architecture) or BertConfig(**BERT, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory)
    return open_checkpoint(directory)


# --- every family ----------------------------------------------------------------------------------


@every_naming
def test_a_model_goes_there_and_back_and_computes_what_it_did(tmp_path, naming):
    source = saved(tmp_path / "theirs", naming.architecture)
    transcribe(planned(source, naming, reverse=True), tmp_path / "ours")
    made = planned(open_checkpoint(tmp_path / "ours"), naming)
    transcribe(made, tmp_path / "again")
    assert proof.loads(tmp_path / "again").startswith(naming.architecture)
    proof.logits_agree(tmp_path / "theirs", tmp_path / "again")
    assert made.plan.preserves == "exact"


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_pooler_of_an_encoder_is_kept(tmp_path, name):
    naming = find_naming(name)
    source = saved(tmp_path / "theirs", naming.architecture)
    transcribe(planned(source, naming), tmp_path / "ours")
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert torch.equal(after["pooler.dense.weight"], before["pooler.dense.weight"])
    proof.logits_agree(tmp_path / "theirs", tmp_path / "ours")


def test_an_encoder_without_a_pooler_is_refused_by_name(tmp_path):
    source = saved(tmp_path / "theirs", "BertForMaskedLM")
    with pytest.raises(PlanError, match=r"have no source: pooler\.dense\.weight, pooler\.dense\.bias"):
        planned(source, find_naming("bert"))


# --- the model's type ------------------------------------------------------------------------------


@every_naming
@pytest.mark.parametrize("other", ["granite", "mistral", "smollm3", "mt5"])
def test_a_model_of_another_type_is_refused_on_the_way_back(naming, other):
    config = theirs(naming, model_type=other)
    for act in (naming.back, naming.table, naming.expected):
        with pytest.raises(CheckpointError, match=f"model_type is '{other}', this table is for"):
            act(config)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert", "roberta", "distilbert"])
def test_a_model_of_another_type_is_refused_where_transformers_config_is_read(name):
    with pytest.raises(CheckpointError, match="model_type is 'granite', this table is for"):
        find_naming(name).config(DESCRIBED[name] | {"model_type": "granite"})


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert", "roberta", "distilbert"])
def test_a_config_older_than_model_types_gets_that_of_its_family(name):
    found = find_naming(name).config({k: v for k, v in DESCRIBED[name].items() if k != "model_type"})
    assert found["model_type"] == name


def test_a_mistral_that_attends_to_a_window_is_not_called_exact(tmp_path):
    source = saved(tmp_path, "LlamaForCausalLM")
    source.config.update(model_type="mistral", sliding_window=4)
    with pytest.raises(CheckpointError, match="model_type is 'mistral'"):
        planned(source, find_naming("llama2c"), reverse=True)


# --- sizes -----------------------------------------------------------------------------------------

COUNTS = {  # naming -> fields that are sizes, here or in what `back` is given
    "nanogpt": list(GPT),
    "gpt-textbook": [*GPT, "n_inner"],
    "llama-original": [*PARAMS, "multiple_of", "max_seq_len"],
    "llama2c": [*PARAMS, "hidden_dim", "seq_len"],
    "gguf-llama": [name for name, value in GGUF.items() if type(value) is int],
    "gpt2": ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size"],
    "llama": [name for name in LLAMA if name != "rms_norm_eps"],
    "t5": list(T5),
    "bert": [*BERT, *SIZES],
    "roberta": [*BERT, *SIZES],
    "distilbert": [*DISTILBERT, *SIZES],
}
not_a_size = st.sampled_from(["2", "", 0, -3, 2.0, True, 2**31 + 1, [2], float("nan")])


@pytest.mark.parametrize("name", COUNTS)
@given(data=st.data())
def test_all_sizes_that_are_none_are_named_at_once(name, data):
    wrong = data.draw(st.dictionaries(st.sampled_from(COUNTS[name]), not_a_size, min_size=1))
    with pytest.raises(CheckpointError) as caught:
        find_naming(name).config(DESCRIBED[name] | wrong)
    told = str(caught.value)
    for field, value in wrong.items():
        assert told.count(f"; {field.removeprefix('llama.')} is {value!r}, not a whole number") == 1


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_config_that_suffices_is_taken(name):
    naming = find_naming(name)
    assert naming.expected(naming.config(DESCRIBED[name]))


@every_naming
def test_sizes_that_are_none_are_refused_on_the_way_back(naming):
    for field in naming.theirs.needed:
        for value in ("2", 0, True):
            with pytest.raises(CheckpointError, match=f"{field} is {value!r}, not a whole number"):
                naming.back(theirs(naming, **{field: value}))
        with pytest.raises(CheckpointError, match=f"lacks {field}"):
            naming.expected(theirs(naming, **{field: None}), reverse=True)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama-original", {"norm_eps": "1e-5", "rope_theta": -1}, "norm_eps is '1e-5'.*; rope_theta is -1"),
        ("gpt-textbook", {"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon is inf, not a number"),
    ],
)
def test_a_number_that_is_none_is_refused(name, fields, message):
    with pytest.raises(CheckpointError, match=message):
        find_naming(name).config(DESCRIBED[name] | fields)


@pytest.mark.parametrize("place", ["beside", "within"])
def test_nanogpts_activation_is_found_in_its_arguments_and_beside_them(place):
    told = {"activation_function": "gelu_new"}
    config = {"model_args": GPT, **told} if place == "beside" else {"model_args": GPT | told}
    assert find_naming("nanogpt").config(config)["activation_function"] == "gelu_new"


# --- GGUF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"general.architecture": "qwen2"}, ["general.architecture is 'qwen2': this table is for 'llama'"]),
        ({"general.architecture": None}, ["general.architecture is None"]),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
            ["scaling.type is 'yarn', not 'none'", "scaling.factor is 4.0, not 1.0"],
        ),
        ({"llama.rope.scale_linear": 2.0}, ["scale_linear is 2.0"]),
        ({"llama.rope.dimension_count": 4}, ["dimension_count is 4, not 6"]),
        ({"llama.attention.key_length": 8}, ["value_length is 6, not 8"]),
        ({"tensors": {"output.weight", "rope_freqs.weight"}}, ["rope_freqs.weight scales the rotary"]),
        ({"llama.vocab_size": None}, ["lacks vocab_size"]),
    ],
)
def test_a_gguf_file_that_the_table_has_no_words_for_is_refused(fields, messages):
    with pytest.raises(CheckpointError) as caught:
        find_naming("gguf-llama").config(GGUF | fields)
    assert all(message in str(caught.value) for message in messages)


def test_what_a_gguf_file_leaves_out_is_what_llama_cpp_takes():
    tokens = {"tokenizer.ggml.tokens": ["a"] * 37, "llama.rope.scaling.type": "none"}
    metadata = {name: value for name, value in GGUF.items() if name != "llama.vocab_size"} | tokens
    found = find_naming("gguf-llama").config(metadata)
    assert (found["num_key_value_heads"], found["head_dim"], found["vocab_size"]) == (4, 6, 37)
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("name", ["gguf-llama", "llama2c", "llama-original"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "is 'linear'"),
        ({"attention_bias": True, "mlp_bias": True}, "attention_bias is True.*mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 8}, "head_dim is 8, not 6"),
    ],
)
def test_a_llama_that_the_table_cannot_describe_is_refused_on_the_way_back(name, fields, message):
    naming = find_naming(name)
    with pytest.raises(CheckpointError, match=message):
        naming.back(theirs(naming, **fields))


def test_a_config_older_than_shared_heads_has_a_gguf_description():
    naming = find_naming("gguf-llama")
    later = ("head_dim", "rope_parameters", "num_key_value_heads", "tie_word_embeddings")
    config = {name: value for name, value in theirs(naming).items() if name not in later}
    found = naming.back(config | {"rope_theta": 500.0})
    assert found["llama.rope.dimension_count"] == 6
    assert found["llama.attention.head_count_kv"] == 4
    assert found["llama.rope.freq_base"] == 500.0
    assert naming.expected(config, reverse=True)


def test_a_checkpoint_with_scaled_frequencies_is_not_converted(tmp_path):
    naming = find_naming("gguf-llama")
    transcribe(planned(saved(tmp_path / "theirs", naming.architecture), naming, reverse=True), tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    save_file(load_file(path) | {"rope_freqs.weight": torch.full((3,), 8.0)}, path)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight scales the rotary frequencies"):
        planned(open_checkpoint(tmp_path / "a"), naming)
