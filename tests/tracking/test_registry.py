import json
import shutil
import socket
from pathlib import Path

import mlflow.pyfunc
import mlflow.transformers
import pytest
import torch
from huggingface_hub import constants
from mlflow import MlflowClient
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tasks import files
from tasks.errors import InputError, TrackingError
from tasks.tracking import contents, history, registry, server
from tasks.tracking.history import Move
from tasks.tracking.registry import Registry, Version


@pytest.fixture
def client(tracked):
    return MlflowClient(tracking_uri=server.uri(tracked))


@pytest.fixture
def run_id(tracked, client):
    place = str(tracked / ".regraft" / "mlartifacts")
    return client.create_run(client.create_experiment("reviews", artifact_location=place)).info.run_id


@pytest.fixture
def reviews(tracked):
    return Registry(tracked, "reviews")


@pytest.fixture
def register(reviews, run_id, tiny_classifier, tmp_path):
    def make(seed=0, reading=None):
        directory = tmp_path / f"model {seed}"
        if not directory.exists():
            tiny_classifier(directory, seed=seed)
        return reviews.register(
            directory,
            run_id=run_id,
            max_length=16,
            kind="label",
            reading=reading or {},
            tags={"regraft.note": str(seed)},
        )

    return make


def promote(reviews, number, reason="better"):
    with reviews.locked():
        reviews.promote(number, reason=reason, by="ann")


def test_a_model_is_registered_once_per_weights(reviews, register, client, run_id, tmp_path):
    version = register()
    assert version.weights == files.digest_file(tmp_path / "model 0" / "model.safetensors")
    assert (version.number, version.run_id, version.tags["regraft.note"]) == ("1", run_id, "0")
    assert register() == version
    assert register(seed=1).number == "2"
    assert reviews.candidate(version.weights, {}) == version
    assert reviews.candidate("sha256:0", {}) is None
    assert [output.model_id for output in client.get_run(run_id).outputs.model_outputs] != []


def test_a_logged_model_is_told_apart_and_stands_under_its_run_and_the_one_above(
    reviews, register, client, run_id
):
    above = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    client.set_tag(run_id, "mlflow.parentRunId", above)
    client.set_tag(run_id, "mlflow.source.name", "python -m tasks finetuning")
    version = register()
    for run in (run_id, above):
        assert [one.model_id for one in client.get_run(run).outputs.model_outputs] == [version.model_id]
    model = client.get_logged_model(version.model_id)
    assert model.name == f"reviews-{version.weights[7:15]}"
    assert model.tags["mlflow.source.name"] == "python -m tasks finetuning"
    assert reviews.version(version.number) == version


def test_the_same_weights_that_read_rows_otherwise_are_another_version(reviews, register):
    html, none = {"regraft.clean": '["html"]'}, {"regraft.clean": "[]"}
    first = register(reading=html)
    assert register(reading=none).number == "2"
    assert register(reading=html) == first
    assert {reviews.candidate(first.weights, reading).number for reading in (html, none)} == {"1", "2"}
    assert len({reviews.download(version) for version in reviews.versions()}) == 2


def test_registering_asks_no_network_and_leaves_nothing_in_the_current_directory(
    register, tmp_path, monkeypatch
):
    asked, elsewhere = [], tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address[0]))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    register()
    assert asked == []
    assert list(elsewhere.iterdir()) == []


def test_the_registered_model_is_downloaded_whole_and_answers_as_before(reviews, register, tmp_path):
    promote(reviews, register().number)
    directory = reviews.download(reviews.must_have_champion())
    inputs = AutoTokenizer.from_pretrained(directory)(["good film", "bad"], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    answers = []
    for place in (directory, tmp_path / "model 0"):
        model = AutoModelForSequenceClassification.from_pretrained(place).eval()
        with torch.no_grad():
            answers.append(model(**inputs).logits)
    assert torch.equal(*answers)
    assert (directory / "model.safetensors").read_bytes() == (
        tmp_path / "model 0" / "model.safetensors"
    ).read_bytes()


def test_mlflow_itself_can_serve_what_was_registered(reviews, register):
    version = register()
    source = reviews._client.get_model_version_download_uri("reviews", version.number)
    model = mlflow.pyfunc.load_model(source)
    found = model.predict(["good film " * 40, "bad"])  # longer than the model has positions
    assert set(found["label"]) <= {"bad", "good"}
    assert mlflow.transformers.load_model(source).task == "text-classification"


def test_altered_weights_are_refused(reviews, register, client):
    version = register()
    source = Path(client.get_model_version("reviews", version.number).source.removeprefix("file://"))
    (weights,) = source.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(TrackingError, match=r"version 1: the stored weights are .* were altered"):
        reviews.download(version)
    assert not list((reviews._root / ".regraft" / "champions").glob("*/*"))


@pytest.mark.parametrize("name", ["model/model.safetensors", "components/tokenizer", "."])
def test_a_missing_artifact_is_an_error_that_names_the_version(reviews, register, client, name):
    version = register()
    source = Path(client.get_model_version("reviews", version.number).source) / name
    source.unlink() if source.is_file() else shutil.rmtree(source)
    with pytest.raises(TrackingError, match=r"reviews version 1|No such artifact"):
        reviews.download(version)
    assert not list((reviews._root / ".regraft" / "champions").glob("*"))


def test_without_a_champion_there_is_nothing_to_load(tracked, reviews, register):
    assert reviews.champion() is None
    with pytest.raises(InputError, match="reviews has no champion yet"):
        reviews.must_have_champion()
    register()
    assert reviews.champion() is None


def test_a_registry_that_fails_is_not_a_registry_without_a_champion(reviews, monkeypatch):
    def fail(name):
        raise registry.MlflowException("the database is on fire")

    monkeypatch.setattr(reviews._client, "get_registered_model", fail)
    with pytest.raises(TrackingError, match="on fire"):
        reviews.champion()


def test_the_alias_moves_with_a_line_in_the_history(reviews, register):
    for seed in (0, 1):
        promote(reviews, register(seed).number, reason=f"reason {seed}")
    assert reviews.champion().number == "2"
    assert [(m.version, m.reason, m.by, m.action) for m in reviews.history()] == [
        ("1", "reason 0", "ann", "promote"),
        ("2", "reason 1", "ann", "promote"),
    ]


def test_the_line_is_written_before_the_alias_moves(reviews, register, monkeypatch):
    version = register()

    def fail(*args):
        raise registry.MlflowException("lost")

    monkeypatch.setattr(reviews._client, "set_registered_model_alias", fail)
    with pytest.raises(TrackingError, match="lost"):
        promote(reviews, version.number)
    assert reviews.champion() is None
    assert [move.version for move in reviews.history()] == ["1"]


def test_rollback_goes_back_step_by_step(reviews, register):
    for seed in range(3):
        promote(reviews, register(seed).number)
    assert reviews.rollback(to=None, reason="worse in use", by="ann") == ("3", "2")
    assert reviews.rollback(to=None, reason="that too", by="ann") == ("2", "1")
    assert reviews.champion().number == "1"
    assert reviews.history()[-1].reason == "that too"
    with pytest.raises(InputError, match="version 1 is the first champion"):
        reviews.rollback(to=None, reason="", by="ann")


def test_rollback_to_a_version(reviews, register):
    for seed in range(2):
        promote(reviews, register(seed).number)
    with pytest.raises(InputError, match="has no version 7; known: 1, 2"):
        reviews.rollback(to="7", reason="", by="ann")
    with pytest.raises(InputError, match="version 2 is the champion already"):
        reviews.rollback(to="2", reason="", by="ann")
    assert reviews.rollback(to="1", reason="", by="ann") == ("2", "1")


def test_rollback_without_a_champion(reviews):
    with pytest.raises(InputError, match="no champion: there is nothing to roll back"):
        reviews.rollback(to=None, reason="", by="ann")


@pytest.mark.parametrize(
    ("moves", "now", "expected"),
    [
        ("", "1", None),
        ("p1", "1", None),
        ("p1 p2", "2", "1"),
        ("p1 p2 p3 r2", "2", "1"),
        ("p1 p2 p3 r1", "1", None),
        ("p1 p2 r1 p3", "3", "1"),
        ("p1 p2 p1", "1", "2"),
        ("p1 p2 p1 r2", "2", "1"),
        ("p1 p2", "1", None),  # the line of 2 was written, its move was not
        ("p1 p2", "9", "2"),  # moved by other hands
        ("p1 p1 p2", "2", "1"),
        ("p1 p2 r1 b2 p3", "3", "2"),  # the rollback was broken off
        ("p1 p2 b1 p3", "3", "1"),
        ("p1 p2 b1 p2 b1 p3 r1", "1", None),
    ],
)
def test_the_champion_before(moves, now, expected):
    actions = {"p": "promote", "r": "rollback", "b": "broken"}
    lines = [Move(move[1], "", "", "", actions[move[0]]) for move in moves.split()]
    assert history.former(lines, now) == expected


def test_no_line_of_the_history_is_ever_lost(reviews, register):
    version = register()
    for number in range(4):
        promote(reviews, version.number, reason=f"{number}{'x' * 1900}")
    assert [move.reason[0] for move in reviews.history()] == ["0", "1", "2", "3"]
    assert {len(move.reason) for move in reviews.history()} == {1901}


def test_lines_fit_a_tag_and_stand_in_order_however_many_there_are():
    moves = [Move(str(number), "", "", '"' * 9000, "promote") for number in range(1200)]
    tags = history.write(moves[:2]) | history.write(moves[2:], after=2)
    assert [move.version for move in history.read(tags)] == [move.version for move in moves]
    assert max(map(len, tags.values())) < 5000  # what databases hold


def test_any_number_of_versions_is_counted_as_judged_in_tags_that_databases_hold():
    tags = {"regraft.judged.other": "7", "regraft.judged.aa": "1 2"}
    for number in map(str, range(3, 2501)):
        tags |= [contents.one_more(contents.judged(tags, "sha256:aa"), number)]
    lists = contents.judged(tags, "sha256:aa")
    assert [number for numbers in lists.values() for number in numbers] == [str(n) for n in range(1, 2501)]
    assert len(lists) > 2
    assert max(map(len, tags.values())) < 5000


def test_a_version_is_counted_as_judged_once_on_each_test_set(reviews, client):
    client.create_registered_model("reviews")
    full = " ".join(map(str, range(1000, 1900)))
    client.set_registered_model_tag("reviews", "regraft.judged.aa", full)
    asked = [("7", "aa"), ("7", "aa"), ("1500", "aa"), ("8", "aa"), ("7", "bb")]
    counted = [reviews.judged(Version(number, "", {}), test=f"sha256:{test}") for number, test in asked]
    assert counted == [901, 901, 901, 902, 1]
    assert client.get_registered_model("reviews").tags == {
        "regraft.judged.aa": full,
        "regraft.judged.aa.000001": "7 8",
        "regraft.judged.bb": "7",
    }


def test_a_history_in_one_tag_is_read_and_taken_apart_by_the_next_move(reviews, register, client):
    version = register()
    lines = [{"version": "1", "at": "", "by": "ann", "reason": f"{n}", "action": "promote"} for n in range(3)]
    client.set_registered_model_tag("reviews", history.FORMER, json.dumps(lines))
    client.set_registered_model_alias("reviews", "champion", "1")
    assert [move.reason for move in reviews.history()] == ["0", "1", "2"]
    promote(reviews, version.number, reason="3")
    assert [move.reason for move in reviews.history()] == ["0", "1", "2", "3"]
    assert history.FORMER not in client.get_registered_model("reviews").tags


def test_what_other_hands_did_stands_in_the_history(reviews, register, client):
    for seed in range(3):
        register(seed)
    promote(reviews, "1")
    client.set_registered_model_alias("reviews", "champion", "2")
    promote(reviews, "3")
    assert [(move.version, move.action) for move in reviews.history()] == [
        ("1", "promote"),
        ("2", "found"),
        ("3", "promote"),
    ]
    assert reviews.rollback(to=None, reason="worse in use", by="ann") == ("3", "2")


def test_a_first_champion_that_other_hands_named_can_be_gone_back_to(reviews, register, client):
    for seed in range(2):
        register(seed)
    client.set_registered_model_alias("reviews", "champion", "1")
    promote(reviews, "2")
    assert [(move.version, move.action) for move in reviews.history()] == [("1", "found"), ("2", "promote")]
    assert reviews.rollback(to=None, reason="worse in use", by="ann") == ("2", "1")


def test_a_first_promotion_that_was_broken_off_leaves_no_champion_to_go_back_to(
    reviews, register, monkeypatch
):
    def fail(*args):
        raise registry.MlflowException("lost")

    for seed in range(2):
        register(seed)
    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="lost"):
        patch.setattr(reviews._client, "set_registered_model_alias", fail)
        promote(reviews, "1")
    promote(reviews, "2")
    assert [move.action for move in reviews.history()] == ["promote", "broken", "promote"]
    with pytest.raises(InputError, match="version 2 is the first champion"):
        reviews.rollback(to=None, reason="worse in use", by="ann")


def test_a_rollback_that_was_broken_off_takes_nobody_from_the_history(reviews, register, monkeypatch):
    def fail(*args):
        raise registry.MlflowException("lost")

    for seed in range(3):
        promote(reviews, register(seed).number)
    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="lost"):
        patch.setattr(reviews._client, "set_registered_model_alias", fail)
        reviews.rollback(to="1", reason="worse in use", by="ann")
    assert reviews.rolled_back() == set()
    assert reviews.rollback(to=None, reason="worse in use", by="ann") == ("3", "2")
    assert [move.action for move in reviews.history()[-3:]] == ["rollback", "broken", "rollback"]
    assert reviews.rolled_back() == {"3"}


@pytest.fixture
def widowed(reviews, register, client):
    """Version 2 was champion, and its alias is gone: MLflow deletes it with the version."""

    def part(*, delete):
        for seed in range(2):
            promote(reviews, register(seed).number)
        if delete:
            client.delete_model_version("reviews", "2")
        else:
            client.delete_registered_model_alias("reviews", "champion")

    return part


@pytest.mark.parametrize("delete", [False, True])
def test_a_champion_that_was_deleted_is_not_the_absence_of_one(reviews, widowed, delete):
    widowed(delete=delete)
    with pytest.raises(TrackingError, match="version 2 was champion, and other hands deleted it"):
        reviews.champion()
    assert reviews.rollback(to=None, reason="", by="ann") == ("2", "1")
    assert reviews.champion().number == "1"


def test_an_alias_that_was_taken_away_is_given_back(reviews, widowed):
    widowed(delete=False)
    assert reviews.rollback(to="2", reason="", by="ann") == ("2", "2")
    assert reviews.champion().number == "2"


def test_a_deleted_version_is_no_way_back(reviews, widowed):
    widowed(delete=True)
    with pytest.raises(InputError, match="has no version 2; known: 1"):
        reviews.rollback(to="2", reason="", by="ann")


def test_no_alias_moves_without_the_lease(reviews, register):
    version = register()
    with pytest.raises(RuntimeError, match="under `locked` alone"):
        reviews.promote(version.number, reason="", by="ann")


def test_a_lease_that_was_taken_over_moves_no_alias(reviews, register, client):
    version = register()
    with pytest.raises(TrackingError, match="took the lease 1 over"), reviews.locked():
        client.create_registered_model("reviews.lock.2")
        reviews.promote(version.number, reason="", by="ann")
    assert (reviews.champion(), reviews.history()) == (None, [])


def test_predictions_are_kept_by_version_and_test_rows(reviews, register, tmp_path):
    first, second = register(0), register(1)
    (tmp_path / "p.parquet").write_bytes(b"answers")
    reviews.keep_predictions(first, tmp_path / "p.parquet", test="sha256:aa")
    first = reviews.version(first.number)  # as the next run will see it
    assert reviews.keeps_predictions(first, test="sha256:aa")
    assert reviews.predictions(first, tmp_path, test="sha256:aa").read_bytes() == b"answers"
    assert reviews.predictions(first, tmp_path, test="sha256:bb") is None
    assert reviews.predictions(second, tmp_path, test="sha256:aa") is None
