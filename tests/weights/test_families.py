"""Laws that hold for every family: its table covers transformers' model, and reads backwards."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from tasks.errors import CheckpointError, PlanError
from tasks.weights import proof
from tasks.weights.arithmetic import Embed
from tasks.weights.families import FAMILIES, find
from tasks.weights.families.family import SEQUENCES
from tasks.weights.formats import open_checkpoint
from tasks.weights.rules import examples, fill, inverse, matches

every_family = pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
every_head = pytest.mark.parametrize(
    ("family", "head"), sorted((name, head) for name, family in FAMILIES.items() for head in family.heads)
)
SIZES = {"n_layer": 2, "num_hidden_layers": 2, "num_layers": 2}
LABELS = ("negative", "neutral", "positive")


def lead(rule, name):
    """Where a rule of one source and one target takes a name."""
    return fill(rule.target, matches(rule.source, name))


def table(family, head, **options):
    return FAMILIES[family].rules(head, SIZES, **options)


@every_head
@pytest.mark.parametrize("replaced", ["", "labels differ"])
def test_every_rule_that_keeps_a_tensor_reads_backwards(family, head, replaced):
    kept = [rule for rule in table(family, head, replaced=replaced) if not rule.lossy]
    assert kept
    for rule in kept:
        for name in examples(rule.source):
            assert lead(rule.inverse(), lead(rule, name)) == name
            assert rule.inverse().inverse() == rule


@every_head
def test_no_name_is_matched_by_two_rules(family, head):
    names = [name for rule in table(family, head) if rule.source for name in examples(rule.source)]
    assert len(set(names)) == len(names)
    others = table(family, head, words=Embed(()), reason="another vocabulary")
    assert sorted(name for rule in others if rule.source for name in examples(rule.source)) == sorted(names)


@every_head
def test_every_name_has_a_rule_whatever_the_head(family, head):
    names = {name for rule in table(family, head) for side in rule.sources for name in examples(side)}
    others = {
        name
        for other in FAMILIES[family].heads
        for rule in table(family, other)
        for side in rule.sources
        for name in examples(side)
    }
    assert names == others


@every_family
def test_another_vocabulary_changes_its_table_and_nothing_else(save, convert, align, tmp_path, family):
    words = align([0, 1, *range(36, 20, -1), None, *range(20, 1, -1)], extends=False)
    path = save(tmp_path / "source", family)
    plan, source = convert(path, tmp_path / "model", words=words)
    assert [move.target for move in plan.moves if move.action == "padded"] == [
        f"{family}.embeddings.word_embeddings.weight"
    ]
    found = proof.verify(plan, source, tmp_path / "model", tolerance=0.0, words=words.pairs)
    assert found["parity"].startswith("max |difference| 0 (tolerance 0)")
    assert "that both vocabularies have (37 of 38)" in found["parity"]


@every_family
@pytest.mark.parametrize("kind", ["base", "masked", "classifier"])
def test_source_and_converted_model_compute_the_same(save, convert, tmp_path, family, kind):
    plan, source = convert(save(tmp_path / "source", family, kind), tmp_path / "model")
    found = proof.verify(plan, source, tmp_path / "model", tolerance=0.0)
    assert found["parity"].startswith("max |difference| 0 (tolerance 0)")
    assert "layer 0, layer 1" in found["parity"]
    assert found["load"].endswith("no tensor missing, unexpected or of another shape")
    head = {name for template in FAMILIES[family].heads[SEQUENCES].linear for name in examples(template)}
    without_pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert set(plan.fresh()) == head | (without_pooler if (family, kind) == ("bert", "masked") else set())


@every_family
def test_a_plans_rules_lead_every_name_back(save, convert, tmp_path, family):
    plan, _ = convert(save(tmp_path / "source", family), tmp_path / "model")
    for move in plan.moves:
        if move.source:
            (back,) = inverse([move.rule])
            assert lead(back, move.target) == move.source.name


@every_family
def test_a_head_for_the_same_labels_in_order_is_kept_and_any_other_is_new(save, convert, tmp_path, family):
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    source = save(tmp_path / "source", family, "classifier", **labels)
    plan, checkpoint = convert(source, tmp_path / "same", LABELS)
    assert plan.fresh() == ()
    assert "logits" in proof.verify(plan, checkpoint, tmp_path / "same", tolerance=0.0)["parity"]
    plan, _ = convert(source, tmp_path / "other", LABELS[::-1])
    dropped = {unused.source.name: unused.rule.reason for unused in plan.unused}
    assert dropped == dict.fromkeys(plan.fresh(), "new head, labels differ")
    assert len(dropped) == 2 * len(FAMILIES[family].heads[SEQUENCES].linear)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_names_that_tensorflow_left_behind(save, convert, tmp_path, family):
    path = save(tmp_path / "source", family) / "model.safetensors"
    old, renamed = load_file(path), {}
    for name, tensor in old.items():
        if "norm" in name.lower():
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        renamed[name] = tensor
    save_file(renamed | {"embeddings.position_ids": torch.arange(19)[None]}, path)
    plan, source = convert(tmp_path / "source", tmp_path / "model")
    converted = load_file(tmp_path / "model" / "model.safetensors")
    for name, tensor in old.items():
        if "pooler" not in name or family == "bert":
            assert torch.equal(converted[f"{family}.{name}"], tensor)
    assert ("embeddings.position_ids", "a buffer: the model computes it") in [
        (unused.source.name, unused.rule.reason) for unused in plan.unused
    ]
    proof.verify(plan, source, tmp_path / "model", tolerance=0.0)


def test_labels_keep_their_order_beyond_ten(save, convert, tmp_path):
    labels = [f"label {i}" for i in range(12)]
    convert(save(tmp_path / "source", "bert"), tmp_path / "model", labels)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert list(model.config.id2label.values()) == labels
    assert model.config.num_labels == model.classifier.out_features == 12


def test_config_fields_that_name_code_or_a_past_do_not_travel(save, convert, tmp_path):
    path = save(tmp_path / "source", "bert") / "config.json"
    extra = {"auto_map": {"AutoModel": "evil.py"}, "_name_or_path": "/home/me", "_attn_implementation": "x"}
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    convert(tmp_path / "source", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert not {*extra, "transformers_version"} & config.keys()
    assert config["architectures"] == ["BertForSequenceClassification"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 3}, r"16 of the model's 57 tensors have no source: bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, r"16 tensors would become names that the model does not have"),
        ({"vocab_size": 38}, r"word_embeddings.weight is \(37, 24\) in the checkpoint, .* is \(38, 24\)"),
        ({"hidden_size": 25}, "does not describe a model.*25"),
        ({"hidden_size": "large"}, "does not describe a model"),
    ],
)
def test_config_and_tensors_must_agree(save, convert, tmp_path, fields, message):
    path = save(tmp_path / "source", "bert") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises((PlanError, CheckpointError), match=message):
        convert(tmp_path / "source", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_of_another_wrapper_is_explained_not_guessed(save, convert, tmp_path):
    path = save(tmp_path / "source", "bert") / "model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(PlanError, match=r"39 of its 39 tensors match no rule: module\..* and 31 more"):
        convert(tmp_path / "source", tmp_path / "model")


def test_an_unknown_family_gets_a_suggestion():
    with pytest.raises(CheckpointError, match=r"type 'distillbert'; did you mean 'distilbert'\?"):
        find("distillbert")
    with pytest.raises(CheckpointError, match="'gpt3'; did you mean 'gpt2'"):
        find("bert", family="gpt3")
    assert find("camembert", family="roberta").name == "roberta"


def test_open_checkpoint_sees_the_tiny_models_as_they_are(save, tmp_path):
    assert open_checkpoint(save(tmp_path, "roberta")).config["model_type"] == "roberta"


def test_a_config_without_a_model_type_is_refused():
    with pytest.raises(CheckpointError, match=r"config.json has no model_type: copy the one that belongs"):
        find(None)
    assert find(None, family="bert").name == "bert"
