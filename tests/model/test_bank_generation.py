"""One language model, many adapters: every row goes on as its own adapter does alone, whoever is beside it."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tasks.errors import TrainingError
from tasks.model import adapters, floors
from tasks.model.adapters import Adapter
from tasks.model.bank import BASE, Bank
from tasks.model.batches import Ragged

MODELS = {  # name -> class, what else its config says
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True, "eos_token_id": 46}),
    "llama with a head of its own": ("LlamaForCausalLM", {"tie_word_embeddings": False, "eos_token_id": 46}),
    "gpt2": ("GPT2LMHeadModel", {"bos_token_id": 1, "eos_token_id": 20}),
}
NAMES = ("first", "second", "third")
ROWS = ["second", BASE, "first", "third", "second", BASE, "third", "first"]
LENGTHS = (7, 3, 1, 12, 5, 9, 2, 4)
SAID = 10


@pytest.fixture
def prompts():
    chance = np.random.default_rng(3)
    return [chance.integers(5, 61, size=length).tolist() for length in LENGTHS]


@pytest.fixture
def base(tiny):
    """What is left of a name's model without adapters: its sayings follow from all that it was asked."""

    def make(name="llama", **more):
        kind, own = MODELS[name]
        return tiny(kind, initializer_range=0.6, **own, **more)

    return make


@pytest.fixture
def trained(base, tmp_path):
    """Name of an adapter -> its folder, and the model that it was in."""

    def make(key, *, name="llama", layers=(1, 3)):
        model, adapter = base(name), Adapter("lora", rank=4)
        adapters.inject(model, adapter, layers, seed=1)
        generator, stack = torch.Generator().manual_seed(sum(map(ord, key))), floors.floors(model)
        learned = [value for floor in stack for value in floor.adapter.values()]
        with torch.no_grad():
            for value in [*learned, *stack[-1].parameters.values()]:
                value += torch.randn(value.shape, generator=generator) * 0.3
        folder = tmp_path / "adapters" / key
        adapters.save(model, adapter, folder, base="sha256:1")
        return folder, model

    return make


HOW = {"max_new_tokens": SAID, "do_sample": False}


def _alone(model, prompt):
    """What follows a prompt that nothing stands beside, up to the end."""
    ids = torch.tensor([prompt])
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **HOW)
    return _ended(found[0, len(prompt) :].tolist(), model.config.eos_token_id)


def _ended(ids, end):
    return ids[: ids.index(end) + 1] if end in ids else ids


def _mixed(bank, prompts, names):
    ids, mask = Ragged.of(prompts).padded(range(len(prompts)), pad=0, left=True)
    found = bank.generate(names, input_ids=ids, attention_mask=mask, **HOW)
    assert torch.equal(found[:, : ids.shape[1]], ids)
    return [_ended(row, bank.model.config.eos_token_id) for row in found[:, ids.shape[1] :].tolist()]


@pytest.mark.parametrize("name", MODELS)
def test_a_mixed_batch_says_the_tokens_of_each_alone_and_of_each_merged(base, trained, prompts, name):
    made = {key: trained(key, name=name) for key in NAMES}
    bank = Bank(base(name))
    for key, (folder, _) in made.items():
        bank.load(key, folder)
    alone = {BASE: base(name), **{key: model for key, (_, model) in made.items()}}
    expected = [_alone(alone[key], prompt) for key, prompt in zip(ROWS, prompts, strict=True)]
    assert _mixed(bank, prompts, ROWS) == expected
    assert len({tuple(one) for one in expected}) == len(ROWS), "whoever says the same always would agree too"
    assert min(map(len, expected)) < SAID == max(map(len, expected)), "some end before others"
    ids = torch.tensor([prompts[0]])
    for _, model in made.values():
        adapters.merge(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert [_alone(alone[key], prompt) for key, prompt in zip(ROWS, prompts, strict=True)] == expected


@pytest.mark.parametrize("name", MODELS)
def test_from_one_to_another_and_back_gives_the_same_bits(base, trained, prompts, name):
    bank = Bank(base(name))
    for key in NAMES:
        bank.load(key, trained(key, name=name)[0])
    ids, mask = Ragged.of(prompts).padded(range(len(prompts)), pad=0, left=True)

    def logits(key):
        how = {**HOW, "return_dict_in_generate": True, "output_logits": True}
        return torch.stack(bank.generate([key] * len(ids), input_ids=ids, attention_mask=mask, **how).logits)

    first, other = logits("first"), logits("second")
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first, logits("first"))


def test_adapters_of_a_word_table_hold_no_copy_of_it(base, trained):
    bank, (folder, _) = Bank(base()), trained("first")
    table = bank.model.get_input_embeddings().weight.nbytes
    loaded = bank.load("first", folder)
    assert loaded.size == sum(one.nbytes for one in adapters.read(folder).tensors.values()) < table
    assert bank._known["first"].head is bank.model
    own = Bank(base("llama with a head of its own"))
    assert own.load("own", trained("own", name="llama with a head of its own")[0]).size > table


def test_who_was_asked_least_recently_makes_room_and_comes_back_when_wanted(base, trained, prompts):
    made = {key: trained(key) for key in NAMES}
    size = Bank(base()).load("first", made["first"][0]).size
    bank = Bank(base(), room=2 * size)
    for key, (folder, _) in made.items():
        bank.load(key, folder)
    assert [one.name for one in bank if one.resident] == ["second", "third"]
    expected = [_alone(made["first"][1], prompt) for prompt in prompts]
    assert _mixed(bank, prompts, ["first"] * len(prompts)) == expected
    assert [one.name for one in bank if one.resident] == ["first", "third"]
    with pytest.raises(TrainingError, match=r"first, second, third: .* bytes together"):
        _mixed(bank, prompts, ROWS)


def test_threads_get_their_own_sayings_while_they_make_room_for_one_another(base, trained, prompts):
    made = {key: trained(key) for key in NAMES}
    size = Bank(base()).load("first", made["first"][0]).size
    bank = Bank(base(), room=int(2.5 * size))
    for key, (folder, _) in made.items():
        bank.load(key, folder)
    alone = {BASE: base(), **{key: model for key, (_, model) in made.items()}}
    expected = {key: [_alone(model, prompt) for prompt in prompts] for key, model in alone.items()}

    def ask(seed):
        chance, wrong = np.random.default_rng(seed), 0
        for _ in range(3):
            three = [BASE, *chance.choice(NAMES, size=2, replace=False)]
            names = chance.choice(three, size=len(prompts)).tolist()
            places = chance.permutation(len(prompts))
            found = _mixed(bank, [prompts[place] for place in places], names)
            wrong += sum(
                said != expected[name][place] for said, name, place in zip(found, names, places, strict=True)
            )
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, range(4))) == 0


def test_an_adapter_of_a_classifier_on_the_same_body_is_refused(base, tiny, tmp_path):
    body, adapter = base(), Adapter("lora", rank=4)
    classifier = tiny("LlamaForSequenceClassification", initializer_range=0.6)
    classifier.model.load_state_dict(copy.deepcopy(body.model.state_dict()))
    adapters.inject(classifier, adapter, (1, 3), seed=1)
    adapters.save(classifier, adapter, tmp_path / "labels", base="sha256:1")
    assert adapters.read(tmp_path / "labels").body == Bank(body).body
    with pytest.raises(
        TrainingError,
        match="was trained in a LlamaForSequenceClassification, and the bank's base is a LlamaForCausalLM",
    ):
        Bank(body).load("labels", tmp_path / "labels")


def test_each_way_of_answering_is_asked_of_its_own_class_alone(base, tiny):
    ids = torch.ones(1, 3, dtype=torch.int64)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(TrainingError, match="a LlamaForCausalLM goes on with a text"):
        Bank(base()).answer(given, [BASE])
    with pytest.raises(TrainingError, match="BertForSequenceClassification says of a text what it is"):
        Bank(tiny("BertForSequenceClassification")).generate([BASE], **given)
    with pytest.raises(TrainingError, match="1 rows, and 2 names of adapters"):
        Bank(base()).generate([BASE, BASE], **given)


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "GPT2ForTokenClassification", "T5ForConditionalGeneration"]
)
def test_a_model_that_tells_of_each_token_or_has_no_adapters_is_refused(tiny, name):
    with pytest.raises(
        TrainingError, match=r"this one tells of each token|no adapter is known for model type"
    ):
        Bank(tiny(name))
