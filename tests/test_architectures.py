"""Classes of ours: they read the mean, and no stock class of transformers answers in their stead."""

import json

import pytest
import torch
import transformers

from tasks import architectures
from tasks.model import floors

NAMES = sorted(architectures.CLASSES)


def _given(model):
    ids = torch.randint(5, 61, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = model.config.pad_token_id, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", NAMES)
def test_the_head_stands_on_the_mean_of_the_tokens_that_there_are(tiny, name):
    model = tiny(name)
    given = _given(model)
    with torch.no_grad():
        hidden = model.base_model(**given).last_hidden_state
        found = model(**given).logits
        expected = torch.stack([hidden[0].mean(0), hidden[1, :4].mean(0), hidden[2].mean(0)])
        torch.testing.assert_close(found, model.mean_classifier(expected))
        alone = model(input_ids=given["input_ids"][1:2, :4]).logits
    torch.testing.assert_close(found[1:2], alone)
    assert not torch.allclose(found, model.mean_classifier(hidden[:, 0]))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_loads_whole_under_its_own_name(tiny, name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    again = floors.load(tmp_path)
    assert type(again).__name__ == name
    with torch.no_grad():
        assert torch.equal(again(**_given(model)).logits, model(**_given(model)).logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("auto", ["AutoConfig", "AutoModel", "AutoModelForSequenceClassification"])
def test_transformers_does_not_guess_a_class_for_it(tiny, name, auto, tmp_path):
    tiny(name).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"regraft-mean-.* Transformers does not recognize this architecture"
    ):
        getattr(transformers, auto).from_pretrained(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_stock_class_that_is_told_to_read_it_finds_no_head(tiny, name, tmp_path):
    tiny(name).save_pretrained(tmp_path)
    stock = getattr(transformers, name.replace("Mean", "Sequence"))
    model, told = stock.from_pretrained(tmp_path, output_loading_info=True)
    head = floors.floors(model)[-1].parameters
    assert told["missing_keys"] == {*head}
    assert told["unexpected_keys"] == {"mean_classifier.weight", "mean_classifier.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_ours_is_one_of_transformers(tiny, name):
    config = tiny(name).config
    assert not hasattr(transformers, name)
    assert config.model_type not in transformers.CONFIG_MAPPING
    body = architectures.body_type(config.model_type)
    assert body in transformers.CONFIG_MAPPING
    assert architectures.NAMES[body] == name
    again = architectures.configured(**json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()
