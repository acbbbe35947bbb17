"""Rows end to end give the numbers and the gradients of the stock model, whatever their lengths."""

import pytest
import torch

from tasks.errors import TrainingError
from tasks.model import dropout, floors, packed


def _logits(model, given):
    hidden, spans = packed.embedded(model, given)
    return floors.head_logits(model, packed.states(model, hidden, spans, start=0, first_token=True))


def test_every_token_and_the_first_ones_are_the_stock_models(model, given):
    with torch.no_grad():
        stock = model.base_model(**given).last_hidden_state
        hidden, spans = packed.embedded(model, given)
        every = spans.padded(packed.states(model, hidden, spans, start=0))
        torch.testing.assert_close(every, stock * given["attention_mask"][..., None], rtol=0, atol=1e-5)
        torch.testing.assert_close(_logits(model, given), model(**given).logits, rtol=0, atol=1e-5)
    packed.check(model, given)


def test_gradients_are_those_of_the_stock_model(model, given):
    model(**given).logits.square().sum().backward()
    expected = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    _logits(model, given).square().sum().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_what_enters_a_layer_gives_what_leaves_those_above(model, given):
    with torch.no_grad():
        hidden, spans = packed.embedded(model, given)
        seen = {2: None}
        whole = packed.states(model, hidden, spans, start=0, seen=seen)
        below = packed.states(model, hidden, spans, start=0, stop=2)
        assert torch.equal(below, seen[2])
        assert torch.equal(packed.states(model, below, spans, start=2), whole)


def test_a_layer_that_computes_something_else_is_refused(model, given, monkeypatch):
    kind = model.config.model_type
    stock = packed.LAYERS[kind]
    monkeypatch.setitem(packed.LAYERS, kind, lambda *parts: stock(*parts) + 1)
    with pytest.raises(TrainingError, match="computed without padding differs by"):
        packed.check(model, given)


def test_another_attention_than_the_known_one_is_left_to_transformers(model):
    model.set_attn_implementation("eager")
    assert not packed.known(model)


def test_dropout_reaches_every_place_where_the_stock_model_has_it(model, given):
    """With everything dropped only biases and norms are left, in ours as in transformers'."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 1.0
    model.train()
    with torch.no_grad():
        stock = model.base_model(**given).last_hidden_state[given["attention_mask"].bool()]
        hidden, spans = packed.embedded(model, given)
        torch.testing.assert_close(packed.states(model, hidden, spans, start=0), stock, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_alike_forth_and_back(share):
    torch.manual_seed(0)
    value = torch.ones(400, 250, requires_grad=True)
    kept = dropout.drop(value, share)
    kept.sum().backward()
    assert torch.equal(value.grad, kept)
    scale = kept.max().item()
    assert set(kept.unique().tolist()) == {0.0, scale}
    assert scale == pytest.approx(1 / (1 - share), rel=1e-4)
    assert (kept == 0).float().mean().item() == pytest.approx(share, abs=0.005)  # 5 standard errors


def test_dropout_is_drawn_again_alike_from_the_same_state():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(dropout.drop(torch.ones(7, 5), 0.5))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], dropout.drop(torch.ones(7, 5), 0.5))
