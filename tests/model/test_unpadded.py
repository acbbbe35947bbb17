import pytest
import torch

from tasks.errors import TrainingError
from tasks.model import packed, unpadded
from tasks.model.unpadded import Unpadded

KNOWN = (
    "BertForSequenceClassification",
    "DistilBertForSequenceClassification",
    "RobertaForSequenceClassification",
    "BertForMeanClassification",
    "DistilBertForMeanClassification",
    "RobertaForMeanClassification",
)


@pytest.mark.parametrize("name", KNOWN)
def test_logits_are_those_of_the_stock_model(tiny, name):
    model = tiny(name)
    quick = unpadded.quickest(model)
    assert isinstance(quick, Unpadded)
    pad = model.config.pad_token_id
    rows = [[5, 9, 8, 30], [7, 60], [11, 12, 13, 14, 15, 16, 40]]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    given = {"input_ids": ids, "attention_mask": (ids != pad).long()}
    with torch.inference_mode():
        torch.testing.assert_close(quick(**given).logits, model(**given).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["BertForTokenClassification", "GPT2ForSequenceClassification"])
def test_a_model_that_reads_other_tokens_stays_as_it_is(tiny, name):
    model = tiny(name)
    assert unpadded.quickest(model) is model


def test_layers_that_would_compute_otherwise_are_noticed(tiny, monkeypatch):
    other = dict(packed.LAYERS) | {
        "bert": lambda layer, hidden, spans, chosen: hidden if chosen is None else hidden[chosen]
    }
    monkeypatch.setattr(packed, "LAYERS", other)
    with pytest.raises(TrainingError, match="computed without padding differs"):
        unpadded.quickest(tiny("BertForSequenceClassification"))
