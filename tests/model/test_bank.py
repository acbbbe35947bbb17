"""One body, many adapters: every row gets what its own adapter says alone, whoever asks beside it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tasks.errors import TrainingError
from tasks.model import adapters, floors
from tasks.model.adapters import Adapter
from tasks.model.bank import BASE, Bank

LABELS = {"two": 2, "three": 3, "seven": 7}
CLASSES = ("BertForSequenceClassification", "RobertaForSequenceClassification",
           "DistilBertForSequenceClassification", "GPT2ForSequenceClassification",
           "LlamaForSequenceClassification", "MixtralForSequenceClassification", "BertForMeanClassification")  # fmt: skip


@pytest.fixture
def given():
    ids = torch.randint(5, 61, (9, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((8, 7, 4, 8, 2, 5, 8, 3, 6)):
        mask[row, length:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture
def base(tiny):
    """Class, labels -> a model whose body is always the same and whose head is another for each count."""

    def make(name=CLASSES[0], labels=3):
        model, body = tiny(name, num_labels=labels), tiny(name, num_labels=3)
        own = {key: value for key, value in body.state_dict().items() if value.shape[:1] != (3,)}
        model.load_state_dict(own, strict=False)
        return model

    return make


@pytest.fixture
def trained(base, tmp_path):
    """Name -> the folder of an adapter with as many labels, and the whole model that it was in."""

    def make(key, *, name=CLASSES[0], kind="lora", labels=None, layers=(1, 3), seed=None, **more):
        model = base(name, LABELS.get(key, 3) if labels is None else labels)
        adapter = Adapter(kind, rank=4, **more)
        adapters.inject(model, adapter, layers, seed=1)
        generator = torch.Generator().manual_seed(sum(map(ord, key)) if seed is None else seed)
        stack = floors.floors(model)
        with torch.no_grad():
            for floor in stack:
                for value in [
                    *floor.adapter.values(),
                    *(floor.parameters.values() if floor is stack[-1] else ()),
                ]:
                    value += torch.randn(value.shape, generator=generator) * 0.3
        folder = tmp_path / "adapters" / key
        adapters.save(model, adapter, folder, base="sha256:1")
        return folder, model

    return make


def _alone(model, given):
    with torch.inference_mode():
        return model(**given).logits


@pytest.mark.parametrize("name", CLASSES)
def test_a_mixed_batch_answers_each_row_as_its_adapter_does_alone(base, trained, given, name):
    made = {key: trained(key, name=name) for key in LABELS}
    bank = Bank(base(name))
    for key, (folder, _) in made.items():
        assert bank.load(key, folder).labels == tuple(f"LABEL_{place}" for place in range(LABELS[key]))
    names = ["two", "seven", BASE, "three", "two", "three", BASE, "seven", "two"]
    for row, (key, answer) in enumerate(zip(names, bank.answer(given, names), strict=True)):
        if key != BASE:
            assert answer.shape == (LABELS[key],)
            torch.testing.assert_close(answer, _alone(made[key][1], given)[row], rtol=0, atol=1e-6)


def test_rows_of_the_bare_base_get_the_mean_of_its_states_whoever_is_beside_them(base, trained, given):
    bank = Bank(base())
    bank.load("two", trained("two")[0])
    with torch.inference_mode():
        states = base().base_model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    expected = (states * mask).sum(1) / mask.sum(1)
    found = bank.answer(given, [BASE, "two"] * 4 + [BASE])
    torch.testing.assert_close(torch.stack(found[::2]), expected[::2], rtol=0, atol=1e-6)


def test_from_one_to_another_and_back_gives_the_same_bits(base, trained, given):
    bank = Bank(base())
    for key in LABELS:
        bank.load(key, trained(key)[0])
    first = bank.answer(given, ["two"] * 9)
    bank.answer(given, ["seven"] * 9)
    assert all(torch.equal(a, b) for a, b in zip(first, bank.answer(given, ["two"] * 9), strict=True))


def test_a_name_within_another_name_is_not_taken_for_it(base, trained, given):
    """Peft's own hot swap of `med` sets every weight of `medical` to zero."""
    bank = Bank(base())
    (first, alone), (second, _), (third, other) = trained("medical"), trained("med"), trained("media")
    bank.load("medical", first)
    bank.load("med", second)
    bank.load("med", third, replace=True)
    found = bank.answer(given, ["medical", "med"] * 4 + ["medical"])
    torch.testing.assert_close(torch.stack(found[::2]), _alone(alone, given)[::2], rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.stack(found[1::2]), _alone(other, given)[1::2], rtol=0, atol=1e-6)


def test_layers_targets_ranks_and_scales_may_differ(base, trained, given):
    made = {
        "few": trained("few", layers=(3,), targets="attention"),
        "all": trained("all", layers=(0, 1, 2, 3), targets="all-linear", alpha=2.0),
        "root": trained("root", kind="rslora", layers=(2,)),
    }
    bank = Bank(base())
    for key, (folder, _) in made.items():
        bank.load(key, folder)
    names = ["few", "all", "root"] * 3
    for row, (key, answer) in enumerate(zip(names, bank.answer(given, names), strict=True)):
        torch.testing.assert_close(answer, _alone(made[key][1], given)[row], rtol=0, atol=1e-6)


def test_who_was_asked_least_recently_makes_room_and_comes_back_when_wanted(base, trained, given):
    made = {key: trained(key, labels=3) for key in ("a", "b", "c")}
    size = Bank(base()).load("a", made["a"][0]).size
    bank = Bank(base(), room=2 * size)
    for key, (folder, _) in made.items():
        bank.load(key, folder)
    assert _resident(bank) == ["b", "c"]
    expected = _alone(made["a"][1], given)
    torch.testing.assert_close(torch.stack(bank.answer(given, ["a"] * 9)), expected, rtol=0, atol=1e-6)
    assert _resident(bank) == ["a", "c"]
    with pytest.raises(TrainingError, match=r"a, b, c: .* bytes together, and the bank has room for"):
        bank.answer(given, ["a", "b", "c"] * 3)


def _resident(bank):
    return [about.name for about in bank if about.resident]


def test_what_was_written_over_meanwhile_does_not_come_back_as_the_same(base, trained, given):
    made = {key: trained(key, labels=3)[0] for key in ("a", "b")}
    bank = Bank(base(), room=Bank(base()).load("a", made["a"]).size)
    bank.load("a", made["a"])
    bank.load("b", made["b"])
    path = made["a"] / adapters.DESCRIPTION
    path.write_text(path.read_text() + " ")
    with pytest.raises(TrainingError, match="is not what was loaded from it: unload it, and load it again"):
        bank.answer(given, ["a"] * 9)
    bank.answer(given, ["b"] * 9)


def test_what_is_unloaded_is_gone_and_leaves_nothing(base, trained, given):
    bank = Bank(base())
    before = {name for name, _ in bank.model.named_parameters()}
    bank.load("two", trained("two")[0])
    bank.unload("two")
    assert {name for name, _ in bank.model.named_parameters()} == before
    assert list(bank) == []
    with pytest.raises(TrainingError, match="no adapter 'two' is loaded"):
        bank.answer(given, ["two"] * 9)


@pytest.mark.parametrize("name", ["", "a/b", "../a", BASE, "a b", "-a", "a" * 129])
def test_an_unsafe_name_is_refused(base, trained, name):
    with pytest.raises(TrainingError, match="names no adapter"):
        Bank(base()).load(name, trained("two")[0])


def test_a_name_that_is_taken_is_refused(base, trained):
    bank, (folder, _) = Bank(base()), trained("two")
    bank.load("two", folder)
    with pytest.raises(TrainingError, match=r"'two' is taken by .*two: unload it first, or replace it"):
        bank.load("two", folder)


def test_another_body_is_refused_and_both_are_named(base, trained, tiny):
    other = tiny(CLASSES[0], seed=5)
    with pytest.raises(
        TrainingError, match=r"on a body sha256:\w+, not on sha256:\w+: put it on its own base"
    ):
        Bank(other).load("two", trained("two")[0])


@pytest.mark.parametrize("kind", ["dora", "ia3", "houlsby"])
def test_a_kind_that_cannot_stand_beside_others_is_refused(base, trained, kind):
    with pytest.raises(
        TrainingError, match=f"is of kind {kind}: beside others in a batch stand lora and rslora"
    ):
        Bank(base()).load("one", trained("one", kind=kind)[0])


def test_another_class_is_refused(base, trained):
    with pytest.raises(
        TrainingError, match="was trained in a BertForMeanClassification, and the bank's base is a"
    ):
        Bank(base()).load("two", trained("two", name="BertForMeanClassification")[0])


def test_a_load_that_fails_changes_nothing(base, trained, given):
    from safetensors.torch import load_file, save_file

    bank, (folder, _) = Bank(base()), trained("two")
    bank.load("two", folder)
    expected = bank.answer(given, ["two"] * 9)
    before = {name for name, _ in bank.model.named_parameters()}
    broken, _ = trained("three")
    tensors = load_file(broken / adapters.WEIGHTS)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, broken / adapters.WEIGHTS)
    with pytest.raises(TrainingError, match=r"does not fit the model: .*lora_A"):
        bank.load("three", broken)
    assert {name for name, _ in bank.model.named_parameters()} == before
    again = bank.answer(given, ["two"] * 9)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_a_head_that_reads_each_token_is_refused(tiny):
    with pytest.raises(TrainingError, match="heads that read a row once"):
        Bank(tiny("BertForTokenClassification"))


def test_threads_get_their_own_answers_while_adapters_come_and_go(base, trained, given):
    made = {key: trained(key) for key in LABELS}
    size = max(Bank(base()).load(key, folder).size for key, (folder, _) in made.items())
    bank, expected = Bank(base(), room=int(2.5 * size)), {}
    for key, (folder, model) in made.items():
        bank.load(key, folder)
        expected[key] = _alone(model, given)
    spare, over = trained("spare")[0], threading.Event()

    def ask(seed):
        chance, wrong = np.random.default_rng(seed), 0
        for _ in range(12):
            pair = chance.choice(list(LABELS), size=2, replace=False)
            names = chance.choice(pair, size=9).tolist()
            found = bank.answer(given, names)
            for row, (key, answer) in enumerate(zip(names, found, strict=True)):
                wrong += not torch.allclose(answer, expected[key][row], rtol=0, atol=1e-6)
        return wrong

    def come_and_go():
        while not over.is_set():
            bank.load("spare", spare)
            bank.load("spare", spare, replace=True)
            bank.unload("spare")

    coming = threading.Thread(target=come_and_go)
    coming.start()
    try:
        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(ask, range(16))) == 0
    finally:
        over.set()
        coming.join()
    assert sorted(about.name for about in bank) == sorted(LABELS)


def test_an_unload_waits_for_nobody_and_the_calls_under_way_end_well(base, trained, given):
    bank, (folder, model) = Bank(base()), trained("two")
    bank.load("two", folder)
    began, go_on = threading.Event(), threading.Event()

    def wait(*_):
        began.set()
        go_on.wait(60)

    handle = bank.model.base_model.embeddings.register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(bank.answer, given, ["two"] * 9)
        began.wait(60)
        bank.unload("two")
        assert list(bank) == []
        go_on.set()
        found = asked.result(60)
    handle.remove()
    torch.testing.assert_close(torch.stack(found), _alone(model, given), rtol=0, atol=1e-6)
    assert not [name for name, _ in bank.model.named_parameters() if "slot" in name]
