"""What keeps the loads of a mixture's experts even, and what counts them, on a tiny real Mixtral."""

import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tasks.model.batches import Ragged, Rows, sorted_batches
from tasks.model.routers import Balance, Reads, present

ROWS = Rows(Ragged.of([[2, *range(5 + n, 9 + 2 * n), 3] for n in range(6)]), None, 0)
EXPERTS, CHOSEN = 5, 2


@pytest.fixture
def model(tiny):
    return tiny("MixtralForCausalLM", initializer_range=0.5)


def _forward(model):
    return lambda places: model(**ROWS.batch(places, model.device), output_router_logits=True)


def _lengths(places):
    return [ROWS.lengths[place] for place in places]


def test_one_layers_loss_is_transformers_own(model):
    for layer in model.model.layers[:-1]:
        layer.mlp.gate.requires_grad_(False)
    balance, places = Balance(model, 0.5), [0, 5, 3]
    answer = balance.heard(_forward(model))(places)
    mask = ROWS.batch(places, model.device)["attention_mask"]
    expected = load_balancing_loss_func(answer.router_logits[-1:], EXPERTS, CHOSEN, mask)
    torch.testing.assert_close(balance.loss(_lengths(places)), 0.5 * expected)


def test_layers_count_alike_and_none_for_another(model):
    """Where one layer sends all to one expert and another all to the next, none is even."""
    places = range(6)
    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(_leaning(number))
    balance = Balance(model, 1.0)
    balance.heard(_forward(model))(places)
    assert balance.loss(_lengths(places)).item() == pytest.approx(EXPERTS, rel=1e-3)


def _leaning(number):
    """Nearly all of the probability for two neighbours."""

    def hook(_, __, answer):
        logits = torch.full_like(answer[0], -20.0)
        logits[:, [number, number + 1]] = 20.0
        return logits.requires_grad_(), answer[1], answer[2]

    return hook


def test_nothing_is_heard_where_no_router_learns(model, tiny):
    balance = Balance(model, 1.0)
    with torch.no_grad():
        balance.heard(_forward(model))([0, 1])
    assert balance.loss(_lengths([0, 1])) == 0
    model.requires_grad_(False)
    balance.heard(_forward(model))([0, 1])
    assert balance.loss(_lengths([0, 1])) == 0
    assert present(model)
    assert not present(tiny("LlamaForCausalLM"))


def test_a_layer_that_is_computed_twice_is_heard_once_and_not_held(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    balance = Balance(model, 1.0)
    answer = balance.heard(_forward(model))([0, 1])
    (answer.logits.sum() + balance.loss(_lengths([0, 1]))).backward()
    assert balance._said == []


def test_steps_down_the_loss_even_the_loads(model):
    """All routers say one thing at first; they alone learn, of the balance alone."""
    model.requires_grad_(False)
    routers = [layer.mlp.gate.weight.requires_grad_() for layer in model.model.layers]
    balance, places = Balance(model, 1.0), range(6)
    optimizer, found = torch.optim.Adam(routers, lr=0.05), []
    for _ in range(60):
        balance.heard(_forward(model))(places)
        loss = balance.loss(_lengths(places))
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[0] > 1.1 * CHOSEN
    assert found[-1] == pytest.approx(CHOSEN, rel=0.05)


def _batches(rows):
    return sorted_batches(rows, batch_size=4, pad=0)


def _answered(model, rows, batches):
    for _, given in batches(rows):
        with torch.no_grad():
            model(**given)


def test_reads_are_of_the_experts_that_transformers_chooses_in_each_row_without_padding(model):
    rows = {"input_ids": [[2, *range(5 + n, 9 + 2 * n), 3] for n in range(6)]}
    reads = Reads(model, 6)
    _answered(model, rows, reads.heard(_batches))
    assert reads.chosen == CHOSEN
    for number, ids in enumerate(rows["input_ids"]):
        with torch.no_grad():
            said = model(torch.tensor([ids]), output_router_logits=True).router_logits
        for layer, logits in enumerate(said):
            experts = logits.topk(CHOSEN, dim=-1).indices.flatten()
            assert reads.counts[layer, number].tolist() == torch.bincount(experts, minlength=EXPERTS).tolist()


def test_rows_that_are_not_heard_are_not_counted(model, tiny):
    rows, reads = {"input_ids": [[2, 7, 3], [2, 9, 11, 3]]}, Reads(model, 2)
    _answered(model, rows, _batches)
    assert not reads.counts.any()
    _answered(model, rows, reads.heard(_batches))
    before = reads.counts.copy()
    _answered(model, {"input_ids": [[2, 20, 21, 22, 3]]}, _batches)
    assert np.array_equal(reads.counts, before)
    assert before.sum() == len(model.model.layers) * CHOSEN * 7
    none = Reads(tiny("LlamaForCausalLM"), 2)
    assert (none.counts.shape, none.chosen) == ((0, 2, 0), 0)
