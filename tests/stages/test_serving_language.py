"""Adapters of several projects on one language model: each row goes on as its own project's model does."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks import files, params
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, Evaluation, TrainedModel, Vocabulary
from tasks.errors import InputError, TrainingError
from tasks.evaluation.asking import continuing
from tasks.model import adapters, floors
from tasks.model.adapters import Adapter
from tasks.serving import app
from tasks.serving.messages import MOST_TOKENS, Row
from tasks.stages import bundle, ways
from tasks.stages.serving import Service

SHIPPED = params.load(Path(__file__).parents[2] / "params.yaml")
KINDS = {"haiku": "completion", "gossip": "text", "butler": "chat"}
WORDS = ["<pad>", "<unk>", "<user>", "<bot>", *(f"w{number}" for number in range(57))]
END, WORDS[45] = 45, "<end>"  # what the models below say now and then
TEMPLATE = "{% for one in messages %}<user> {{ one.content }} {% endfor %}<bot>"
POSITIONS, MOST = 33, 16
TEXTS = ["w3 w8", "w1 w2 w3 w4 w5 w6 w7", " ".join(f"w{n * 11 % 57}" for n in range(40)), "w9"]
SIZES = {name: {} for name in ("rows", "tokens", "truncated", "lost", "unknown")}
EMPTY = {name: {} for name in ("metrics", "comparisons", "slices", "calibration", "decided", "decision")}


@pytest.fixture
def fresh(tiny):
    """The base's model as it was."""
    more = {"tie_word_embeddings": True, "eos_token_id": END, "initializer_range": 0.6}
    return lambda: tiny("LlamaForCausalLM", **more)


@pytest.fixture
def base(tracked, fresh):
    """A project with a language model and a tokenizer, and nothing that learned on it."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    whole.chat_template = TEMPLATE
    with files.replace_directory(Vocabulary.folder(tracked)) as draft:
        whole.save_pretrained(draft / "tokenizer")
        Vocabulary.save(draft, size=61, kept=61, fresh=0, special={})
    with files.replace_directory(ConvertedCheckpoint.folder(tracked)) as draft:
        fresh().save_pretrained(draft / "model")
        ConvertedCheckpoint.save(
            draft, family="llama", architecture="LlamaForCausalLM", labels=[], source="", parameters={},
            fresh=[], proofs={},
        )  # fmt: skip
    files.write_text(tracked / "params.yaml", params.dump(SHIPPED))
    return tracked


@pytest.fixture
def project(base, fresh, tmp_path):
    """Name -> the root of a project that learned on the base, and its merged model."""

    def make(name, *, kind=None, overrides=()):
        root, model, learned = tmp_path / name, fresh(), Adapter("lora", rank=2)
        adapters.inject(model, learned, (1, 3), seed=1)
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        with torch.no_grad():
            for value in [value for floor in floors.floors(model) for value in floor.adapter.values()]:
                value += torch.randn(value.shape, generator=generator) * 0.3
        files.write_text(root / "params.yaml", params.dump(params.override(SHIPPED, list(overrides))))
        with files.replace_directory(Vocabulary.folder(root)) as draft:
            AutoTokenizer.from_pretrained(Vocabulary.load(base).path / "tokenizer").save_pretrained(
                draft / "tokenizer"
            )
            Vocabulary.save(draft, size=61, kept=61, fresh=0, special={})
        with files.replace_directory(TrainedModel.folder(root)) as draft:
            adapters.save(model, learned, draft / "adapter", base="sha256:1")
            TrainedModel.save(draft, base="", data="", labels=[], weights="", phases=[])
        with files.replace_directory(EncodedDataset.folder(root)) as draft:
            EncodedDataset.save(draft, kind=kind or KINDS[name], labels=[], max_length=8, **SIZES)
        with files.replace_directory(Evaluation.folder(root)) as draft:
            Evaluation.save(draft, model="", test="", labels=[], rows=0, **EMPTY)
        ids = torch.tensor([[5, 6, 7]])
        adapters.merge(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        return root, model

    return make


@pytest.fixture
def held(base, project, fresh):
    """A service of three tasks, and what each says behind a text, the base under None."""
    service, alone = Service(base), {None: ("text", fresh())}
    for name, kind in KINDS.items():
        root, model = project(name)
        service.load(name, str(root))
        alone[name] = kind, model
    tokenizer = AutoTokenizer.from_pretrained(Vocabulary.load(base).path / "tokenizer")

    def say(name, text):
        kind, model = alone[name]
        (said,) = continuing.continuations(model, tokenizer, [text], kind=kind)
        return said

    return service, say


def _ask(service, *rows, **more):
    prepared = service.prepare([Row(text=text, adapter=name, **more) for text, name in rows])
    try:
        return service.answer(prepared)
    finally:
        service.release(prepared)


ROWS = [(text, name) for text in TEXTS for name in (*KINDS, None)]


def test_rows_of_three_projects_and_of_the_base_go_on_in_one_batch_as_each_alone(held):
    service, say = held
    assert [(one.name, one.kind, one.labels) for one in service.adapters()] == [
        (name, kind, []) for name, kind in sorted(KINDS.items())
    ]
    found = _ask(service, *ROWS)
    expected = [say(name, text) for text, name in ROWS]
    assert [one.prediction for one in found] == expected
    assert [one.adapter for one in found] == [name for _, name in ROWS]
    assert len(set(expected)) == len(ROWS), "a constant would agree too"
    assert [one.ended for one in found] == [len(said.split()) < MOST for said in expected]
    assert {one.ended for one in found} == {True, False}


def test_prompts_that_are_too_many_tokens_for_one_batch_come_in_several(held, monkeypatch):
    service, say = held
    monkeypatch.setattr(ways, "TOGETHER", 40)
    prefills = []
    service._bank.model.register_forward_pre_hook(
        lambda module, given, named: prefills.append(named["input_ids"].shape), with_kwargs=True
    )
    assert [one.prediction for one in _ask(service, *ROWS)] == [say(name, text) for text, name in ROWS]
    begun = [shape for shape in prefills if shape[1] > 1 or shape[0] == 1]
    assert len(begun) == 4
    assert all(rows * tokens <= 40 for rows, tokens in begun)


def test_a_row_may_ask_for_fewer_tokens_and_gets_the_first(held):
    service, say = held
    rows = [Row(text=TEXTS[0], adapter=name, max_tokens=most) for name in KINDS for most in (3, MOST_TOKENS)]
    short, long = [], []
    for place, one in enumerate(service.answer(service.prepare(rows))):
        (long if place % 2 else short).append(one)
    expected = [say(name, TEXTS[0]).split() for name in KINDS]
    assert [one.prediction.split() for one in long] == expected
    assert [one.prediction.split() for one in short] == [said[:3] for said in expected]
    assert not any(one.ended for one in short if len(one.prediction.split()) == 3)


def test_rows_that_may_say_twice_as_much_are_not_alike(held):
    service, _ = held
    asked = [Row(text=TEXTS[0], max_tokens=most) for most in (1, 2, 3, 5, 7, 9, 15, 16, 64)]
    kin = [service.alike(one) for one in service.prepare(asked)]
    assert [place for place in range(1, len(kin)) if kin[place] != kin[place - 1]] == [1, 3, 5, 7]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (Row(text="w1", text_pair="w2"), "row 0: a language model goes on with one text"),
        (Row(text="w1", text_pair="w2", adapter="haiku"), "row 0: haiku answers single texts"),
        (Row(text=" ", adapter="haiku"), "row 0: cleaned, nothing is left of its text"),
    ],
)
def test_a_row_that_cannot_go_on_is_told(held, row, told):
    service, _ = held
    with pytest.raises(InputError, match=told):
        service.prepare([row])


@pytest.mark.parametrize(
    ("kind", "steps", "read"),
    [
        ("completion", "[mask_mentions]", "w3 <user> w8"),
        ("completion", "[]", "w3 @alice w8"),
        ("chat", "[mask_mentions]", "<user> w3 @alice w8 <bot>"),
    ],
)
def test_a_text_is_cleaned_and_written_as_its_project_does(base, project, kind, steps, read):
    service = Service(base)
    root, _ = project("tidy", kind=kind, overrides=[f"preparation.clean={steps}"])
    service.load("tidy", str(root))
    (found,) = service.prepare([Row(text="w3 @alice w8", adapter="tidy")])
    assert found.ids == [WORDS.index(word) if word in WORDS else 1 for word in read.split()]


def test_a_chat_on_a_base_that_has_no_template_is_refused(base, project):
    root, _ = project("butler")
    (Vocabulary.load(base).path / "tokenizer" / "chat_template.jinja").unlink()
    service = Service(base)
    with pytest.raises(InputError, match="answers chats, and the base's tokenizer has no template for them"):
        service.load("butler", str(root))
    assert not list(service._bank)


def test_a_registered_adapter_goes_on_as_its_project_did(base, project, held, register):
    service, say = held
    root, model = project("poet", kind="completion")
    register("poems", root)
    assert service.load("haiku", "models:/poems@champion").version == "1"
    tokenizer = AutoTokenizer.from_pretrained(Vocabulary.load(base).path / "tokenizer")
    expected = continuing.continuations(model, tokenizer, [TEXTS[1]], kind="completion")
    found, other = _ask(service, (TEXTS[1], "haiku"), (TEXTS[1], "gossip"))
    assert (found.prediction, found.version) == (expected[0], "1")
    assert other.prediction == say("gossip", TEXTS[1]) != expected[0]


def test_adapters_that_have_no_room_together_go_on_one_after_the_other(base, held, tmp_path):
    service, say = held
    tight = Service(base, room=service.adapters()[0].bytes)
    for name in KINDS:
        tight.load(name, str(tmp_path / name))
    assert [one.prediction for one in _ask(tight, *ROWS)] == [say(name, text) for text, name in ROWS]
    assert sum(one.resident for one in tight.adapters()) == 1


def test_an_adapter_that_has_diverged_fails_alone(base, project, held):
    service, say = held
    root, _ = project("broken", kind="text")
    path = TrainedModel.folder(root) / "adapter" / "adapter_model.safetensors"
    save_file({name: one.fill_(torch.nan) for name, one in load_file(path).items()}, path, {"format": "pt"})
    service.load("broken", str(root))
    found, lost = _ask(service, (TEXTS[0], "haiku"), (TEXTS[1], "broken"))
    assert found.prediction == say("haiku", TEXTS[0])
    assert isinstance(lost, TrainingError)
    assert f"broken ({root}) answers what is no number: its weights have diverged" in str(lost)


@pytest.mark.parametrize("kind", ["label", "translation", "tags"])
def test_rows_of_other_kinds_are_refused_by_name(base, project, kind):
    service = Service(base)
    with pytest.raises(InputError, match=f"rows of kind {kind} are not served on this base; those of"):
        service.load("other", str(project("other", kind=kind)[0]))
    assert not list(service._bank)


def test_what_is_packed_goes_on_alike_and_a_column_names_who(held, tmp_path):
    service, say = held
    service.pack(tmp_path / "packed")
    rows = [(text, name) for text, name in ROWS if name]
    found = bundle.Answering(tmp_path / "packed").predict(pd.DataFrame(rows, columns=["text", "adapter"]))
    assert found["prediction"].tolist() == [say(name, text) for text, name in rows]


def test_over_http_who_asks_at_once_gets_what_is_said_alone(held):
    service, say = held
    expected = {(text, name): say(name, text) for text, name in ROWS}
    with TestClient(app.build(service, app.Settings(batch=5))) as client:

        def ask(number):
            chosen = [ROWS[(number * 7 + place * 3) % len(ROWS)] for place in range(4)]
            rows = [{"text": text, **({"adapter": name} if name else {})} for text, name in chosen]
            rows[0]["max_tokens"] = 2
            told = client.post("/predict", json={"rows": rows}).json()["predictions"]
            said = [expected[one] for one in chosen]
            return [one["prediction"] for one in told] == [" ".join(said[0].split()[:2]), *said[1:]]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(24)))
        (one,) = client.post("/predict", json={"rows": [{"text": TEXTS[0]}]}).json()["predictions"]
        assert one == {"adapter": None, "prediction": expected[TEXTS[0], None], "ended": one["ended"]}
        for most in (0, MOST_TOKENS + 1, "many"):
            row = {"text": TEXTS[0], "max_tokens": most}
            assert client.post("/predict", json={"rows": [row]}).status_code == 422


def test_no_more_is_said_than_elsewhere():
    assert MOST_TOKENS == continuing.LONGEST
