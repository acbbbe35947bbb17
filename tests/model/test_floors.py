import pytest
import torch
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForSequenceClassification

from tasks import architectures
from tasks.errors import CheckpointError, TrainingError
from tasks.model import floors, heads, tail

NAMES = sorted(heads.HEADS)


def test_every_anatomy_is_tested(tiny):
    assert {floors.body_type(tiny(name)) for name in NAMES} == floors.ANATOMIES.keys()


def _given():
    ids, mask = torch.randint(5, 61, (4, 7), generator=torch.Generator().manual_seed(1)), torch.ones(4, 7)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask.long()}


def _stock(answer):
    """The logits of every class, those of question answering side by side."""
    if hasattr(answer, "start_logits"):
        return torch.stack([answer.start_logits, answer.end_logits], dim=-1)
    return answer.logits


@pytest.mark.parametrize("name", NAMES)
def test_the_head_on_the_states_it_reads_is_the_stock_class(tiny, name):
    model, given = tiny(name), _given()
    if model.config.is_encoder_decoder:
        given |= {f"decoder_{key}": value[:, :4] for key, value in given.items()}
    read = heads.head_of(model).read
    if read == "last":  # which the stock class finds by its padding
        given["input_ids"][given["attention_mask"] == 0] = model.config.pad_token_id
    with torch.no_grad():
        stock = _stock(model(**given))
        states = tail.tail(model, 0, first_token=False)(**given).last_hidden_state
        if read == "each":
            states = states.flatten(0, 1)
        elif read == "mean":
            states = architectures.mean(states, given["attention_mask"])
        else:
            places = {"first": torch.zeros(4), "last": given["attention_mask"].sum(dim=1) - 1}[read]
            states = states[torch.arange(4), places.long()]
        ours = floors.head_logits(model, states)
    torch.testing.assert_close(ours.view_as(stock), stock, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_on_exactly_one_floor(tiny, name):
    model = tiny(name)
    stack = floors.floors(model)
    assert [floor.name for floor in stack] == ["embeddings", *(f"layer {i}" for i in range(4)), "head"]
    placed = [name for floor in stack for name in floor.parameters]
    assert sorted(placed) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_word_table_is_on_the_lowest_floor_and_has_a_row_for_each_token(tiny, name):
    model = tiny(name)
    name, table = floors.word_table(model)
    assert table is floors.floors(model)[0].parameters[name]
    assert table.shape == (61, 24)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "T5ForConditionalGeneration"])
def test_a_head_that_is_the_word_table_cannot_learn_alone(tiny, name):
    stack = floors.floors(tiny(name, tie_word_embeddings=True))
    assert not stack[-1].parameters
    with pytest.raises(TrainingError, match="this head shares its weights with the embeddings"):
        floors.learning(stack, 0)
    assert [floor.name for floor in floors.learning(stack, 1)] == ["layer 3"]


def test_what_closes_a_list_of_layers_learns_with_its_last(tiny):
    t5 = floors.floors(tiny("T5ForConditionalGeneration"))
    closing = [name for floor in t5 for name in floor.parameters if "final_layer_norm" in name]
    assert closing == ["encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"]
    assert closing[0] in t5[2].parameters
    assert closing[1] in t5[4].parameters
    assert "model.norm.weight" in floors.floors(tiny("LlamaForCausalLM"))[4].parameters


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


@pytest.mark.parametrize("name", NAMES)
def test_feed_forward_networks_alone_are_what_reads_and_makes_their_inner_states(tiny, name):
    model = tiny(name)
    wide = {path for path, value in model.named_parameters() if 40 in value.shape}
    modules = {path.rpartition(".")[0] for path in wide}
    expected = {path for path, _ in model.named_parameters() if path.rpartition(".")[0] in modules}
    stack = floors.floors(model)
    learning = floors.learning(stack, "all", only="feed-forward")
    assert [floor.name for floor in learning] == [f"layer {number}" for number in range(4)]
    assert {path for floor in learning for path in floor.parameters} == expected
    upper = floors.learning(stack, 1, only="feed-forward")
    assert [floor.name for floor in upper] == ["layer 3"]
    assert upper[0].modules == stack[4].modules


def test_routers_alone_are_what_chooses_among_experts(tiny):
    learning = floors.learning(floors.floors(tiny("MixtralForCausalLM")), 2, only="router")
    names = [f"model.layers.{number}.mlp.gate.weight" for number in (2, 3)]
    assert [name for floor in learning for name in floor.parameters] == names
    with pytest.raises(TrainingError, match="none of 4 layers has a router part that would learn"):
        floors.learning(floors.floors(tiny("LlamaForCausalLM")), 2, only="router")


def test_half_of_one_layer_has_nothing_that_could_learn_alone(tiny_bert):
    with pytest.raises(
        TrainingError, match="depth half: none of 1 layers has a feed-forward part that would"
    ):
        floors.learning(floors.floors(tiny_bert(layers=1)), "half", only="feed-forward")


def test_a_depth_beyond_the_model_is_refused(tiny_bert):
    with pytest.raises(TrainingError, match="depth 5: the model has 4 layers below its head"):
        floors.learning(floors.floors(tiny_bert(layers=4)), 5)


def test_an_unknown_model_type_is_refused_by_name():
    sizes = {"num_hidden_layers": 1, "hidden_size": 24, "ffn_dim": 40, "num_attention_heads": 3}
    model = OPTForSequenceClassification(OPTConfig(vocab_size=61, word_embed_proj_dim=24, **sizes))
    with pytest.raises(TrainingError, match="no floors are known for model type 'opt'"):
        floors.floors(model)


def test_an_unknown_class_is_refused_by_name(tiny_bert):
    model = tiny_bert()
    model.__class__ = type("BertForRegression", (type(model),), {})
    with pytest.raises(TrainingError, match="BertForRegression cannot be fine-tuned"):
        floors.floors(model)


def test_a_config_that_names_no_class_is_refused(tiny_bert, tmp_path):
    model = tiny_bert()
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("BertForSequenceClassification", "BertForNothing"))
    with pytest.raises(CheckpointError, match=r"names no class of transformers .*BertForNothing"):
        floors.load(tmp_path)


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
