"""The way back, and digests: what is as planned passes both, a tensor that is not fails both by its name."""

import hashlib

import pytest
from safetensors.torch import load_file, save_file

from tasks.errors import ProofError
from tasks.weights import roundtrip

LEVELS = ("inverse", "digests")


@pytest.fixture
def converted(save, convert, tmp_path):
    plan, _ = convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    return plan, tmp_path / "model"


def test_the_digests_are_those_of_the_bytes_in_the_file(converted):
    plan, directory = converted
    found, digests = roundtrip.prove(plan, directory, LEVELS)
    tensors = load_file(directory / "model.safetensors")
    assert digests == {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()
    }
    assert found["inverse"] == f"{len(tensors) - 2} tensors of the source come back bit for bit"
    assert (
        found["digests"]
        == f"{len(tensors)} tensors have the SHA-256 that the plan gives them, kept in plan.json"
    )


@pytest.mark.parametrize("level", LEVELS)
def test_a_transposed_matrix_fails_by_its_name(converted, level):
    plan, directory = converted
    path, name = directory / "model.safetensors", "pooler.dense.weight"
    tensors = load_file(path)
    tensors[f"bert.{name}"] = tensors[f"bert.{name}"].T.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ProofError, match=rf"- (bert\.)?{name}") as caught:
        roundtrip.prove(plan, directory, [level])
    assert len(str(caught.value).splitlines()) == 2


def test_a_head_that_was_not_drawn_by_its_seed_has_another_digest(converted):
    plan, directory = converted
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "classifier.bias": tensors["classifier.bias"] + 1}, path)
    roundtrip.prove(plan, directory, ["inverse"])
    with pytest.raises(ProofError, match=r"- classifier\.bias has [0-9a-f]{12}…, the plan makes"):
        roundtrip.prove(plan, directory, ["digests"])


def test_what_was_not_asked_for_is_not_read(converted):
    plan, directory = converted
    (directory / "model.safetensors").unlink()
    assert roundtrip.prove(plan, directory, ["content"]) == ({}, {})
