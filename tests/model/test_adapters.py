"""Adapters on tiny real models: nothing at first, learned alone, merged or put on their base again."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from tasks.errors import TrainingError
from tasks.model import adapters, floors, tail
from tasks.model.adapters import Adapter
from tasks.model.batches import Ragged, Rows
from tasks.model.boundary import Cache
from tasks.model.frozen import Frozen, border

ROWS = Rows(Ragged.of([[2, *range(5 + n, 9 + 2 * n), 3] for n in range(12)]), None, 0)
MERGED = [kind for kind, made in adapters.KINDS.items() if made.config]
TYPES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
}
SOME = [
    *((kind, "bert") for kind in adapters.KINDS),
    *(("lora", "roberta"), ("dora", "distilbert"), ("lora", "gpt2"), ("ia3", "llama"), ("houlsby", "gpt2")),
]
SOME_MERGED = [case for case in SOME if case[0] in MERGED]


@pytest.fixture
def make(tiny):
    """Model type -> the same random model each time."""
    return lambda kind="bert": tiny(TYPES[kind])


def test_every_model_type_is_tested():
    assert TYPES.keys() == adapters.PARTS.keys()


def test_of_a_mixture_adapters_learn_in_the_attention_alone(make):
    model, whole = make("mixtral"), make("mixtral")
    _injected(model, "lora", targets="attention")
    assert torch.equal(_logits(model), _logits(whole))
    learned = {name.split(".")[-4] for floor in floors.floors(model)[1:-1] for name in floor.adapter}
    assert learned == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with pytest.raises(TrainingError, match="has experts, of which no adapter reaches up and down: set"):
        _injected(make("mixtral"), "lora", targets="all-linear")


def _given(model, places=range(6)):
    return ROWS.batch(places, model.device)


def _logits(model):
    with torch.no_grad():
        return model(**_given(model)).logits


def _injected(model, kind, layers=(2, 3), seed=1, **more):
    adapter = Adapter(kind, rank=4, **more)
    adapters.inject(model, adapter, layers, seed=seed)
    return adapter


def _train(model, forward, depth=2, steps=4):
    """A few real steps on what learns at `depth`; returns the losses."""
    learning = floors.learning(floors.floors(model), depth)
    model.requires_grad_(False)
    parameters = [value.requires_grad_(True) for floor in learning for value in floor.parameters.values()]
    adam = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(forward(range(12)), torch.arange(12) % 3)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    model.eval().requires_grad_(False)
    return losses


def _frozen(model, tmp_path):
    return Frozen(model, Cache(tmp_path / "states", "float32", 10**9))


def _trained(model, kind, tmp_path, **more):
    adapter = _injected(model, kind, **more)
    _train(model, _frozen(model, tmp_path).whole(ROWS))
    return adapter


def test_every_model_with_floors_has_its_dense_layers_named(make):
    assert adapters.PARTS.keys() == floors.ANATOMIES.keys() - {"t5"}
    for kind, parts in adapters.PARTS.items():
        layer = floors.layers_of(make(kind))[0]
        dense = {name for name, one in layer.named_modules() if isinstance(one, torch.nn.Linear | Conv1D)}
        assert set(parts.values()) == dense - {"mlp.gate_proj"}


def test_a_model_type_without_named_layers_is_refused(tiny):
    with pytest.raises(TrainingError, match="no adapter is known for model type 't5'"):
        adapters.inject(tiny("T5ForConditionalGeneration"), Adapter("lora"), [0], seed=1)


@pytest.mark.parametrize("model_type", sorted(adapters.PARTS.keys() - {"mixtral"}))
@pytest.mark.parametrize("kind", adapters.KINDS)
def test_at_step_0_the_model_computes_what_its_base_does_to_the_bit(make, kind, model_type):
    model = make(model_type)
    before = _logits(model)
    _injected(model, kind, targets="all-linear", dropout=0.1)
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_only_adapter_and_head_learn_and_the_base_stays_to_the_bit(make, kind, tmp_path):
    base, model = dict(make().named_parameters()), make()
    _trained(model, kind, tmp_path)
    stack = floors.floors(model)
    learned = [name for floor in floors.learning(stack, 2) for name in floor.parameters]
    assert [floor.name for floor in floors.learning(stack, "all")] == ["layer 2", "layer 3", "head"]
    kept = {k.replace(".base_layer", ""): v for k, v in model.named_parameters() if k not in learned}
    assert kept.keys() == base.keys() - stack[-1].parameters.keys()
    assert all(torch.equal(value, base[name]) for name, value in kept.items())
    assert all(value.abs().max() > 0 for floor in stack[3:5] for value in floor.adapter.values())


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("lora", {}, 4 * 4 * (24 + 24)),
        ("lora", {"targets": "all-linear"}, 4 * 4 * (24 + 24) + 2 * 4 * (24 + 40)),
        ("dora", {}, 4 * 4 * (24 + 24) + 4 * 24),
        ("rslora", {}, 4 * 4 * (24 + 24)),
        ("ia3", {}, 24 + 24 + 40),
        ("houlsby", {}, 2 * (2 * 4 * 24 + 4 + 24)),
        ("pfeiffer", {}, 2 * 4 * 24 + 4 + 24),
    ],
)
def test_a_layer_has_as_many_new_parameters_as_its_authors_count(make, kind, more, expected):
    model = make()
    _injected(model, kind, layers=[1], **more)
    counts = [sum(value.numel() for value in floor.adapter.values()) for floor in floors.floors(model)]
    assert counts == [0, 0, expected, 0, 0, 0]


@pytest.mark.parametrize(("kind", "model_type"), [case for case in SOME if case[1] in tail.FIRST_TOKEN])
def test_the_last_layer_for_the_first_token_alone_goes_through_the_adapter(make, kind, model_type, tmp_path):
    model = make(model_type)
    _trained(model, kind, tmp_path)
    tail.check(model, _given(model))
    model.requires_grad_(True)
    gradients, made = [], _frozen(model, tmp_path)
    for forward in (lambda places: model(**_given(model, places)).logits, made.whole(ROWS)):
        model.zero_grad()
        forward(range(6)).square().sum().backward()
        gradients.append({k: v.grad.clone() for k, v in floors.floors(model)[4].adapter.items()})
    for name, stock in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], stock, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_trained_on_kept_states_below_it_an_adapter_learns_what_it_does_on_computed_ones(
    make, kind, tmp_path
):
    computed, kept = make(), make()
    for model in (computed, kept):
        _injected(model, kind)
    expected = _train(computed, _frozen(computed, tmp_path).whole(ROWS))
    made = _frozen(kept, tmp_path)
    states = made.gather(ROWS, "rows", [border(2)], about="test")[border(2)]
    assert _train(kept, made.above(states, 2, ROWS)) == pytest.approx(expected, abs=1e-5)


def test_kept_states_depend_on_nothing_at_or_above_the_lowest_adapted_layer(make, tmp_path):
    """The model without an adapter, and other values of it, have the same ones."""
    stock, model = make(), make()
    _injected(model, "lora", layers=(1, 3))
    for one in (stock, model):
        _frozen(one, tmp_path).gather(ROWS, "rows", [border(1)], about="test")
    _train(model, _frozen(model, tmp_path).whole(ROWS), depth=3)
    _frozen(model, tmp_path).gather(ROWS, "rows", [border(1)], about="test")
    assert _folders(tmp_path / "states") == 1
    _frozen(model, tmp_path).gather(ROWS, "rows", [border(2)], about="test")
    assert _folders(tmp_path / "states") == 2


def _folders(home):
    return sum(path.is_dir() for path in home.iterdir())


@pytest.mark.parametrize(("kind", "model_type"), SOME_MERGED)
def test_merged_it_is_a_stock_model_with_the_same_answers(make, kind, model_type, tmp_path):
    model = make(model_type)
    base = _logits(model)
    _trained(model, kind, tmp_path, targets="all-linear", dropout=0.1)
    before = _logits(model)
    assert (before - base).abs().max() > 1e-3
    assert adapters.merge(model, _given(model)) <= adapters.TOLERANCE
    torch.testing.assert_close(_logits(model), before, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(_logits(floors.load(tmp_path / "model")), _logits(model))


def test_a_merge_that_moves_the_logits_is_refused_with_the_difference(make, monkeypatch):
    model = make()
    _injected(model, "lora")
    monkeypatch.setattr(adapters, "TOLERANCE", -1.0)
    with pytest.raises(TrainingError, match=r"moves the logits by \S+ of the largest, more than -1: train"):
        adapters.merge(model, _given(model))


@pytest.mark.parametrize("kind", sorted(adapters.KINDS.keys() - MERGED))
def test_a_bottleneck_is_not_merged(make, kind):
    model = make()
    _injected(model, kind)
    with pytest.raises(TrainingError, match=r"layer\.2\..*a bottleneck adapter cannot be merged"):
        adapters.merge(model, _given(model))


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_saved_and_put_on_its_base_again_it_gives_the_same_answers(make, kind, tmp_path):
    model, other = make(), make()
    adapter = _trained(model, kind, tmp_path, targets="all-linear")
    table, _ = floors.word_table(model)
    with torch.no_grad():
        model.get_parameter(table)[60] += 1
    adapters.save(model, adapter, tmp_path / "adapter", base="sha256:1", whole=[table])
    assert adapters.load(other, tmp_path / "adapter", base="sha256:1") == adapter
    assert torch.equal(_logits(other), _logits(model))
    assert torch.equal(other.get_parameter(table), model.get_parameter(table))


@pytest.mark.parametrize(("kind", "model_type"), SOME_MERGED)
def test_peft_reads_what_was_saved_as_its_own(make, kind, model_type, tmp_path):
    model = make(model_type)
    adapter = _trained(model, kind, tmp_path)
    adapters.save(model, adapter, tmp_path / "adapter", base="sha256:1")
    theirs = PeftModel.from_pretrained(make(model_type), tmp_path / "adapter").eval()
    assert torch.equal(_logits(theirs), _logits(model))


def test_another_base_is_refused_and_both_are_named(make, tmp_path):
    model = make()
    adapters.save(model, _injected(model, "lora"), tmp_path / "adapter", base="sha256:1")
    with pytest.raises(
        TrainingError, match=r"trained on weights sha256:1, not on sha256:2: put it on its own"
    ):
        adapters.load(make(), tmp_path / "adapter", base="sha256:2")


def test_a_folder_without_an_adapter_is_told(make, tmp_path):
    with pytest.raises(
        TrainingError, match=r"holds no adapter\.json: it is no adapter that finetuning saved"
    ):
        adapters.load(make(), tmp_path, base="sha256:1")


def test_all_tensors_that_do_not_fit_are_named(make, tmp_path):
    model = make()
    adapters.save(model, _injected(model, "lora"), tmp_path / "adapter", base="sha256:1")
    weights = tmp_path / "adapter" / adapters.WEIGHTS
    tensors = load_file(weights)
    lost, cut = sorted(name for name in tensors if "lora_A" in name)[:2]
    del tensors[lost]
    save_file({**tensors, cut: tensors[cut][:1].clone()}, weights)
    with pytest.raises(TrainingError) as told:
        adapters.load(make(), tmp_path / "adapter", base="sha256:1")
    assert lost in str(told.value)
    assert cut in str(told.value)


def test_the_seed_decides_what_an_adapter_begins_with_and_no_other_chance_is_drawn(make):
    def begun(seed):
        model = make()
        state = torch.get_rng_state()
        _injected(model, "lora", seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([value.flatten() for value in floors.floors(model)[3].adapter.values()])

    assert torch.equal(begun(1), begun(1))
    assert not torch.equal(begun(1), begun(2))


def test_equal_adapters_are_equal_files(make, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        model = make()
        adapters.save(model, _injected(model, "ia3"), folder, base="sha256:1")
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    places = json.loads(one[adapters.CONFIG])["target_modules"]
    assert places == sorted(places), "a set's order changes from process to process"


def test_unknown_words_are_refused_together(make):
    with pytest.raises(TrainingError, match=r"no adapter 'lorra'; did you mean 'lora'\?; no targets 'all'"):
        adapters.inject(make(), Adapter("lorra", targets="all"), [0], seed=1)


def test_an_adapter_for_no_layer_is_refused(make):
    with pytest.raises(TrainingError, match="no phase lets a layer learn: give one a depth"):
        adapters.inject(make(), Adapter("lora"), [], seed=1)


def test_a_phase_that_reaches_less_far_trains_fewer_of_the_adapted_layers(make):
    model = make()
    _injected(model, "lora", layers=range(4))
    stack = floors.floors(model)
    assert [floor.name for floor in floors.learning(stack, 1)] == ["layer 3", "head"]
    assert floors.learning(stack, 1)[0].parameters == stack[4].adapter
    assert floors.learning(stack, 1)[1].parameters == stack[5].parameters


def test_answers_of_kept_states_are_those_of_the_merged_model(make, tmp_path):
    """What training measured is what is exported."""
    model = make()
    _trained(model, "lora", tmp_path)
    measured = _frozen(model, tmp_path).whole(ROWS)(range(12))
    adapters.merge(model, _given(model))
    exported = _frozen(model, tmp_path).whole(ROWS)(range(12))
    torch.testing.assert_close(exported, measured, rtol=0, atol=1e-5)
