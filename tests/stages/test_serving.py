"""Adapters of several projects on one base: each row is answered as its own project would answer it."""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import schemathesis
import torch
from hypothesis import strategies
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from schemathesis import GenerationMode
from transformers import AutoTokenizer

from tasks import params
from tasks.artifacts import ConvertedCheckpoint, TrainedModel, Vocabulary
from tasks.errors import (
    ArtifactError,
    InputError,
    ParamsError,
    RegraftError,
    TrackingError,
    TrainingError,
)
from tasks.model import adapters, floors
from tasks.serving import app
from tasks.serving.messages import NoAdapter, Row
from tasks.stages.serving import Service
from tasks.tracking import server

SHIPPED = params.load(Path(__file__).parents[2] / "params.yaml")
LABELS = {"moods": ("bad", "fair", "good"), "news": ("art", "law", "sea", "tax", "war"), "yes": ("no", "yes")}
TEXTS = [
    "another book by Alice",
    "daisies close at day",
    "after conversations Alice could hear a White Rabbit burning",
]


def _alone(base, model, text, *, pair=None, length=8):
    """Logits (labels,) of a text that is asked by itself."""
    tokenizer = AutoTokenizer.from_pretrained(Vocabulary.load(base).path / "tokenizer")
    given = tokenizer(
        [text], *([[pair]] if pair else []), truncation=True, max_length=length, return_tensors="pt"
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if pair else [])]
    with torch.inference_mode():
        return model(**{name: given[name] for name in names}).logits[0]


def _ask(service, *rows):
    prepared = service.prepare([Row(text=text, adapter=name) for text, name in rows])
    try:
        return service.answer(prepared)
    finally:
        service.release(prepared)


def test_rows_of_three_projects_in_one_batch_are_answered_as_each_alone(base, project):
    made = {name: project(name, seed=place) for place, name in enumerate(LABELS)}
    service = Service(base)
    for name, (root, _) in made.items():
        assert service.load(name, str(root)).labels == list(LABELS[name])
    rows = [(text, name) for text in TEXTS for name in LABELS]
    for (text, name), found in zip(rows, _ask(service, *rows), strict=True):
        expected = _alone(base, made[name][1], text).softmax(-1)
        assert (found.adapter, found.prediction) == (name, LABELS[name][int(expected.argmax())])
        assert list(found.probabilities) == list(LABELS[name])
        np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-6)


def test_a_text_is_cleaned_cut_and_decided_about_as_its_project_does(base, project):
    root, model = project(
        "yes",
        decision={"temperature": 2.5, "abstain_below": 0.9999},
        overrides=["preparation.clean=[whitespace]"],
    )
    service = Service(base)
    service.load("yes", str(root))
    (found,) = _ask(service, ("another \t book  by Alice " + "and " * 50, "yes"))
    expected = (_alone(base, model, "another book by Alice " + "and " * 50) / 2.5).softmax(-1)
    np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-6)
    assert "prediction" in found.model_fields_set
    assert found.prediction is None


@pytest.mark.parametrize(
    ("kind", "decision", "expected"),
    [
        ("labels", {"thresholds": [0.0, 1.0, 0.0]}, ["bad", "good"]),
        ("score", {}, None),
    ],
)
def test_rows_of_other_kinds_are_told_in_their_way(base, project, kind, decision, expected):
    root, model = project("moods", kind=kind, labels=() if kind == "score" else None, decision=decision)
    service = Service(base)
    service.load("moods", str(root))
    (found,) = _ask(service, (TEXTS[0], "moods"))
    logits = _alone(base, model, TEXTS[0])
    if kind == "score":
        assert found.prediction == pytest.approx(float(logits[0]), rel=1e-4)
        assert found.probabilities is None
    else:
        assert found.prediction == expected
        np.testing.assert_allclose(list(found.probabilities.values()), logits.sigmoid(), atol=1e-6)


def test_pairs_and_single_texts_share_a_batch(base, project):
    (pairs, model), (single, other) = project("yes", kind="pair"), project("moods")
    service = Service(base)
    service.load("yes", str(pairs))
    service.load("moods", str(single))
    rows = [
        Row(text="dear Alice", text_pair="all daisies", adapter="yes"),
        Row(text=TEXTS[0], adapter="moods"),
    ]
    first, second = service.answer(service.prepare(rows))
    expected = _alone(base, model, "dear Alice", pair="all daisies").softmax(-1)
    np.testing.assert_allclose(list(first.probabilities.values()), expected, atol=1e-6)
    expected = _alone(base, other, TEXTS[0]).softmax(-1)
    np.testing.assert_allclose(list(second.probabilities.values()), expected, atol=1e-6)
    with pytest.raises(InputError, match="row 1: yes answers pairs"):
        service.prepare([*rows[1:], Row(text="alone", adapter="yes")])
    with pytest.raises(InputError, match="row 0: moods answers single texts"):
        service.prepare([Row(text="a", text_pair="b", adapter="moods")])


def test_nothing_is_said_behind_a_text_that_a_head_reads(base, project):
    service = Service(base)
    service.load("yes", str(project("yes")[0]))
    for name in ("yes", None):
        with pytest.raises(
            InputError, match="row 0: nothing is said behind a text here: leave max_tokens out"
        ):
            service.prepare([Row(text="dear Alice", adapter=name, max_tokens=3)])


def test_a_row_without_an_adapter_gets_the_bases_embedding(base, project):
    service = Service(base)
    service.load("yes", str(project("yes")[0]))
    bare, _ = _ask(service, (TEXTS[0], None), (TEXTS[2], "yes"))
    own = floors.load(ConvertedCheckpoint.load(base).path / "model").base_model
    tokenizer = AutoTokenizer.from_pretrained(Vocabulary.load(base).path / "tokenizer")
    with torch.inference_mode():
        states = own(
            **tokenizer([TEXTS[0]], return_tensors="pt", return_token_type_ids=False)
        ).last_hidden_state
    np.testing.assert_allclose(bare.embedding, states[0].mean(0), atol=1e-6)
    assert bare.adapter is None


def test_nothing_is_answered_for_no_text_or_an_unknown_name(base, project):
    service = Service(base)
    service.load("news", str(project("news")[0]))
    with pytest.raises(NoAdapter, match="no adapter 'new' is served; did you mean 'news'"):
        service.prepare([Row(text="x", adapter="news"), Row(text="x", adapter="new")])
    with pytest.raises(InputError, match="row 1: cleaned, nothing is left"):
        service.prepare([Row(text="x", adapter="news"), Row(text=" \n\t", adapter="news")])
    service.unload("news")
    assert service.adapters() == []


def test_a_directory_whose_name_has_an_at_in_it_is_no_alias(base, project):
    root, _ = project("yes")
    shutil.move(root, root.with_name("ann@home"))
    service = Service(base)
    service.load("yes", str(root.with_name("ann@home")))
    assert service.refresh() == []


def test_who_is_on_its_way_is_answered_by_what_it_asked_for(base, project):
    (old, before), (new, after) = project("moods"), project("news")
    service = Service(base)
    service.load("task", str(old))
    asked = service.prepare([Row(text=TEXTS[0], adapter="task")])
    service.load("task", str(new))
    (late,), (now,) = service.answer(asked), _ask(service, (TEXTS[0], "task"))
    service.release(asked)
    for found, model in ((late, before), (now, after)):
        np.testing.assert_allclose(
            list(found.probabilities.values()), _alone(base, model, TEXTS[0]).softmax(-1), atol=1e-6
        )
    assert [one.labels for one in service.adapters()] == [list(LABELS["news"])]
    assert len(list(service._bank)) == 1  # the former one is gone with its last row


def test_adapters_that_have_no_room_together_are_asked_one_after_the_other(base, project):
    made = {name: project(name) for name in LABELS}
    sizes = {name: Service(base).load(name, str(root)).bytes for name, (root, _) in made.items()}
    service = Service(base, room=max(sizes.values()))
    for name, (root, _) in made.items():
        service.load(name, str(root))
    rows = [(text, name) for text in TEXTS for name in LABELS]
    for (text, name), found in zip(rows, _ask(service, *rows), strict=True):
        expected = _alone(base, made[name][1], text).softmax(-1)
        np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-6)
    assert sum(one.resident for one in service.adapters()) == 1


def test_one_adapter_that_is_gone_from_the_disk_fails_alone(base, project):
    made = {name: project(name) for name in ("moods", "news")}
    size = max(Service(base).load(name, str(root)).bytes for name, (root, _) in made.items())
    service = Service(base, room=size)
    for name, (root, _) in made.items():
        service.load(name, str(root))
    shutil.rmtree(made["moods"][0] / "data" / "finetuning")
    lost, found = _ask(service, (TEXTS[0], "moods"), (TEXTS[0], "news"))
    assert isinstance(lost, TrainingError)
    assert "is not what was loaded from it" in str(lost)
    assert found.adapter == "news"


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        ("tokenizer", InputError, "its tokenizer is not the base's"),
        (
            "tags",
            InputError,
            "rows of kind tags are not served on this base; those of label",
        ),
        ("merged", InputError, "learned without an adapter"),
        ("dora", TrainingError, "kind dora"),
        ("body", TrainingError, "put it on its own base"),
        ("nothing", ArtifactError, "data/finetuning"),
    ],
)
def test_what_does_not_belong_on_the_base_is_refused_and_nothing_changes(base, project, fault, error, told):
    service = Service(base)
    service.load("yes", str(project("yes")[0]))
    root, _ = project(
        "moods",
        **({"adapter": "dora"} if fault == "dora" else {}),
        kind="tags" if fault == "tags" else "label",
    )
    if fault == "tokenizer":
        path = Vocabulary.folder(root) / "tokenizer" / "tokenizer.json"
        path.write_text(path.read_text().replace('"[UNK]"', '"[unk]"'))
    if fault == "merged":
        shutil.rmtree(TrainedModel.folder(root) / "adapter")
    if fault == "body":
        path = TrainedModel.folder(root) / "adapter" / adapters.DESCRIPTION
        path.write_text(json.dumps(json.loads(path.read_text()) | {"body": "sha256:other"}))
    if fault == "nothing":
        shutil.rmtree(TrainedModel.folder(root))
    with pytest.raises(error, match=told):
        service.load("yes", str(root))
    assert [(one.name, one.labels) for one in service.adapters()] == [("yes", ["no", "yes"])]


def test_the_champions_adapter_is_served_and_followed_when_the_alias_moves(base, project, register):
    (first, before), (second, after) = (
        project("moods", seed=1),
        project("moods2", seed=2, labels=LABELS["moods"]),
    )
    register("tweets", first)
    service = Service(base)
    told = service.load("mood", "models:/tweets@champion")
    assert (told.version, told.source) == ("1", "models:/tweets@champion")
    assert service.refresh() == []
    (found,) = _ask(service, (TEXTS[0], "mood"))
    np.testing.assert_allclose(
        list(found.probabilities.values()), _alone(base, before, TEXTS[0]).softmax(-1), atol=1e-6
    )
    assert found.version == "1"
    register("tweets", second, seed=1)
    assert service.refresh() == ["mood: models:/tweets@champion is version 2 now, it was version 1"]
    (found,) = _ask(service, (TEXTS[0], "mood"))
    np.testing.assert_allclose(
        list(found.probabilities.values()), _alone(base, after, TEXTS[0]).softmax(-1), atol=1e-6
    )
    assert found.version == "2"


def test_a_champion_that_cannot_be_served_leaves_the_former_one(base, project, register):
    root, _ = project("moods")
    register("tweets", root)
    service = Service(base)
    service.load("mood", "models:/tweets@champion")
    register("tweets", root, seed=1, without=("adapter",))
    (told,) = service.refresh()
    assert (
        "is version 2 now, and 1 goes on: tweets version 2 holds no adapter: set finetuning.adapter"
        in str(told)
    )
    assert _ask(service, (TEXTS[0], "mood"))[0].version == "1"
    assert service.load("fixed", "models:/tweets/1").version == "1"


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        ("models:/tweets@staging", InputError, "tweets has no alias 'staging'"),
        ("models:/nobody@champion", InputError, "nobody has no champion yet"),
        ("models:/tweets/7", TrackingError, "7"),
        ("models:/tweets", InputError, "write models:/NAME@champion or models:/NAME/3"),
    ],
)
def test_a_reference_to_nothing_is_told(base, project, register, source, error, told):
    register("tweets", project("moods")[0])
    with pytest.raises(error, match=told):
        Service(base).load("mood", source)


def test_what_was_exported_is_no_adapter(base, tmp_path):
    (tmp_path / "tweets").mkdir()
    (tmp_path / "tweets" / "manner.json").write_text('{"kind": "label"}')
    with pytest.raises(InputError, match="tweets is a model that `regraft export` wrote, without an adapter"):
        Service(base).load("mood", str(tmp_path / "tweets"))


def test_one_alias_that_is_gone_hinders_no_other(base, project, register):
    (first, _), (second, _) = project("moods", seed=1), project("moods2", seed=2, labels=LABELS["moods"])
    for name in ("lost", "tweets"):
        register(name, first)
    service = Service(base)
    for name in ("lost", "tweets"):
        service.load(name, f"models:/{name}@champion")
    MlflowClient(tracking_uri=server.uri(base)).delete_registered_model_alias("lost", "champion")
    register("tweets", second, seed=1)
    lost, moved = service.refresh()
    assert isinstance(lost, RegraftError)
    assert "lost: models:/lost@champion is not to be had, and 1 goes on: lost: version 1 was" in str(lost)
    assert moved == "tweets: models:/tweets@champion is version 2 now, it was version 1"
    assert {one.version for one in _ask(service, *((TEXTS[0], name) for name in ("lost", "tweets")))} == {
        "1",
        "2",
    }


def test_housekeeping_takes_no_adapter_that_is_served(base, project, register):
    """It goes by a folder's age."""
    root, _ = project("yes")
    register("tweets", project("moods")[0])
    service = Service(base)
    service.load("mood", "models:/tweets/1")
    service.load("yes", str(root))
    (fetched,) = (base / ".regraft" / "champions").iterdir()
    own = TrainedModel.folder(root) / "adapter"
    for folder in (fetched, own):
        os.utime(folder, (0, 0))
    assert service.refresh() == []
    assert fetched.stat().st_mtime > 0
    assert own.stat().st_mtime == 0


@pytest.mark.parametrize(
    ("tag", "value", "error", "told"),
    [
        ("adapter", "sha256:../../../../x", TrackingError, "is no digest; other hands have set the tag"),
        ("labels", '["good", "bad", "fair"]', InputError, "said to answer good, bad, fair, and its adapter"),
        ("labels", '["bad", "fair"]', InputError, "said to answer bad, fair, and its adapter's head answers"),
        ("labels", "[1, 2, 3]", InputError, "the tag regraft.labels of version 1 says nothing usable"),
        ("labels", "[", InputError, "the tag regraft.labels of version 1 says nothing usable"),
        ("max_length", '"long"', InputError, "the tag regraft.max_length of version 1 says nothing usable"),
        ("kind", '"lable"', InputError, "rows of kind 'lable'; did you mean 'label'"),
        ("kind", '"score"', InputError, "its adapter's head answers bad, fair, good"),
        ("clean", '["wash"]', ParamsError, "unknown step 'wash'"),
        ("decision", '{"thresholds": [1]}', InputError, "1 thresholds for 3 labels"),
    ],
)
def test_tags_that_other_hands_have_set_are_refused(base, project, register, tag, value, error, told):
    register("tweets", project("moods")[0])
    client = MlflowClient(tracking_uri=server.uri(base))
    client.set_model_version_tag("tweets", "1", f"regraft.{tag}", value)
    service = Service(base)
    with pytest.raises(error, match=re.escape(told)):
        service.load("mood", "models:/tweets@champion")
    assert service.adapters() == []
    assert not list(service._bank)


def test_an_adapter_that_has_diverged_fails_alone(base, project):
    (sound, _), (broken, _) = project("moods"), project("news")
    path = TrainedModel.folder(broken) / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    head = next(name for name in tensors if name.endswith("classifier.weight"))
    save_file({**tensors, head: torch.full_like(tensors[head], torch.inf)}, path, {"format": "pt"})
    service = Service(base)
    service.load("moods", str(sound))
    service.load("news", str(broken))
    found, lost = _ask(service, (TEXTS[0], "moods"), (TEXTS[0], "news"))
    assert found.prediction in LABELS["moods"]
    assert isinstance(lost, TrainingError)
    assert f"news ({broken}) answers what is no number: its weights have diverged" in str(lost)


def test_an_adapter_that_was_altered_in_the_store_is_refused(base, project, register):
    register("tweets", project("moods")[0])
    (stored,) = (base / ".regraft" / "mlartifacts").rglob("adapter/adapter.json")
    stored.write_text(stored.read_text() + "\n")
    with pytest.raises(TrackingError, match="its artifacts were altered, roll back to another version"):
        Service(base).load("mood", "models:/tweets@champion")
    assert not list((base / ".regraft" / "champions").glob("*adapter*"))


def test_threads_ask_while_adapters_come_and_go(base, project):
    made = {name: project(name, seed=place) for place, name in enumerate(LABELS)}
    service = Service(base)
    for name, (root, _) in made.items():
        service.load(name, str(root))
    expected = {
        name: [_alone(base, model, text).softmax(-1) for text in TEXTS] for name, (_, model) in made.items()
    }

    def ask(number):
        chosen = [list(LABELS)[(number + place) % 3] for place in range(3)]
        found = _ask(service, *zip(TEXTS, chosen, strict=True))
        if number % 5 == 0:
            service.load(chosen[0], str(made[chosen[0]][0]))
        for place, (name, one) in enumerate(zip(chosen, found, strict=True)):
            np.testing.assert_allclose(list(one.probabilities.values()), expected[name][place], atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(160)))
    assert len(list(service._bank)) == len(LABELS)


def test_whatever_the_servers_own_schema_allows_is_no_fault_of_ours(base, project):
    """Schemathesis makes requests of it, and of what it forbids."""
    service = Service(base)
    service.load("yes", str(project("yes")[0]))
    served, statuses = app.build(service, app.Settings()), {}
    for found in schemathesis.openapi.from_asgi("/openapi.json", served).get_all_operations():
        statuses[found.ok().label] = _ask_anything(found.ok())
    assert {200, 404, 422} <= statuses["POST /predict"]


def _ask_anything(operation):
    """Statuses of its answers."""
    asked = operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    seen = set()

    @hypothesis.settings(
        max_examples=80,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=asked, known=strategies.booleans())
    def ask(case, known):
        if known and isinstance(case.body, dict):
            for row in [row for row in case.body.get("rows") or () if isinstance(row, dict)]:
                row["adapter"] = "yes"
        answer = case.call()
        assert answer.status_code < 500, answer.text
        seen.add(answer.status_code)

    ask()
    return seen
