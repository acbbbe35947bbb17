"""Which tensors of a training script's checkpoint are taken, and that none is left out in silence."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint
from tasks.weights.formats.state_dict import chosen, settings
from tasks.weights.formats.torch_names import Storage, Tensor

ROW = torch.ones(2)
STATE = {"w": ROW, "b": ROW}


@pytest.mark.parametrize(
    ("value", "faults"),
    [
        (
            {"embed.weight": ROW, "blocks": {"0": {"w": ROW}}, "list": [ROW]},
            ["entry 'blocks' is no tensor: its type is dict", "entry 'list' is no tensor: its type is list"],
        ),
        (
            {"state_dict": {"w": ROW, "extra": None}, "step_count": torch.tensor(3)},
            ["entry 'extra' of 'state_dict' is no tensor: its type is NoneType"],
        ),
        (
            {"model": {"w": ROW, "inner": {"w": ROW}, "depth": 2}},
            [
                "entry 'inner' of 'model' is no tensor",
                "entry 'depth' of 'model' is no tensor: its type is int",
            ],
        ),
        (
            {"model": STATE, "loss": {"weight": ROW}, "list": [1, (torch.ones(3),)], "loose": torch.ones(4)},
            ["'loss.weight'", "'list.1.0'", "tensor 'loose' would be left out beside 'model'"],
        ),
        ({"model": STATE, "net": {"a": {"b": {"c": ROW}}}}, ["tensor 'net.a.b.c' would be left out"]),
        ({"w": ROW, "net": {"v": ROW}}, ["entry 'net' is no tensor"]),
        ({"w": ROW, "epoch": 3}, ["entry 'epoch' is no tensor: its type is int"]),
        ({"model": {"w": ROW, 0: ROW}}, ["tensor '0' of 'model' has a name that is no text"]),
    ],
)
def test_what_would_be_left_out_is_named_at_once(saved, value, faults):
    with pytest.raises(
        CheckpointError, match="name the dict of tensors that is the model as `key`"
    ) as caught:
        open_checkpoint(saved(value))
    for fault in faults:
        assert fault in str(caught.value)


@pytest.mark.parametrize("usual", ["model", "state_dict", "model_state_dict", "module"])
def test_the_state_of_training_and_single_numbers_may_stand_beside_the_model(saved, usual):
    beside = {
        "optimizer": {"state": {0: {"exp_avg": ROW}}}, "optimizer_states": [{"v": ROW}], "lr_schedulers": [ROW],
        "scheduler": {"lr": ROW}, "grad_scaler": {"scale": ROW}, "rng_state": ROW, "torch_rng_state": ROW,
        "model_ema": STATE, "ema_state_dict": STATE, "callbacks": {"best": ROW}, "epoch": 3, "note": None,
        "best_val_loss": torch.tensor(0.5), "step_count": torch.tensor([3]), "metrics": {"loss": torch.ones(1, 1)},
        "empty": torch.ones(0, 4),
    }  # fmt: skip
    assert set(open_checkpoint(saved({usual: STATE, **beside})).entries) == {"w", "b"}


def test_a_name_that_only_holds_the_letters_of_a_word_of_training_is_no_state_of_training(saved):
    for name in ("schema", "ring", "optimal", "rescaler"):
        with pytest.raises(CheckpointError, match=f"tensor '{name}.w' would be left out"):
            open_checkpoint(saved({"model": STATE, name: {"w": ROW}}))


def test_with_a_key_the_caller_says_what_is_left_out(saved):
    path = saved({"model": STATE, "teacher": {"v": ROW}, "w": ROW, "broken": {"w": ROW, "x": "text"}})
    assert set(open_checkpoint(path, key="model").entries) == {"w", "b"}
    assert set(open_checkpoint(path, key="teacher").entries) == {"v"}
    with pytest.raises(CheckpointError, match="entry 'x' of 'broken' is no tensor: its type is str"):
        open_checkpoint(path, key="broken")


def test_one_dict_under_another_name_is_a_question_even_beside_single_numbers(saved):
    path = saved({"net": STATE, "step": torch.tensor(3)})
    with pytest.raises(CheckpointError, match=r"which of its dicts .* It holds 'net'; name one as `key`"):
        open_checkpoint(path)
    assert set(open_checkpoint(path, key="net").entries) == {"w", "b"}


def test_what_a_file_says_of_itself_comes_before_the_config_beside_it(saved, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    told = saved({"model": STATE, "model_args": {"n_layer": 2}}, "told.pt")
    assert open_checkpoint(told).config == {"model_args": {"n_layer": 2}}
    assert open_checkpoint(saved(STATE, "plain.pt")).config == {"model_type": "bert"}


def test_the_state_of_training_says_nothing_of_the_model(saved, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    path = saved({"model": STATE, "optimizer": {"state": {}, "lr": 0.1}, "lr_scheduler": {"last_epoch": 1}})
    assert open_checkpoint(path).config == {"model_type": "bert"}


def tensor(*shape: int) -> Tensor:
    return Tensor(Storage("F32", "0", 0), "F32", 0, shape, tuple(1 for _ in shape))


def places(value) -> set[str]:
    """Where the tensors of more than one item stand, by recursion."""
    if isinstance(value, Tensor):
        return {""} if value.shape == (2,) else set()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {f".{name}{rest}" for name, inner in items for rest in places(inner)}


VALUES = st.recursive(
    st.builds(tensor) | st.builds(tensor, st.sampled_from([1, 2])) | st.none() | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["net", "x", "optimizer", "state_dict", "model"]), VALUES))
def test_every_tensor_is_taken_or_named_or_of_training(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "model.pt"
    try:
        found = chosen(path, value, None)
    except CheckpointError:
        return
    taken = next((name for name in ("model", "state_dict") if value.get(name) is found), None)
    rest = {name: inner for name, inner in value.items() if name not in (taken, "optimizer")}
    assert all(isinstance(inner, Tensor) for inner in found.values())
    assert found is value or not places(rest)


def test_values_that_hold_themselves_or_are_held_often_take_no_time(tmp_path):
    endless: list = []
    endless.append(endless)
    doubled: object = ()
    for _ in range(60):
        doubled = (doubled, doubled)
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    value = {
        "model": {"w": tensor(2)},
        "endless": endless,
        "doubled": doubled,
        "deep": deep,
        "x" * 10**6: endless,
    }
    assert set(chosen(tmp_path, value, None)) == {"w"}
    assert settings(value) == {}
    with pytest.raises(CheckpointError, match="would be left out") as caught:
        chosen(tmp_path, {**value, "y" * 10**6: [[tensor(2)]]}, None)
    assert len(str(caught.value)) < 1000
