import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tasks.errors import CheckpointError, TrainingError
from tasks.model import floors

SIZES = {"vocab_size": 61, "num_labels": 3}


def _models():
    torch.manual_seed(0)
    tall = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
    slim = {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40}
    return {
        "bert": BertForSequenceClassification(BertConfig(**SIZES, **tall)),
        "roberta": RobertaForSequenceClassification(RobertaConfig(**SIZES, **tall)),
        "distilbert": DistilBertForSequenceClassification(DistilBertConfig(**SIZES, **slim)),
    }


def test_every_anatomy_is_tested():
    assert _models().keys() == floors.ANATOMIES.keys()


@pytest.mark.parametrize("kind", floors.ANATOMIES)
def test_the_head_on_the_first_token_is_the_stock_classifier(kind):
    model = _models()[kind].eval()
    ids, mask = torch.randint(5, 61, (4, 7)), torch.ones(4, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    stock = model(input_ids=ids, attention_mask=mask).logits
    ours = floors.head_logits(
        model, model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    )
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("kind", floors.ANATOMIES)
def test_every_parameter_is_on_exactly_one_floor(kind):
    model = _models()[kind]
    stack = floors.floors(model)
    assert [floor.name for floor in stack] == ["embeddings", "layer 0", "layer 1", "layer 2", "head"]
    placed = [name for floor in stack for name in floor.parameters]
    assert sorted(placed) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", floors.ANATOMIES)
def test_the_word_table_is_on_the_lowest_floor_and_has_a_row_for_each_token(kind):
    model = _models()[kind]
    name, table = floors.word_table(model)
    assert table is floors.floors(model)[0].parameters[name]
    assert table.shape == (61, 24)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0, ["head"]),
        (1, ["layer 10", "head"]),
        (2, ["layer 9", "layer 10", "head"]),
        ("half", ["layer 6", "layer 7", "layer 8", "layer 9", "layer 10", "head"]),
        ("all", ["embeddings", *(f"layer {i}" for i in range(11)), "head"]),
    ],
)
def test_depth_counts_layers_below_the_head(tiny_bert, depth, expected):
    stack = floors.floors(tiny_bert(layers=11))
    assert [floor.name for floor in floors.learning(stack, depth)] == expected


def test_a_depth_beyond_the_model_is_refused(tiny_bert):
    with pytest.raises(TrainingError, match="depth 5: the model has 4 layers below its head"):
        floors.learning(floors.floors(tiny_bert(layers=4)), 5)


def test_an_unknown_model_type_is_refused_by_name():
    model = GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=24, n_head=3, vocab_size=61))
    with pytest.raises(TrainingError, match="no floors are known for model type 'gpt2'"):
        floors.floors(model)


def test_loading_a_checkpoint_with_a_missing_tensor_is_refused(tiny_bert, tmp_path):
    model = tiny_bert()
    model.save_pretrained(tmp_path)
    tensors = dict(model.state_dict())
    del tensors["bert.encoder.layer.2.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing_keys.*layer\.2\.output\.dense\.weight"):
        floors.load(tmp_path)


def test_a_head_of_another_size_is_refused(tiny_bert, tmp_path):
    head = {name: value.detach() for name, value in floors.floors(tiny_bert(labels=5))[-1].parameters.items()}
    save_file(head, tmp_path / "head")
    with pytest.raises(CheckpointError, match=r"classifier\.bias"):
        floors.with_head(tiny_bert(labels=3), tmp_path / "head")


def test_a_head_is_placed_whole(tiny_bert, tmp_path):
    source, target = tiny_bert(seed=1), tiny_bert(seed=2)
    head = {name: value.detach() for name, value in floors.floors(source)[-1].parameters.items()}
    save_file(head, tmp_path / "head")
    floors.with_head(target, tmp_path / "head")
    first = torch.randn(2, 24)
    assert torch.equal(floors.head_logits(source, first), floors.head_logits(target, first))
