"""Adapters of one task as one: what peft's ways hold exactly, what a head becomes, what is refused."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from tasks.errors import InputError, TrainingError
from tasks.model import adapters, floors
from tasks.model.adapters import Adapter
from tasks.model.bank import Bank
from tasks.model.composition import DENSITY, METHODS, Part, compose

BERT = "BertForSequenceClassification"
CLASSES = (BERT, "BertForMeanClassification", "DistilBertForSequenceClassification",
           "GPT2ForSequenceClassification")  # fmt: skip
FEW = {"layers": (1, 3), "rank": 4, "alpha": 6.0}
MORE = {"layers": (2, 3), "rank": 2, "alpha": 8.0, "targets": "all-linear"}


@pytest.fixture
def given():
    ids = torch.randint(5, 61, (5, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 7, 4, 9, 2)):
        mask[row, length:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture
def learned(tiny, tmp_path):
    """Seed -> an adapter that has learned something on the one body there is of each class."""

    def make(
        seed, *, name=BERT, labels=("bad", "fair", "good"), layers=(1, 3), kind="lora", whole=(), **more
    ):
        model = tiny(name)
        model.config.id2label = dict(enumerate(labels))
        adapter = Adapter(kind, **{"rank": 4, **more})
        adapters.inject(model, adapter, layers, seed=seed)
        generator, stack = torch.Generator().manual_seed(seed), floors.floors(model)
        with torch.no_grad():
            for floor in (*stack[1:-1], stack[-1]):
                own = floor.parameters if floor is stack[-1] else floor.adapter
                for value in own.values():
                    value += torch.randn(value.shape, generator=generator) * 0.3
        folder = tmp_path / f"{seed} {kind} {name}"
        adapters.save(model, adapter, folder, base="sha256:1", whole=whole)
        return adapters.read(folder)

    return make


def _parts(*weighed):
    return [Part(f"part {place}", saved, weight) for place, (saved, weight) in enumerate(weighed)]


def _crown(model):
    return [adapters.PREFIX + name for name in floors.floors(model)[-1].parameters]


def _deltas(saved):
    """What it adds to the weight of each layer: scale · B·A (outputs, inputs)."""
    adapter = saved.adapter
    scale = adapter.alpha / (adapter.rank**0.5 if adapter.kind == "rslora" else adapter.rank)
    return {
        name.removesuffix(".lora_A.weight"): scale * saved.tensors[name.replace("lora_A", "lora_B")] @ value
        for name, value in saved.tensors.items()
        if name.endswith("lora_A.weight")
    }


def _answers(model, saved, folder, given):
    adapters.write(model, saved, folder)
    bank = Bank(model)
    bank.load("whole", folder)
    return torch.stack(bank.answer(given, ["whole"] * len(given["input_ids"])))


def _active(model, parts, given):
    """Logits of peft's own forward with both active, under a head that is the mean of theirs."""
    crown = _crown(model)
    for place, one in enumerate(parts):
        below = {name: value for name, value in one.tensors.items() if name not in crown}
        adapters.add(model, replace(one, tensors=below), f"test{place}_")
    for module in adapters.adapted(model).values():
        module.set_adapter([f"test{place}_" for place in range(len(parts))])
    with torch.no_grad():
        for name in crown:
            mean = torch.stack([one.tensors[name] for one in parts]).mean(0)
            model.get_parameter(name.removeprefix(adapters.PREFIX)).copy_(mean)
        return model(**given).logits


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kinds", [("lora", "lora"), ("rslora", "lora"), ("lora", "rslora")])
def test_cat_at_one_and_one_is_both_active_at_once(tiny, learned, given, tmp_path, name, kinds):
    one, other = learned(1, name=name, kind=kinds[0], **FEW), learned(2, name=name, kind=kinds[1], **MORE)
    expected = _active(tiny(name), [one, other], given)
    made = compose(tiny(name), _parts((one, 1), (other, 1)), by="cat")
    assert (made.adapter, made.layers) == (Adapter("lora", 6, 6.0, targets="all-linear"), (1, 2, 3))
    found = _answers(tiny(name), made, tmp_path / "made", given)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    alone = _active(tiny(name), [one], given)
    assert (alone - expected).abs().max() > 1e-2 * expected.abs().max(), "both must matter"


def test_cat_adds_what_each_adds_by_its_weight(tiny, learned):
    one, other = learned(1, **FEW), learned(2, **MORE)
    found = _deltas(compose(tiny(BERT), _parts((one, 0.3), (other, 2)), by="cat"))
    first, second = _deltas(one), _deltas(other)
    assert first.keys() | second.keys() < found.keys()
    for name, value in found.items():
        nothing = torch.zeros_like(value)
        expected = 0.3 * first.get(name, nothing) + 2 * second.get(name, nothing)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(0.25, 0.25), (0.5, 0.5), (0.1, 0.9)])
@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_linear_of_an_adapter_with_itself_adds_it_times_the_square_of_the_roots_sum(
    tiny, learned, weights, kind
):
    """A and B are added up by themselves: only at .25 and .25 is the whole what its parts are."""
    one = learned(1, kind=kind, **FEW)
    found = _deltas(compose(tiny(BERT), _parts(*((one, weight) for weight in weights)), by="linear"))
    factor = sum(weight**0.5 for weight in weights) ** 2
    for name, value in _deltas(one).items():
        torch.testing.assert_close(found[name], factor * value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by", ["ties", "dare_ties"])
def test_ties_that_keeps_everything_makes_an_adapter_of_itself_twice(tiny, learned, by):
    one = learned(1, **FEW)
    made = compose(tiny(BERT), _parts((one, 1), (one, 1)), by=by, density=1)
    for name, value in _deltas(one).items():
        torch.testing.assert_close(_deltas(made)[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("density", "kept"), [(0.25, 0.25), (None, DENSITY)])
def test_ties_keeps_the_largest_values_alone(tiny, learned, density, kept):
    one = learned(1, **FEW)
    made = compose(tiny(BERT), _parts((one, 1), (one, 1)), by="ties", density=density)
    for name, value in one.tensors.items():
        if "lora_" in name:
            stays = made.tensors[name] != 0
            assert stays.sum() == int(kept * value.numel())
            assert value[stays].abs().min() >= value[~stays].abs().max()


@pytest.mark.parametrize("by", ["dare_linear", "dare_ties"])
def test_dare_draws_by_its_seed_and_no_other_chance(tiny, learned, by):
    parts = _parts((learned(1), 1), (learned(2), 1))

    def drawn(seed, chance):
        model = tiny(BERT)
        torch.manual_seed(chance)
        state = torch.get_rng_state()
        made = compose(model, parts, by=by, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return _values(made)

    first = drawn(1, chance=17)
    assert torch.equal(drawn(1, chance=18), first)
    assert not torch.equal(drawn(2, chance=17), first)


def _values(saved):
    return torch.cat([saved.tensors[name].flatten() for name in sorted(saved.tensors) if "lora_" in name])


def test_dare_drops_values_and_makes_up_for_them(tiny, learned):
    one = learned(1, rank=8, layers=(0, 1, 2, 3))
    empty = replace(
        one,
        tensors={
            name: torch.zeros_like(value) if "lora_" in name else value for name, value in one.tensors.items()
        },
    )
    made = compose(tiny(BERT), _parts((one, 1), (empty, 1)), by="dare_linear", density=0.25)
    values, found = _values(one) * (one.adapter.alpha / one.adapter.rank) ** 0.5, _values(made)
    stays = found != 0
    torch.testing.assert_close(found[stays], values[stays] / 0.25)
    assert 0.2 < stays.float().mean() < 0.3


@pytest.mark.parametrize("by", METHODS)
def test_a_head_is_the_mean_by_weights_that_sum_to_one(tiny, learned, by):
    one, other = learned(1), learned(2)
    made = compose(tiny(BERT), _parts((one, 1), (other, 3)), by=by)
    for name in _crown(tiny(BERT)):
        expected = 0.25 * one.tensors[name] + 0.75 * other.tensors[name]
        torch.testing.assert_close(made.tensors[name], expected)
    assert made.labels == ("bad", "fair", "good")


@pytest.mark.parametrize("by", METHODS)
def test_what_is_written_is_what_finetuning_writes(tiny, learned, given, tmp_path, by):
    """A bank, peft, and `load` read the same from it."""
    made = compose(tiny(BERT), _parts((learned(1), 1), (learned(2), 0.5)), by=by)
    found = _answers(tiny(BERT), made, tmp_path / "made", given)
    again = adapters.read(tmp_path / "made")
    assert replace(again, tensors={}) == replace(made, tensors={})
    assert all(torch.equal(again.tensors[name], value) for name, value in made.tensors.items())
    theirs, ours = PeftModel.from_pretrained(tiny(BERT), tmp_path / "made").eval(), tiny(BERT)
    adapters.load(ours, tmp_path / "made", base="sha256:1")
    with torch.no_grad():
        for model in (theirs, ours):
            torch.testing.assert_close(model(**given).logits, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "weights", "by", "told"),
    [
        ({"rank": 2}, (1, 1), "linear", r"linear adds tensors of one shape, and ranks are 4 of part 0, 2 of part 1: compose by cat"),
        ({"rank": 2}, (1, 1), "dare_ties", "dare_ties adds tensors of one shape"),
        ({"labels": ("fair", "bad", "good")}, (1, 1), "cat", r"part 0 \(bad, fair, good\), part 1 \(fair, bad, good\): let them answer side by side"),
        ({"kind": "dora"}, (1, 1), "cat", "part 1 is of kind dora: lora and rslora alone can be composed"),
        ({"kind": "ia3"}, (1, 1), "cat", "part 1 is of kind ia3"),
        ({"whole": ("bert.embeddings.word_embeddings.weight",)}, (1, 1), "cat", "part 1 keeps bert.embeddings.word_embeddings.weight whole"),
        ({"name": "DistilBertForSequenceClassification"}, (1, 1), "cat", "part 1 was trained in a DistilBert.*, and the base is a Bert"),
        ({}, (1, 0), "cat", "weight 0 of part 1: it must be above 0"),
        ({}, (-0.5, 1), "linear", r"weight -0\.5 of part 0"),
        ({}, (1, float("nan")), "cat", "weight nan of part 1"),
        ({}, (1, float("inf")), "cat", "weight inf of part 1"),
        ({}, (1, 1), "tie", "nothing is composed by 'tie'; did you mean 'ties'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tiny, learned, other, weights, by, told):
    parts = _parts((learned(1), weights[0]), (learned(2, **other), weights[1]))
    with pytest.raises(InputError, match=told):
        compose(tiny(BERT), parts, by=by)


@pytest.mark.parametrize(
    ("by", "density", "told"),
    [
        (
            "cat",
            0.5,
            "cat keeps all values: leave the density out, or compose by ties, dare_linear, dare_ties",
        ),
        ("linear", 0.5, "linear keeps all values"),
        ("ties", 0.0, "density 0: the share of values that is kept is above 0 and at most 1"),
        ("dare_ties", 1.5, "density 1.5"),
        ("ties", float("nan"), "density nan"),
    ],
)
def test_a_density_that_means_nothing_is_refused(tiny, learned, by, density, told):
    with pytest.raises(InputError, match=told):
        compose(tiny(BERT), _parts((learned(1), 1), (learned(2), 1)), by=by, density=density)


def test_one_adapter_is_not_composed(tiny, learned):
    with pytest.raises(InputError, match="composed of two at least, not of 1"):
        compose(tiny(BERT), _parts((learned(1), 1)), by="cat")


def test_another_body_is_refused_and_both_are_named(tiny, learned):
    with pytest.raises(InputError, match=r"part 0 was trained on a body sha256:\w+, not on sha256:\w+"):
        compose(tiny(BERT, seed=5), _parts((learned(1), 1), (learned(2), 1)), by="cat")


def test_all_faults_are_told_at_once(tiny, learned):
    parts = _parts((learned(1), 0), (learned(2, rank=2, labels=("a", "b", "c")), 1))
    with pytest.raises(InputError, match=r"weight 0 .*labels are not the same.*ranks are 4"):
        compose(tiny(BERT), parts, by="linear")


@pytest.mark.parametrize(("part", "error"), [("lora_B", TrainingError), ("classifier", InputError)])
def test_an_adapter_that_is_torn_is_told(tiny, learned, part, error):
    whole = learned(2)
    lost = next(name for name in whole.tensors if part in name)
    torn = replace(whole, tensors={name: one for name, one in whole.tensors.items() if name != lost})
    with pytest.raises(error, match=f"part 1 .*{lost}"):
        compose(tiny(BERT), _parts((learned(1), 1), (torn, 1)), by="cat")
