"""How alike states are before and after: what the measure must not see, and what it must."""

import math

import pytest
import torch

from tasks.model import drift
from tasks.model.batches import Ragged, Rows

CLASSES = (
    "BertForSequenceClassification",
    "DistilBertForMaskedLM",
    "DistilBertForMeanClassification",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "RobertaForTokenClassification",
    "T5ForConditionalGeneration",
)
IDS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]]


def _rows(name, ids=IDS):
    held = Ragged.of(ids)
    return Rows(held, None, 0, None, held if name.startswith("T5") else None)


def _features(rows=200, width=6, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_same_features_have_a_cka_of_one():
    assert drift.linear_cka(_features(), _features()) == pytest.approx(1, abs=1e-12)


def test_cka_does_not_see_turns_stretches_and_shifts():
    one, other = _features(), _features() @ _features(6, 9)
    turn, _ = torch.linalg.qr(_features(9, 9, seed=2))
    expected = drift.linear_cka(one, other)
    assert 0.1 < expected < 0.99
    assert drift.linear_cka(one, 7 * other @ turn + 3) == pytest.approx(expected, abs=1e-12)
    assert drift.linear_cka(0.1 * other, one) == pytest.approx(expected, abs=1e-12)


def test_cka_is_the_share_that_the_papers_example_has():
    """Kornblith et al., section 3: features are alike as their examples' likenesses are; by hand for two
    features of which one stays and the other, uncorrelated with it and as long, is exchanged for a third."""
    base = torch.eye(4, dtype=torch.float64)[:, :3] - 0.25
    orthogonal, _ = torch.linalg.qr(base)
    found = drift.linear_cka(orthogonal[:, [0, 1]], orthogonal[:, [0, 2]])
    assert found == pytest.approx(0.5, abs=1e-12)  # 1 / (sqrt(2) * sqrt(2))


def test_features_that_have_nothing_in_common_are_hardly_alike():
    assert drift.linear_cka(_features(5_000), _features(5_000, seed=1)) < 0.01


@pytest.mark.parametrize("name", CLASSES)
def test_what_did_not_learn_has_not_drifted_and_what_lies_above_has(name, tiny):
    model, rows = tiny(name), _rows(name)
    before = drift.states(model, rows)
    layers = [floor for floor in before if floor.startswith("layer")]
    assert layers == [f"layer {number}" for number in range(4)]
    with torch.no_grad():
        layer = drift.floors.layers_of(model)[2]
        for value in layer.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    found = drift.likeness(before, drift.states(model, rows))
    for floor in before.keys() - {"layer 2", "layer 3"}:
        assert found[floor].cka == pytest.approx(1, abs=1e-9)
        assert found[floor].cosine == pytest.approx(1, abs=1e-9)
    assert found["layer 2"].cka < 0.999
    assert found["layer 2"].cosine < 0.999
    assert all(math.isfinite(one.cka) and math.isfinite(one.cosine) for one in found.values())


@pytest.mark.parametrize("name", CLASSES)
def test_the_top_floor_leaves_what_the_head_reads(name, tiny):
    model, rows = tiny(name), _rows(name, IDS[:1])
    found = drift.states(model, rows)["layer 3"][0]
    body = drift.tail.tail(model, 0, first_token=False)
    with torch.no_grad():
        expected = body(**rows.batch([0], model.device)).last_hidden_state[0]
    torch.testing.assert_close(found, expected)


def test_a_text_is_cut_into_passages_without_losing_a_word():
    text = " ".join(f"word{number}" for number in range(70))
    passages = drift.passages(text)
    assert [len(passage.split()) for passage in passages] == [32, 32, 6]
    assert " ".join(passages) == text
