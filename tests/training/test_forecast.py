"""The arithmetic against what really happens: models are built, trained for a step, and measured."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from flows.commands.finetuning import outlined
from tasks.model import adapters, floors
from tasks.params import FinetuningParams, Phase
from tasks.training import updates
from tasks.training.forecast import MOMENTS, Lengths, Schedule, forecast
from tasks.weights.formats import open_checkpoint

REPOSITORY = Path(__file__).parents[2]
ROWS = Lengths([5, 9, 7, 3] * 10, [4, 8])
TALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
SLIM = {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40}
CLASSES = {
    "bert": lambda: BertForSequenceClassification(BertConfig(vocab_size=61, num_labels=3, **TALL)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(vocab_size=61, num_labels=3, **TALL)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=61, num_labels=3, **SLIM)
    ),
}


TELLING = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration")
LANGUAGE = sorted(
    [*TELLING, "BertForTokenClassification", "DistilBertForSequenceClassification",
     "GPT2ForSequenceClassification", "LlamaForSequenceClassification"]
)  # fmt: skip


@pytest.fixture(scope="module")
def outlines(tmp_path_factory):
    found = {}
    for kind, make in CLASSES.items():
        folder = tmp_path_factory.mktemp(kind)
        make().save_pretrained(folder)
        found[kind] = outlined(open_checkpoint(folder), head=True)
    return found


@pytest.mark.parametrize("name", LANGUAGE)
def test_floors_of_decoders_and_language_models_are_those_of_the_model(name, tiny, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    outline = outlined(open_checkpoint(tmp_path), head=True)
    assert {
        floor.name: {n: tuple(p.shape) for n, p in floor.parameters.items()} for floor in floors.floors(model)
    } == {n: {key: tensor.shape for key, tensor in found.items()} for n, found in outline.floors.items()}
    heads = 6 if name.startswith("Llama") else 3
    assert (outline.layers, outline.width, outline.inner, outline.heads) == (4, 24, 40, heads)
    assert outline.shared == (not floors.floors(model)[-1].parameters)
    assert outline.words == (61 if name in TELLING else 0)
    assert outline.whole == (name in ("BertForMaskedLM", "T5ForConditionalGeneration"))


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_an_adapter_of_a_decoder_has_as_many_parameters_as_are_put_in(name, kind, tiny, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    outline = outlined(open_checkpoint(tmp_path), head=True)
    for targets in sorted(adapters.TARGETS) if kind != "ia3" else [None]:
        adapted = tiny(name)
        chosen = {"kind": kind} | ({"rank": 5, "targets": targets} if targets else {})
        adapters.inject(adapted, adapters.Adapter(**chosen), [2, 3], seed=0)
        learning = floors.learning(floors.floors(adapted), 2)
        found = _one(outline, {"depth": 2}, adapter=chosen)
        assert found.parameters == sum(v.numel() for floor in learning for v in floor.parameters.values())
        assert found.floors == tuple(floor.name for floor in learning)


def _one(outline, phase, **settings):
    values = {"phases": [{"name": "one", "learning_rate": 1e-4, **phase}], **settings}
    return forecast(Schedule(outline, ROWS, FinetuningParams.model_validate(values)))[0]


@pytest.mark.parametrize("kind", CLASSES)
def test_floors_by_name_are_those_of_the_model(kind, outlines):
    model, outline = CLASSES[kind](), outlines[kind]
    assert {
        floor.name: {n: tuple(p.shape) for n, p in floor.parameters.items()} for floor in floors.floors(model)
    } == {
        name: {n: tensor.shape for n, tensor in tensors.items()} for name, tensors in outline.floors.items()
    }
    assert (outline.layers, outline.width, outline.inner, outline.heads) == (3, 24, 40, 3)


@pytest.mark.parametrize("parts", [(), ("norms",), ("biases",), ("embeddings", "norms")])
@pytest.mark.parametrize("depth", [0, 1, 3, "half", "all"])
@pytest.mark.parametrize("kind", CLASSES)
def test_what_learns_is_what_the_model_lets_learn(kind, depth, parts, outlines):
    learning = floors.learning(floors.floors(CLASSES[kind]()), depth, parts)
    found = _one(outlines[kind], {"depth": depth, "floors": parts, "layer_decay": 0.5})
    assert found.floors == tuple(floor.name for floor in learning)
    assert found.parameters == sum(value.numel() for floor in learning for value in floor.parameters.values())
    groups = updates.groups(
        [(floor.name, floor.parameters) for floor in learning],
        learning_rate=1e-4, layer_decay=0.5, weight_decay=0.0,
    )  # fmt: skip
    rates = [group.learning_rate for group in groups]
    assert found.rates == pytest.approx((min(rates), max(rates)))


@pytest.mark.parametrize("depth", [1, "half", "all"])
@pytest.mark.parametrize("name", [*LANGUAGE, *CLASSES])
def test_feed_forward_networks_that_learn_alone_are_counted(name, depth, tiny, tmp_path):
    _demand_counted(CLASSES[name]() if name in CLASSES else tiny(name), depth, "feed-forward", tmp_path)


@pytest.mark.parametrize("only", ["feed-forward", "router"])
def test_what_of_a_mixture_learns_alone_is_counted(only, tiny, tmp_path):
    _demand_counted(tiny("MixtralForSequenceClassification"), "half", only, tmp_path)


def _demand_counted(model, depth, only, folder):
    model.save_pretrained(folder)
    learning = floors.learning(floors.floors(model), depth, only=only)
    outline = outlined(open_checkpoint(folder), head=True)
    found = _one(outline, {"depth": depth, "only": only, "layer_decay": 0.5})
    assert found.floors == tuple(floor.name for floor in learning)
    assert found.parameters == sum(value.numel() for floor in learning for value in floor.parameters.values())
    assert found.rates == (1e-4 * 0.5 ** (len(learning) - 1), 1e-4)


@pytest.mark.parametrize(
    "adapter",
    [
        *(
            {"kind": kind, "rank": 5, "targets": targets}
            for kind in ("lora", "dora", "rslora")
            for targets in adapters.TARGETS
        ),
        {"kind": "ia3"},
    ],
    ids=lambda adapter: "-".join(map(str, adapter.values())),
)
def test_an_adapter_has_as_many_parameters_as_are_put_in(adapter, outlines):
    model = CLASSES["distilbert"]()
    adapters.inject(model, adapters.Adapter(**adapter), [1, 2], seed=0)
    learning = floors.learning(floors.floors(model), 2)
    found = _one(outlines["distilbert"], {"depth": 2}, adapter=adapter)
    assert found.parameters == sum(value.numel() for floor in learning for value in floor.parameters.values())
    assert found.floors == tuple(floor.name for floor in learning)


def test_new_rows_count_only_where_their_table_does_not_learn(outlines):
    phases = [{"name": f"p{depth}", "depth": depth, "learning_rate": 1e-4} for depth in (0, "all")]
    settings = FinetuningParams.model_validate({"phases": phases})
    without, with_rows = (forecast(Schedule(outlines["bert"], ROWS, settings, fresh)) for fresh in (0, 7))
    assert [b.parameters - a.parameters for a, b in zip(without, with_rows, strict=True)] == [7 * 24, 0]
    assert [one.start for one in with_rows] == [None, None]


def test_unknown_rows_leave_what_does_not_depend_on_them(outlines):
    phases = [
        {"name": "head", "depth": 0, "learning_rate": 1e-3},
        {"name": "few", "depth": 1, "steps": 3, "learning_rate": 1e-4},
    ]
    found = forecast(Schedule(outlines["bert"], None, FinetuningParams.model_validate({"phases": phases})))
    assert [(one.steps, one.states, one.memory) for one in found] == [(None, None, None), (3, None, None)]
    assert found[0].start == 3


@pytest.mark.parametrize("optimizer", MOMENTS)
def test_what_the_optimizer_remembers_is_what_it_holds(optimizer, outlines):
    model = CLASSES["bert"]()
    parameters = {
        name: value for floor in floors.floors(model)[2:] for name, value in floor.parameters.items()
    }
    held = updates.optimizer([updates.Group("all", parameters, 1e-4, 0.0)], kind=optimizer)
    for value in parameters.values():
        value.grad = torch.zeros_like(value)
    held.step()
    kept = sum(v.nbytes for one in updates.moments(held).values() for v in one.values() if v.ndim)
    found = _one(outlines["bert"], {"depth": 2}, optimizer=optimizer).memory
    assert found["optimizer"] == kept
    assert found["gradients"] == sum(value.nbytes for value in parameters.values())


@pytest.mark.parametrize(("rows", "tokens"), [(32, 16), (8, 64)])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_activations_are_within_a_fifth_of_what_pytorch_keeps(kind, rows, tokens, outlines):
    lengths = Lengths([tokens] * rows, [1])
    phase = {"name": "all", "depth": "all", "learning_rate": 1e-4}
    settings = FinetuningParams.model_validate({"phases": [phase], "batch_size": rows})
    memory = forecast(Schedule(outlines[kind], lengths, settings))[0].memory
    assert memory["activations"] == pytest.approx(_kept(CLASSES[kind]().train(), rows, tokens), rel=0.2)


def _kept(model: nn.Module, rows: int, tokens: int) -> int:
    """Bytes of all tensors that a forward pass keeps for the backward one, parameters aside."""
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    seen, alive = {}, []

    def keep(value):
        place = value.untyped_storage().data_ptr()
        if place not in own:
            seen[place] = value.untyped_storage().nbytes()
            alive.append(value)
        return value

    ids, mask = torch.full((rows, tokens), 7), torch.ones(rows, tokens, dtype=torch.int64)
    mask[0, -1] = 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(input_ids=ids, attention_mask=mask)
    return sum(seen.values())


def test_accumulation_and_token_batches_bound_the_activations(outlines):
    phase = {"name": "one", "depth": "all", "learning_rate": 1e-4}
    lengths = Lengths([9, 4] * 200, [9])

    def activations(more, **settings):
        found = FinetuningParams.model_validate({"phases": [phase | more], "batch_size": 400, **settings})
        return forecast(Schedule(outlines["bert"], lengths, found))[0].memory["activations"]

    whole = activations({})
    assert activations({}, accumulation=4) == pytest.approx(whole / 4)
    assert activations({}, accumulation=2, processes=2) == pytest.approx(whole / 4)
    entered = 3 * 400 * 9 * 24 * 4  # layers, rows, tokens, channels, bytes
    assert activations({}, gradient_checkpointing=True) == pytest.approx(whole / 3 + entered)
    assert activations({"batch_tokens": 900}) == pytest.approx(whole / 4)  # a hundred rows of nine


def test_a_depth_beyond_the_model_is_counted_as_the_deepest(outlines):
    phase = Phase(name="one", depth=9, learning_rate=1e-4)
    schedule = Schedule(outlines["bert"], ROWS, FinetuningParams(phases=(phase,)))
    assert schedule.lowest(phase) == -1


def test_a_plan_needs_no_torch():
    code = "import flows.commands.finetuning, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
