"""The shapes that a config demands, told without torch: held against transformers' own models."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig, RobertaConfig, T5Config

from tasks.errors import PlanError
from tasks.weights.families import AXES, BLOCKS, NAMINGS, find_naming
from tasks.weights.formats import Checkpoint, TensorEntry
from tasks.weights.transcribe import planned

REPOSITORY = Path(__file__).parents[2]
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
T5 = {
    "vocab_size": 37,
    "d_model": 24,
    "d_kv": 7,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 5,
    "relative_attention_num_buckets": 11,
}
TINY = {
    "GPT2LMHeadModel": GPT2Config(
        vocab_size=37, n_positions=19, n_embd=24, n_layer=2, n_head=4, activation_function="gelu"
    ),
    "LlamaForCausalLM": LlamaConfig(**LLAMA),
    "T5ForConditionalGeneration": T5Config(**T5),
    "BertModel": BertConfig(**BERT, **SIZES, type_vocab_size=3),
    "RobertaModel": RobertaConfig(**BERT, **SIZES, type_vocab_size=3),
    "DistilBertModel": DistilBertConfig(dim=24, hidden_dim=40, n_heads=4, n_layers=2, **SIZES),
}
OTHERS = [
    ("GPT2LMHeadModel", GPT2Config(n_inner=40, n_embd=24, n_head=4, n_layer=2, tie_word_embeddings=False)),
    (
        "LlamaForCausalLM",
        LlamaConfig(**LLAMA, head_dim=10, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    ),
    ("T5ForConditionalGeneration", T5Config(**T5, feed_forward_proj="gated-gelu", num_decoder_layers=1)),
]
every_class = pytest.mark.parametrize("architecture", AXES)
every_naming = pytest.mark.parametrize("naming", NAMINGS.values(), ids=list(NAMINGS))


def shapes(architecture, config):
    """Of transformers' model, whose weights are not made."""
    with torch.device("meta"):
        model = getattr(transformers, architecture)(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("architecture", "config"), [*TINY.items(), *OTHERS])
def test_every_tensor_has_the_shape_that_transformers_gives_it(architecture, config):
    expected = shapes(architecture, config)
    assert {name: AXES[architecture].shape(name, config.to_dict()) for name in expected} == expected


@every_class
def test_what_a_config_leaves_out_is_what_transformers_takes(architecture):
    config = type(TINY[architecture])()
    expected = shapes(architecture, config)
    assert {name: AXES[architecture].shape(name, {}) for name in expected} == expected


@every_class
def test_no_two_layouts_speak_of_one_tensor(architecture):
    layouts = AXES[architecture].layouts
    for name in shapes(architecture, TINY[architecture]):
        alone = [t for t in layouts if replace(AXES[architecture], layouts={t: layouts[t]}).layout(name)]
        assert len(alone) == 1


def test_every_class_that_is_written_has_its_axes():
    assert {naming.architecture for naming in NAMINGS.values()} | BLOCKS.keys() <= AXES.keys()


# --- before a byte is written -----------------------------------------------------------------------


def held(naming, *, reverse):
    """A checkpoint of names and shapes without a file, under transformers' names or the other project's."""
    config = TINY[naming.architecture]
    there = shapes(naming.architecture, config)
    names = naming.expected(config.to_dict(), reverse=False)
    ours = checkpoint({name: there[name] for name in names}, config.to_dict())
    if reverse:
        return ours
    made = planned(ours, naming, reverse=True)
    return checkpoint({move.target: move.shape for move in made.plan.moves}, dict(made.config))


def checkpoint(shapes, config):
    entries = {name: TensorEntry(name, "F32", shape, Path("x"), 0, 0) for name, shape in shapes.items()}
    return Checkpoint(Path("x"), entries, config)


def larger(naming, source, field, *, reverse):
    """`source`, whose config counts one more of `field`."""
    config = TINY[naming.architecture].to_dict()
    wrong = config | {field: config[field] + 1}
    return replace(source, config=wrong if reverse else dict(naming.back(wrong)))


@every_naming
@pytest.mark.parametrize("reverse", [False, True], ids=["there", "back"])
def test_a_vocabulary_that_only_the_config_gets_wrong_is_told_with_both_shapes(naming, reverse):
    source = held(naming, reverse=reverse)
    with pytest.raises(PlanError) as caught:
        planned(larger(naming, source, "vocab_size", reverse=reverse), naming, reverse=reverse)
    told = str(caught.value)
    rows = [name for name, entry in source.entries.items() if entry.shape == (37, 24)]
    assert rows
    for name in rows[:1]:
        assert f"{name} is (37, 24) in the checkpoint, the config's vocab_size 38 and " in told
    assert told.count(" 24 make (38, 24)") == len(rows) - sum(name in twins(naming) for name in rows)


def twins(naming):
    return naming.twins(TINY[naming.architecture].to_dict())


FIELDS = [
    (name, field)
    for name in ("gpt2", "llama", "t5", "bert", "roberta", "distilbert")
    for field in sorted(
        {f for fields in AXES[find_naming(name).architecture].fields.values() for f in fields}
    )
    if TINY[find_naming(name).architecture].to_dict()[field] is not None
]


@pytest.mark.parametrize(("name", "field"), FIELDS)
@pytest.mark.parametrize("reverse", [False, True], ids=["there", "back"])
def test_every_size_off_by_one_is_told_for_every_tensor_that_has_it(name, field, reverse):
    naming = find_naming(name)
    source = held(naming, reverse=True)
    wrong = larger(naming, source, field, reverse=True)
    axes = AXES[naming.architecture]
    with pytest.raises(PlanError) as caught:
        planned(wrong, naming, reverse=reverse)
    faults = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    shapes = {tensor: axes.shape(tensor, wrong.config) for tensor in source.entries}
    differing = {t: e.shape for t, e in source.entries.items() if e.shape != shapes[t]}
    first = {re.sub(r"[.][0-9]+[.]", "", tensor): tensor for tensor in reversed(differing)}
    assert len(faults) == len(first) > 0
    for tensor in first.values():
        (line,) = (fault for fault in faults if fault.startswith(f"- {tensor} is "))
        assert line.startswith(f"- {tensor} is {differing[tensor]} in the checkpoint, the config's ")
        assert f"{field} {wrong.config[field]}" in line or "n_inner 100 by default" in line
        assert f" {shapes[tensor]}" in line
    others = sum(int(found) for found in re.findall("and ([0-9]+) more in other layers", str(caught.value)))
    assert len(faults) + others == len(differing)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("base", ["transformer.", ""])
def test_a_tensor_of_the_wrong_shape_is_told_whatever_stands_before_its_name(prefix, base):
    naming = find_naming("nanogpt")
    source = held(naming, reverse=True)
    named = {prefix + name.replace("transformer.", base): e.shape for name, e in source.entries.items()}
    wrong = checkpoint(named, TINY["GPT2LMHeadModel"].to_dict() | {"n_positions": 20})
    with pytest.raises(PlanError, match="1 fault") as caught:
        planned(wrong, naming, reverse=True)
    told = "wpe.weight is (19, 24) in the checkpoint, the config's n_positions 20 and n_embd 24 make (20, 24)"
    assert f"{prefix}{base}{told}" in str(caught.value)


def test_a_size_that_the_config_leaves_out_is_told_as_such():
    naming = find_naming("gpt2")
    source = held(naming, reverse=True)
    config = {field: value for field, value in source.config.items() if field != "n_positions"}
    with pytest.raises(PlanError, match=r"n_positions 1024 by default and n_embd 24 make \(1024, 24\)"):
        planned(replace(source, config=config), naming)


def test_a_transposed_matrix_is_told_as_it_would_be_written():
    naming = find_naming("nanogpt")
    source = held(naming, reverse=False)
    name = "transformer.h.0.attn.c_proj.weight"
    shapes = {n: (23, 24) if n == name else e.shape for n, e in source.entries.items()}
    with pytest.raises(PlanError) as caught:
        planned(checkpoint(shapes, source.config), naming)
    assert (
        f"{name} is (23, 24) in the checkpoint, (24, 23) transposed, the config's n_embd 24 makes (24, 24)"
        in str(caught.value)
    )


def test_shapes_are_told_without_torch(tmp_path):
    config = GPT2Config(vocab_size=37, n_positions=19, n_embd=24, n_layer=2, n_head=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 37', '"vocab_size": 38'))
    code = (
        "import sys; from typer.testing import CliRunner; from flows import cli;"
        f"told = CliRunner().invoke(cli.app, ['plan-weights', {str(tmp_path)!r}, '--family', 'gpt2']);"
        "print(told.exception); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    told = "the config's vocab_size 38 and n_embd 24 make (38, 24)"
    assert told in done.stdout
    assert done.stdout.strip().endswith("[]")
