import errno
import os
import stat
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tasks.errors import ArtifactError, CheckpointError, ProofError
from tasks.weights import content, place, proof
from tasks.weights.arithmetic import Mean, Replicate
from tasks.weights.formats import open_checkpoint, together
from tasks.weights.formats.header import read_header
from tasks.weights.ops import Split
from tasks.weights.plan import Target, plan
from tasks.weights.rules import DROP, Drop, Rule, Tie
from tasks.weights.values import items


def test_equal_input_gives_equal_bytes_and_the_header_says_from_where(save, convert, tmp_path):
    source = save(tmp_path / "source", "bert")
    convert(source, tmp_path / "one")
    convert(source, tmp_path / "two")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    with safe_open(tmp_path / "one" / "model.safetensors", "pt") as stream:
        assert stream.metadata() == {"format": "pt", "family": "tiny"}


def test_the_data_starts_where_the_sources_does_in_its_page_and_others_may_read_the_file(
    save, convert, tmp_path
):
    mask = os.umask(0o022)
    try:
        convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    finally:
        os.umask(mask)
    path = tmp_path / "model" / "model.safetensors"
    starts = [
        min(entry.start for entry in read_header(of).values())
        for of in (path, next((tmp_path / "source").glob("*.safetensors")))
    ]
    assert starts[0] % 4096 == starts[1] % 4096 != 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("without", [("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("error", [errno.EXDEV, errno.ENOSYS, None])
def test_copying_without_the_kernels_help_gives_the_same_bytes(
    save, convert, tmp_path, monkeypatch, error, without
):
    source = save(tmp_path / "source", "bert")
    convert(source, tmp_path / "helped")

    def unable(*_):
        if error is None:
            return 0
        raise OSError(error, "no")

    for way in without:
        monkeypatch.setattr(os, way, unable)
    monkeypatch.setattr(place, "CHUNK", 1000)
    convert(source, tmp_path / "alone")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("helped", "alone"))
    assert one == two


def test_another_error_of_the_kernel_is_not_swallowed(save, convert, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="no space left"):
        convert(save(tmp_path / "source", "bert"), tmp_path / "model")


def test_too_small_a_disk_is_noticed_before_anything_is_written(save, convert, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(ArtifactError, match=r"no room for the converted checkpoint: .* 0 MB left"):
        convert(save(tmp_path / "source", "bert"), tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_a_source_that_shrinks_meanwhile_is_noticed(save, convert, tmp_path, monkeypatch):
    source = save(tmp_path / "source", "bert")
    require = place._require_space

    def shrink(*arguments):
        os.truncate(source / "model.safetensors", 5000)
        require(*arguments)

    monkeypatch.setattr(place, "_require_space", shrink)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        convert(source, tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_sources_dtype_is_kept_and_new_tensors_take_it(save, convert, tmp_path, dtype):
    path = save(tmp_path / "source", "bert") / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    plan, source = convert(tmp_path / "source", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert open_checkpoint(tmp_path / "model").config["dtype"] == str(dtype).removeprefix("torch.")
    assert 0.01 < tensors["classifier.weight"].double().std() < 0.03
    proof.verify(plan, source, tmp_path / "model", tolerance=0.0)


def test_bfloat16_is_rounded_as_torch_rounds():
    values = np.random.default_rng(1).normal(0, 3, 1000)
    ours = torch.from_numpy(items(values, "BF16").view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours, torch.from_numpy(values).float().bfloat16())


def test_shards_are_joined(save, convert, tmp_path):
    source = save(tmp_path / "source", "bert")
    convert(source, tmp_path / "whole")
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    (source / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, source / f"{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"{number}.safetensors")
    (source / "model.safetensors.index.json").write_text(f'{{"weight_map": {weight_map}}}'.replace("'", '"'))
    convert(source, tmp_path / "joined")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "joined"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_mixed_dtypes_stay_aligned(save, convert, tmp_path):
    path = save(tmp_path / "source", "bert") / "model.safetensors"
    tensors = load_file(path)
    tensors["pooler.dense.bias"] = tensors["pooler.dense.bias"].half()
    save_file(tensors, path)
    plan, source = convert(tmp_path / "source", tmp_path / "model")
    entries = read_header(tmp_path / "model" / "model.safetensors")
    assert entries["bert.pooler.dense.bias"].dtype == "F16"
    assert all(entry.start % (4 if entry.dtype == "F32" else 2) == 0 for entry in entries.values())
    proof.verify(plan, source, tmp_path / "model", tolerance=0.0)


def test_a_new_tensor_depends_on_seed_and_name_and_on_nothing_else(save, convert, tmp_path):
    plan, _ = convert(save(tmp_path / "source", "roberta"), tmp_path / "model")
    dense, projection = (
        next(move for move in plan.moves if move.target == f"classifier.{name}.weight")
        for name in ("dense", "out_proj")
    )
    values = place.initial(dense, seed=17, deviation=0.02)
    assert np.array_equal(values, place.initial(dense, seed=17, deviation=0.02))
    assert not np.array_equal(values, place.initial(dense, seed=18, deviation=0.02))
    assert not np.array_equal(values[:3], place.initial(projection, seed=17, deviation=0.02))


def test_a_plan_may_read_several_checkpoints(tmp_path):
    """A soup of two, whose feed-forward layer becomes three experts that begin alike."""
    shapes = {"norm": (5,), "mlp": (3, 5)}
    values = {name: {key: torch.randn(shape) for key, shape in shapes.items()} for name in ("one", "two")}
    for name, tensors in values.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "soup"}')
    source = together({name: open_checkpoint(tmp_path / name) for name in values})
    rules = [
        Rule(("one:norm", "two:norm"), "norm", Mean((1.0, 3.0))),
        Rule("one:mlp", "experts.{e*}.mlp", Replicate(3)),
        Rule("two:mlp", None, DROP, "the experts begin as those of the first"),
    ]
    names = ("norm", *(f"experts.{number}.mlp" for number in range(3)))
    made = plan(source, rules, {name: Target() for name in names})
    content.content(made, place.write(made, tmp_path / "made", {}, metadata={}))
    found = load_file(tmp_path / "made" / "model.safetensors")
    expected = (values["one"]["norm"].double() + 3 * values["two"]["norm"].double()) / 4
    assert torch.equal(found["norm"], expected.float())
    assert all(torch.equal(found[name], values["one"]["mlp"]) for name in names[1:])
    assert (made.preserves, made.memory) == ("no", 3 * 5 * 4)


def test_the_proof_does_not_ask_what_was_copied(tmp_path, monkeypatch):
    """Parts in the wrong order are copied as they are told, and found by undoing the split."""
    (tmp_path / "config.json").write_text('{"model_type": "none"}')
    save_file({"both": torch.randn(6, 5)}, tmp_path / "model.safetensors")
    right = Split.ranges
    monkeypatch.setattr(Split, "ranges", lambda *given: right(*given)[::-1])
    rules = [Rule("both", ("one", "two"), Split((3, 3)))]
    made = plan(open_checkpoint(tmp_path).entries, rules, {"one": Target(), "two": Target()})
    path = place.write(made, tmp_path / "made", {}, metadata={})
    with pytest.raises(ProofError, match="one, two is not both"):
        content.content(made, path)


def test_all_that_would_be_missed_is_told_at_once(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "none"}')
    tensors = {"kept": torch.ones(3), "head": torch.zeros(3), "other": torch.ones(3), "bias": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    rules = [
        Rule("kept", "kept"),
        Rule("head", None, Tie("kept"), "tied"),
        Rule("other", None, Tie("absent"), "tied"),
        Rule("bias", None, Drop("not zero"), "the model has no bias"),
    ]
    made = plan(open_checkpoint(tmp_path).entries, rules, {"kept": Target()})
    with pytest.raises(CheckpointError) as caught:
        place.write(made, tmp_path / "made", {}, metadata={})
    told = str(caught.value)
    assert "head should be kept under a second name, and their bytes differ" in told
    assert "other should be absent under a second name, which the checkpoint lacks" in told
    assert "bias is not zero, so the model would compute something else: the model has no bias" in told
