"""A tail is the model's own upper part: the same numbers, the same parameters."""

import pytest
import torch

from tasks.errors import TrainingError
from tasks.model import floors, tail


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertForTokenClassification"])
@pytest.mark.parametrize("start", [1, 3])
def test_a_tail_of_any_class_computes_what_the_whole_does_at_every_token(tiny, name, start):
    model = tiny(name)
    ids, mask = torch.randint(5, 61, (5, 9), generator=torch.Generator().manual_seed(1)), torch.ones(5, 9)
    mask[1, 6:] = mask[4, 2:] = 0
    given = {"input_ids": ids, "attention_mask": mask.long()}
    states = _entering(model, given, start) * given["attention_mask"][..., None]
    with torch.no_grad():
        body = tail.tail(model, start, first_token=False)
        hidden = body(inputs_embeds=states, attention_mask=given["attention_mask"]).last_hidden_state
        ours, stock = floors.head_logits(model, hidden), model(**given).logits
    torch.testing.assert_close(ours[mask > 0], stock[mask > 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertForTokenClassification"])
def test_a_body_that_stops_gives_what_enters_the_layer_before_which_it_does(tiny, name):
    model = tiny(name)
    given = {"input_ids": torch.randint(5, 61, (2, 9)), "attention_mask": torch.ones(2, 9).long()}
    with torch.no_grad():
        stopped = tail.tail(model, 0, first_token=False, stop=2)(**given).last_hidden_state
    assert torch.equal(stopped, _entering(model, given, 2))


def _entering(model, given, start):
    with torch.no_grad(), tail.watched(model, [start]) as seen:
        model.base_model(**given)
    return seen[start]


@pytest.mark.parametrize("start", [1, 3])
def test_a_tail_on_what_enters_it_computes_what_the_whole_does(model, given, start):
    with torch.no_grad():
        expected = model(**given).logits
        body = tail.tail(model, start, first_token=False)
        hidden = body(
            inputs_embeds=_entering(model, given, start), attention_mask=given["attention_mask"]
        ).last_hidden_state
        assert torch.equal(floors.head_logits(model, hidden[:, 0]), expected)


def test_padding_that_was_kept_as_zeros_changes_nothing(model, given):
    states = _entering(model, given, 2) * given["attention_mask"][..., None]
    with torch.no_grad():
        body = tail.tail(model, 2, first_token=False)
        hidden = body(inputs_embeds=states, attention_mask=given["attention_mask"]).last_hidden_state
        assert torch.equal(floors.head_logits(model, hidden[:, 0]), model(**given).logits)


@pytest.mark.parametrize("masked", [True, False])
def test_the_last_layer_for_the_first_token_alone_is_the_stock_one(model, given, masked):
    if not masked:
        given = {"input_ids": given["input_ids"]}
    with torch.no_grad():
        hidden = tail.tail(model, 0, first_token=True)(**given).last_hidden_state
        assert hidden.shape[1] == 1
        logits = floors.head_logits(model, hidden[:, 0])
        torch.testing.assert_close(logits, model(**given).logits, rtol=0, atol=1e-6)
    tail.check(model, given)


def test_gradients_through_a_tail_are_those_of_the_whole(model, given):
    model(**given).logits.square().sum().backward()
    expected = {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }
    model.zero_grad()
    body = tail.tail(model, 2, first_token=True)
    hidden = body(inputs_embeds=_entering(model, given, 2), attention_mask=given["attention_mask"])
    floors.head_logits(model, hidden.last_hidden_state[:, 0]).square().sum().backward()
    learned = {name for floor in floors.floors(model)[3:] for name in floor.parameters}
    for name, value in model.named_parameters():
        assert (value.grad is not None) == (name in learned), name
        if name in learned:
            torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_the_model_itself_is_left_as_it_was(model, given):
    before = model(**given).logits
    tail.tail(model, 2, first_token=True)
    with tail.watched(model, [2]):
        pass
    assert torch.equal(model(**given).logits, before)
    assert len(floors.layers_of(model)) == 4
    assert not floors.layers_of(model)[2]._forward_pre_hooks


def test_a_shortened_layer_that_computes_something_else_is_refused(model, given, monkeypatch):
    kind = model.config.model_type
    monkeypatch.setitem(tail.FIRST_TOKEN, kind, lambda layer, hidden, mask: hidden[:, :1] + 1)
    with pytest.raises(TrainingError, match="computed for its first token alone differs by"):
        tail.check(model, given)


def test_another_attention_than_the_known_one_gets_the_stock_layer(model, given):
    model.set_attn_implementation("eager")
    assert tail.tail(model, 0, first_token=True)(**given).last_hidden_state.shape[1] == 9
