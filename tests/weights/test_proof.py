"""Each proof must catch what the ones below it let pass."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import ProofError
from tasks.weights import content, proof
from tasks.weights.rules import TRANSPOSE


def transpose_value(rule):
    """A square matrix that the table says to transpose, and should not."""
    if rule.source == "encoder.layer.{n}.attention.output.dense.{p:weight|bias}":
        return replace(rule, op=TRANSPOSE)
    return rule


def test_a_wrongly_transposed_square_matrix_passes_every_proof_but_parity(save, convert, tmp_path):
    plan, source = convert(save(tmp_path / "source", "bert"), tmp_path / "model", edit=transpose_value)
    content.structure(plan, tmp_path / "model" / "model.safetensors")
    content.content(plan, tmp_path / "model" / "model.safetensors")
    proof.load(tmp_path / "model")
    with pytest.raises(ProofError, match=r"first differ at layer 0: max \|difference\| 0\.\d+"):
        proof.verify(plan, source, tmp_path / "model", tolerance=1e-3)


def test_rows_that_went_by_index_and_not_by_token_fail_the_parity(save, convert, align, tmp_path):
    """Right by shape, by content and by loading: the table is only not that of these tokens."""
    words, by_index = (
        align(sources, extends=False) for sources in ([0, *range(36, 0, -1), None], [*range(37), None])
    )
    plan, source = convert(save(tmp_path / "source", "bert"), tmp_path / "model", words=by_index)
    content.content(plan, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ProofError, match=r"first differ at embeddings: max \|difference\| \d"):
        proof.verify(plan, source, tmp_path / "model", tolerance=1e-3, words=words.pairs)


def test_a_transposition_that_is_right_is_undone_by_the_content_proof(save, convert, tmp_path):
    path = save(tmp_path / "source", "bert") / "model.safetensors"
    plan, _ = convert(tmp_path / "source", tmp_path / "model", edit=transpose_value)
    old, new = load_file(path), load_file(tmp_path / "model" / "model.safetensors")
    name = "encoder.layer.1.attention.output.dense.weight"
    assert torch.equal(new[f"bert.{name}"], old[name].T)
    assert plan.parameters()["transposed"] == 2 * (24 * 24 + 24)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("bert.embeddings.position_embeddings.weight", "embeddings"),
        ("bert.encoder.layer.1.attention.self.query.weight", "layer 1"),
        ("bert.pooler.dense.weight", "pooler"),
    ],
)
def test_permuted_rows_are_traced_to_where_they_first_matter(save, convert, tmp_path, name, where):
    plan, source = convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    damage(tmp_path / "model" / "model.safetensors", name, lambda tensor: tensor.roll(1, 0))
    model, _ = proof.load(tmp_path / "model")
    with pytest.raises(ProofError, match=f"first differ at {where}: max"):
        proof.parity(plan, source, model, tolerance=1e-3)


def damage(path, name, change):
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.T.contiguous(), r"- bert\.pooler\.dense\.weight is not pooler\.dense\.weight"),
        (lambda tensor: tensor[torch.arange(24).roll(1)], "is not pooler"),
        (
            lambda tensor: tensor.index_fill(0, torch.tensor([3]), torch.nan),
            "24 values are infinite or not a number",
        ),
    ],
)
def test_bytes_that_changed_are_named(save, convert, tmp_path, change, message):
    plan, _ = convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    damage(path, "bert.pooler.dense.weight", change)
    with pytest.raises(ProofError, match=message):
        content.content(plan, path)


def test_a_source_with_values_that_are_no_numbers_is_refused(save, convert, tmp_path):
    path = save(tmp_path / "source", "bert") / "model.safetensors"
    damage(path, "pooler.dense.bias", lambda tensor: tensor / 0)
    plan, source = convert(tmp_path / "source", tmp_path / "model")
    with pytest.raises(ProofError, match=r"bert\.pooler\.dense\.bias: 24 values are infinite"):
        proof.verify(plan, source, tmp_path / "model", tolerance=0.0)


def test_a_changed_head_is_not_what_its_seed_draws(save, convert, tmp_path):
    plan, _ = convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    damage(path, "classifier.bias", lambda tensor: tensor + 1)
    with pytest.raises(ProofError, match=r"classifier\.bias is not what its seed draws"):
        content.content(plan, path)


def test_structure_names_what_is_not_as_planned(save, convert, tmp_path):
    plan, _ = convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["extra"] = tensors.pop("classifier.bias")
    save_file(tensors, path)
    with pytest.raises(ProofError) as caught:
        content.structure(plan, path)
    assert "- classifier.bias: planned ((3,), 'F32'), written None" in str(caught.value)
    assert "- extra: planned None, written ((3,), 'F32')" in str(caught.value)


def test_a_tensor_that_transformers_would_make_up_fails_the_load(save, convert, tmp_path):
    convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.pooler.dence.bias"] = tensors.pop("bert.pooler.dense.bias")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ProofError, match=r"(?s)missing_keys: bert\.pooler\.dense\.bias.*unexpected_keys: bert\.pooler\.dence"
    ):
        proof.load(tmp_path / "model")


def test_the_sequences_keep_to_the_tokens_that_are_known():
    class Config:
        pad_token_id, vocab_size, type_vocab_size, max_position_embeddings = 0, 37, 1, 19

    assert set(proof.sequences(Config, [0, 5, 9])["input_ids"].unique().tolist()) == {0, 5, 9}
    assert set(proof.sequences(Config, [5, 9])["input_ids"].unique().tolist()) == {5, 9}


@pytest.mark.parametrize("positions", [1, 2, 19, 600])
def test_the_sequences_fit_any_model_and_are_always_the_same(positions):
    class Config:
        pad_token_id, vocab_size, type_vocab_size, max_position_embeddings = 0, 37, 2, positions

    first, second = proof.sequences(Config), proof.sequences(Config)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["input_ids"].max() < 37
    assert 1 <= first["input_ids"].shape[1] <= min(positions, 32)
    assert set(first["token_type_ids"].unique().tolist()) <= {0, 1}


def test_only_the_levels_that_are_asked_for_run(save, convert, tmp_path):
    plan, source = convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    damage(path, "bert.pooler.dense.weight", lambda tensor: tensor.T.contiguous())
    for levels in ([], ["load"]):
        assert set(proof.verify(plan, source, path.parent, tolerance=0.0, levels=levels)) == {
            "structure",
            *levels,
        }
    for level in ("content", "parity"):
        with pytest.raises(ProofError):
            proof.verify(plan, source, path.parent, tolerance=0.0, levels=[level])
