import pytest
import torch
from torch import nn

from tasks.errors import TrainingError
from tasks.training import updates


def _stack():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    return model, [(f"floor {i}", dict(layer.named_parameters())) for i, layer in enumerate(model)]


def test_each_floor_further_down_learns_at_a_share_of_the_one_above():
    _, stack = _stack()
    groups = updates.groups(stack, learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    rates = {group.floor: group.learning_rate for group in groups}
    assert rates == {"floor 2": 1.0, "floor 1": 0.5, "floor 0": 0.25}


def test_only_matrices_are_decayed():
    _, stack = _stack()
    groups = updates.groups(stack, learning_rate=1.0, layer_decay=1.0, weight_decay=0.1)
    decayed = {name: group.weight_decay for group in groups for name in group.parameters}
    assert decayed == {"weight": 0.1, "bias": 0.0}


def test_an_optimizer_that_misses_a_learning_parameter_is_refused():
    model, stack = _stack()
    adam = updates.optimizer(updates.groups(stack[1:], learning_rate=1.0, layer_decay=1.0, weight_decay=0.0))
    with pytest.raises(TrainingError, match=r"the optimizer misses \['0.bias', '0.weight'\]"):
        updates.assert_same(adam, model)
    model[0].requires_grad_(False)
    updates.assert_same(adam, model)


def test_set_rate_scales_every_group_and_returns_the_highest():
    _, stack = _stack()
    adam = updates.optimizer(updates.groups(stack, learning_rate=0.1, layer_decay=0.5, weight_decay=0.0))
    assert updates.set_rate(adam, 0.5) == pytest.approx(0.05)
    assert isinstance(adam, torch.optim.AdamW)
    assert sorted({group["lr"] for group in adam.param_groups}) == pytest.approx([0.0125, 0.025, 0.05])
