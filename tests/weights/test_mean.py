"""A checkpoint becomes a classifier that reads the mean: explained whole, proven, and converted again."""

import json

import pytest
from safetensors.torch import load_file

from tasks import architectures
from tasks.errors import CheckpointError
from tasks.weights import proof, purposes
from tasks.weights.families import find

FAMILIES = sorted(architectures.NAMES)
KINDS = ("label", "labels", "pair", "score")
LEVELS = ("content", "load", "parity", "similarity")
every_family = pytest.mark.parametrize("family", FAMILIES)


def prove(plan, source, target):
    return proof.verify(plan, source, target, tolerance=0.0, levels=LEVELS)


@every_family
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_explained_and_the_layers_compute_the_same(save, convert, tmp_path, family, kind):
    target = tmp_path / "model"
    plan, source = convert(save(tmp_path / "source", family, "masked"), target, kind=kind, pooling="mean")
    assert plan.fresh() == ("mean_classifier.weight", "mean_classifier.bias")
    used = {entry.name for move in plan.moves for entry in move.step.sources}
    assert used | {unused.source.name for unused in plan.unused} == source.entries.keys()
    found = prove(plan, source, target)
    assert found["load"].startswith(f"{architectures.NAMES[family]}: no tensor missing")
    assert found["parity"].startswith("max |difference| 0 (tolerance 0)")
    assert found["similarity"].startswith("not judged: no tokenizer")
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == [architectures.NAMES[family]]
    assert config["model_type"] == f"regraft-mean-{family}"
    assert config["problem_type"] == purposes.PURPOSES[kind].problem


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_pooler_is_dropped_with_its_reason(save, convert, tmp_path, family):
    plan, _ = convert(save(tmp_path / "source", family), tmp_path / "model", pooling="mean")
    reasons = {unused.source.name: unused.rule.reason for unused in plan.unused}
    assert reasons == dict.fromkeys(
        ("pooler.dense.weight", "pooler.dense.bias"), "the head reads tokens, not the pooler"
    )


@every_family
def test_a_head_for_the_same_rows_is_kept_with_its_logits(save, convert, tmp_path, family):
    convert(save(tmp_path / "source", family), tmp_path / "first", pooling="mean")
    plan, source = convert(tmp_path / "first", tmp_path / "again", pooling="mean")
    assert plan.fresh() == ()
    assert prove(plan, source, tmp_path / "again")["parity"].endswith("logits")


@every_family
@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_a_model_of_ours_can_be_taken_further_with_another_head(save, convert, tmp_path, family, pooling):
    convert(save(tmp_path / "source", family), tmp_path / "first", pooling="mean")
    plan, source = convert(tmp_path / "first", tmp_path / "again", ("a", "b"), pooling=pooling)
    found = prove(plan, source, tmp_path / "again")
    assert found["parity"].startswith("max |difference| 0 (tolerance 0)")
    assert not found["parity"].endswith("logits")
    assert "mean_classifier.weight" in {unused.source.name for unused in plan.unused}
    assert ("mean_classifier.weight" in load_file(tmp_path / "again" / "model.safetensors")) == (
        pooling == "mean"
    )


def test_rows_whose_tokens_are_answered_one_by_one_are_refused():
    with pytest.raises(CheckpointError, match=r"'tags' have an answer for many tokens.*pooling to token"):
        purposes.choose("tags", find("bert"), pooling="mean")


def test_a_checkpoint_that_is_no_encoder_is_refused_with_what_to_do():
    with pytest.raises(
        CheckpointError,
        match=r"'gpt2' does not become: take one of type bert .*, or conversion\.pooling: token$",
    ):
        purposes.choose("label", find("gpt2"), pooling="mean")
