"""A checkpoint in several files: of the size that was asked for, proven, loaded, and the same bytes."""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.errors import ArtifactError, CheckpointError, ProofError
from tasks.weights import content, layout, place, proof
from tasks.weights.families import find_naming
from tasks.weights.formats import TensorEntry, open_checkpoint
from tasks.weights.formats.header import read_header
from tasks.weights.plan import Target, plan
from tasks.weights.rules import Rule
from tasks.weights.transcribe import planned, transcribe

INDEX = "model.safetensors.index.json"
SIZE = 30_000  # bytes; of about 110,000 in all, and of no tensor
NAMING = find_naming("gpt-textbook-split")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A random GPT-2 as transformers writes it, in one file."""
    torch.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=37, n_positions=19, n_embd=24, n_layer=3, n_head=4))
    directory = tmp_path_factory.mktemp("source")
    model.save_pretrained(directory)
    return directory


def convert(source, target, naming=NAMING, *, reverse=False, size=SIZE, **options):
    made = planned(open_checkpoint(source), naming, reverse=reverse)
    return made, transcribe(made, target, shard_size=size, **options)


def tensors(directory):
    return {name: t for path in directory.glob("*.safetensors") for name, t in load_file(path).items()}


def test_no_file_is_larger_than_asked_and_the_index_names_every_tensor(source, tmp_path):
    made, found = convert(source, tmp_path / "made", find_naming("gpt2"))
    shards = sorted((tmp_path / "made").glob("*.safetensors"))
    count = len(shards)
    assert [path.name for path in shards] == [
        f"model-0000{n + 1}-of-0000{count}.safetensors" for n in range(count)
    ]
    assert count > 3
    assert all(path.stat().st_size <= SIZE for path in shards)
    told = json.loads((tmp_path / "made" / INDEX).read_text())
    assert told["metadata"] == {"total_size": made.plan.disk}
    assert told["weight_map"] == {name: path.name for path in shards for name in read_header(path)}
    assert told["weight_map"].keys() == {move.target for move in made.plan.moves}
    assert "tensors as planned" in found["structure"]
    assert all(torch.equal(t, tensors(source)[name]) for name, t in tensors(tmp_path / "made").items())


def test_every_file_says_where_it_is_from_and_starts_where_its_source_does_in_a_page(source, tmp_path):
    made, _ = convert(source, tmp_path / "made", find_naming("gpt2"))
    origin = {move.target: move.source for move in made.plan.moves}
    for path in (tmp_path / "made").glob("*.safetensors"):
        with safe_open(path, "pt") as stream:
            assert stream.metadata() == {"format": "pt", "family": "gpt2", "plan": made.plan.digest()}
        first = next(iter(read_header(path).values()))
        assert first.start % 4096 == origin[first.name].start % 4096


def test_what_the_source_was_stands_in_the_result_where_digests_are_asked_for(source, tmp_path):
    told = []
    for place_, wanted in (("a", source), ("b", tmp_path / "copy"), ("c", tmp_path / "other")):
        if wanted != source:
            shutil.copytree(source, wanted)
        if place_ == "c":
            path = wanted / "model.safetensors"
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        convert(wanted, tmp_path / place_, find_naming("gpt2"), size=None, levels=["digests"])
        with safe_open(tmp_path / place_ / "model.safetensors", "pt") as stream:
            told.append(stream.metadata()["source"])
    assert told[0] == told[1] != told[2]


def test_transformers_loads_the_files_and_computes_the_same(source, tmp_path):
    convert(source, tmp_path / "made", find_naming("gpt2"), prove=lambda draft: {"load": proof.loads(draft)})
    assert "max |difference| 0 " in proof.logits_agree(source, tmp_path / "made")


def test_there_and_back_in_several_files_every_byte_is_the_same(source, tmp_path):
    convert(source, tmp_path / "one", reverse=True)
    convert(tmp_path / "one", tmp_path / "two")
    convert(tmp_path / "two", tmp_path / "three", reverse=True, size=None)
    for name in ("one", "two"):
        assert (tmp_path / name / INDEX).exists()
    first, second = tensors(source), tensors(tmp_path / "two")
    assert first.keys() == second.keys()
    assert all(second[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in first.items())
    assert not (tmp_path / "three" / INDEX).exists()
    third = tensors(tmp_path / "three")
    assert all(torch.equal(third[name], tensor) for name, tensor in tensors(tmp_path / "one").items())


def test_equal_input_gives_equal_files(source, tmp_path):
    for name in ("one", "two"):
        convert(source, tmp_path / name, reverse=True)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_where_one_file_suffices_there_is_no_index(source, tmp_path):
    convert(source, tmp_path / "made", size=10**9, reverse=True)
    convert(source, tmp_path / "whole", size=None, reverse=True)
    made, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("made", "whole"))
    assert made == whole
    assert not (tmp_path / "made" / INDEX).exists()


def test_a_tensor_that_does_not_fit_has_a_file_to_itself(source, tmp_path):
    convert(source, tmp_path / "made", size=1, reverse=True)
    shards = list((tmp_path / "made").glob("*.safetensors"))
    assert len(shards) == len(tensors(tmp_path / "made"))
    assert all(len(read_header(path)) == 1 for path in shards)


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from(["F32", "F16", "BF16"])), min_size=1, max_size=30
    ),
    st.integers(1, 20_000),
)
def test_any_tensors_are_divided_without_loss_and_only_large_ones_pass_the_limit(sizes, limit):
    entries, end = {}, 16
    for number, (items, dtype) in enumerate(sizes):
        stop = end + items * (4 if dtype == "F32" else 2)
        name = f"t{number}" + "é" * (number % 5)
        entries[name] = TensorEntry(name, dtype, (items,), Path("x"), end, stop)
        end = stop
    made = plan(entries, [Rule(name, name) for name in entries], {name: Target() for name in entries})
    shards = layout.shards(made, {"family": "é"}, largest=limit)
    assert [move for shard in shards for move in shard.moves] == layout.arrange(made)
    assert all(shard.moves for shard in shards)
    assert all(shard.nbytes <= limit or len(shard.moves) == 1 for shard in shards)


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_flipped_bit_in_any_file_is_noticed(source, tmp_path, number):
    made, _ = convert(source, tmp_path / "made", reverse=True)
    path = sorted((tmp_path / "made").glob("*.safetensors"))[number]
    name, entry = next(iter(read_header(path).items()))
    data = bytearray(path.read_bytes())
    data[entry.start] ^= 1
    path.write_bytes(data)
    content.structure(made.plan, tmp_path / "made" / INDEX)
    with pytest.raises(ProofError, match=name.replace(".", r"\.")):
        content.content(made.plan, tmp_path / "made" / INDEX)


def test_a_file_that_the_index_names_and_that_is_missing_is_noticed(source, tmp_path):
    made, _ = convert(source, tmp_path / "made", reverse=True)
    sorted((tmp_path / "made").glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match=r"shard 'model-00002-of-.*' is missing"):
        content.structure(made.plan, tmp_path / "made" / INDEX)


def test_all_files_together_must_fit_on_the_disk(source, tmp_path, monkeypatch):
    made = planned(open_checkpoint(source), NAMING, reverse=True)
    held = []
    right = place._require_space
    monkeypatch.setattr(place, "_require_space", lambda directory, needed: held.append(needed))
    place.write(made.plan, tmp_path / "made", {}, metadata={}, shard_size=SIZE)
    assert sum(path.stat().st_size for path in (tmp_path / "made").glob("*.safetensors")) == held[0]
    with pytest.raises(ArtifactError, match="no room for the converted checkpoint"):
        right(tmp_path, 2**70)


def test_an_accident_between_two_files_leaves_nothing(source, tmp_path, monkeypatch):
    made = planned(open_checkpoint(source), NAMING, reverse=True)
    right = place._write_shard

    def write(shard, *arguments, **options):
        if shard.name.startswith("model-00003"):
            raise KeyboardInterrupt
        right(shard, *arguments, **options)

    monkeypatch.setattr(place, "_write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        transcribe(made, tmp_path / "deep" / "er" / "made", shard_size=SIZE)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.weights import place
from tasks.weights.families import find_naming
from tasks.weights.formats import open_checkpoint
from tasks.weights.transcribe import planned, transcribe

def write(shard, *arguments, **options):
    if shard.name.startswith("model-00003"):
        os.kill(os.getpid(), signal.SIGKILL)
    right(shard, *arguments, **options)

right, place._write_shard = place._write_shard, write
made = planned(open_checkpoint(Path(sys.argv[1])), find_naming("gpt2"))
transcribe(made, Path(sys.argv[2]), shard_size=int(sys.argv[3]))
"""


def test_kill_9_between_two_files_leaves_no_checkpoint_and_the_next_run_cleans_up(source, tmp_path):
    target = tmp_path / "made"
    done = subprocess.run([sys.executable, "-c", KILLED, source, target, str(SIZE)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.glob("**/model-*"))) == 2, "it was killed too early to show anything"
    convert(source, target, find_naming("gpt2"))
    assert list(tmp_path.iterdir()) == [target]


def test_what_one_step_makes_may_stand_in_two_files(source, tmp_path):
    """q, k and v come from one transposed matrix, and each is larger than a file."""
    made, _ = convert(source, tmp_path / "made", size=3000, reverse=True)
    step = next(move.step for move in made.plan.moves if move.target.endswith("attn.q.weight"))
    held = json.loads((tmp_path / "made" / INDEX).read_text())["weight_map"]
    assert len({held[name] for name in step.targets if name.endswith("weight")}) == 3
    fused = tensors(source)["transformer.h.0.attn.c_attn.weight"]
    assert math.prod(fused.shape) == 3 * 24 * 24
    parts = [tensors(tmp_path / "made")[f"blocks.0.attn.{name}.weight"] for name in "qkv"]
    assert torch.equal(torch.cat(parts).T, fused)
