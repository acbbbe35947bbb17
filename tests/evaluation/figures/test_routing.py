"""Expert load and what experts know of domains, against cases computed by hand and transformers' own routers."""

import math

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from tasks.evaluation.figures.routing import information, routed, tallied


@pytest.mark.parametrize(
    ("table", "bits"),
    [
        ([[5, 0], [0, 5]], 1.0),  # the expert is the domain
        ([[4, 4], [2, 2]], 0.0),  # independent
        ([[2, 0, 0], [0, 2, 0], [0, 0, 2]], math.log2(3)),
        ([[3, 1], [1, 3]], 1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)),  # 1 - H(1/4)
        ([[3, 0], [1, 0]], 0.0),  # an expert that reads nothing
    ],
)
def test_information_is_that_of_the_table(table, bits):
    assert information(np.array(table)) == pytest.approx(bits, abs=1e-12)


def test_tokens_are_counted_by_text_and_padding_is_not():
    logits = np.array([[3.0, 1, 2], [0, 5, 4], [9, 0, 1], [1, 2, 3]])  # two texts of two tokens
    mask = np.array([[1, 1], [1, 0]])
    assert tallied(logits, mask, 1).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert tallied(logits, mask, 2).tolist() == [[1, 1, 2], [1, 0, 1]]


def logits_of(experts, count=2):
    """One layer that sends each token to the expert given."""
    return np.eye(count)[np.ravel(experts)]


def test_experts_that_know_the_domain_are_told_from_chance():
    domains = np.repeat([0, 1], 10)
    mask = np.ones((20, 4), dtype=int)
    apart = logits_of(np.repeat(domains, 4))
    alike = logits_of([[0, 1, 0, 1]] * 20)
    know, ignore = routed([apart, alike], mask, domains, chosen=1, seed=3)
    assert know.bits == pytest.approx(1)
    assert know.p_value == 1 / 1000
    assert know.chance < 0.2
    assert know.table.tolist() == [[40, 0], [0, 40]]
    assert (ignore.bits, ignore.p_value) == (pytest.approx(0), 1)
    assert ignore.load.tolist() == [0.5, 0.5]


def test_texts_that_keep_to_one_expert_are_no_evidence_by_their_tokens():
    """Four texts: a third of the ways to deal out two domains fit as well, however many tokens there are."""
    domains, mask = np.array([0, 0, 1, 1]), np.ones((4, 500), dtype=int)
    (layer,) = routed([logits_of(np.repeat(domains, 500))], mask, domains, chosen=1, seed=3)
    assert layer.p_value == pytest.approx(1 / 3, abs=0.05)


def test_loads_are_shares_of_tokens_without_padding():
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    logits = np.tile([[2.0, 1, 0]], (6, 1))
    (layer,) = routed([logits], mask, np.array([0, 1]), chosen=2, seed=0)
    assert layer.load.tolist() == [1, 1, 0]
    assert layer.table.tolist() == [[2, 2, 0], [1, 1, 0]]


def test_the_experts_are_those_that_transformers_chooses():
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=37, num_local_experts=5)
    model, asked = MixtralForCausalLM(config).eval(), []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, __, found: asked.append(found[2].numpy()))
    ids, mask = torch.arange(21).reshape(3, 7), torch.ones(3, 7, dtype=torch.int64)
    mask[2, 4:] = 0
    with torch.no_grad():
        found = model(ids, attention_mask=mask, output_router_logits=True).router_logits
    for logits, experts in zip(found, asked, strict=True):
        rows = experts.reshape(3, 7, 2)
        expected = [np.bincount(rows[text][mask[text].bool()].ravel(), minlength=5) for text in range(3)]
        assert tallied(logits.numpy(), mask.numpy(), 2).tolist() == np.array(expected).tolist()
