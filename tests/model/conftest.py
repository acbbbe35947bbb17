"""A random classifier of every kind whose layers are known, and rows of several lengths for it."""

import pytest
import torch


@pytest.fixture(params=["Bert", "Roberta", "DistilBert"])
def model(request, tiny):
    return tiny(f"{request.param}ForSequenceClassification")


@pytest.fixture
def given(model):
    ids = torch.randint(5, 61, (5, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 7, 4, 9, 2)):
        ids[row, length:], mask[row, length:] = model.config.pad_token_id, 0
    return {"input_ids": ids, "attention_mask": mask}
