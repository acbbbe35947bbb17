"""A class of ours in the registry: MLflow answers from it by the code that came with it, and nothing else."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import mlflow.pyfunc
import pandas
import pytest
import torch
from mlflow import MlflowClient
from mlflow.models import Model
from transformers import AutoConfig, AutoTokenizer

from tasks import architectures, files
from tasks.model import floors
from tasks.tracking import flavor, server
from tasks.tracking.registry import Registry

TEXTS = ["good film " * 40, "bad", "good"]  # the first is longer than the model has positions
PROBLEMS = {
    "label": "single_label_classification",
    "labels": "multi_label_classification",
    "pair": "single_label_classification",
    "score": "regression",
}


@pytest.fixture
def mean_classifier(tiny_classifier, tmp_path):
    """Kind of row -> a directory with a random classifier that reads the mean."""

    def write(kind):
        labels = ("score",) if kind == "score" else ("bad", "fair", "good")
        directory = tiny_classifier(tmp_path / "stock", labels=labels)
        fields = AutoConfig.from_pretrained(directory).to_dict() | {"problem_type": PROBLEMS[kind]}
        torch.manual_seed(0)
        config = architectures.MeanBertConfig(**{k: v for k, v in fields.items() if k != "model_type"})
        architectures.BertForMeanClassification(config).save_pretrained(directory)
        return directory

    return write


def _logits(directory, *columns):
    tokenizer, model = AutoTokenizer.from_pretrained(directory), floors.load(directory)
    given = tokenizer(*columns, truncation=True, max_length=16, padding=True, return_tensors="pt")
    if len(columns) == 1:
        given.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**given).logits


def _saved(directory, target, kind, stride=None):
    flavor.save(directory, target, Model(), max_length=16, kind=kind, stride=stride)
    return mlflow.pyfunc.load_model(str(target))


def test_a_label_is_answered_with_its_probability(mean_classifier, tmp_path):
    directory = mean_classifier("label")
    found = _saved(directory, tmp_path / "saved", "label").predict(TEXTS)
    best = _logits(directory, TEXTS).softmax(dim=-1).max(dim=-1)
    assert found["label"].tolist() == [("bad", "fair", "good")[place] for place in best.indices]
    assert found["score"].tolist() == pytest.approx(best.values.tolist(), abs=1e-6)


def test_every_label_of_a_row_that_may_have_several_is_answered(mean_classifier, tmp_path):
    directory = mean_classifier("labels")
    found = _saved(directory, tmp_path / "saved", "labels").predict(TEXTS)
    shares = _logits(directory, TEXTS).sigmoid()
    assert list(found.columns) == ["0", "1", "2"]
    for row, expected in zip(found.to_dict("records"), shares, strict=True):
        told = {one["label"]: one["score"] for one in row.values()}
        assert [told[name] for name in ("bad", "fair", "good")] == pytest.approx(expected.tolist(), abs=1e-6)
        assert [row[str(rank)]["score"] for rank in range(3)] == sorted(told.values(), reverse=True)


def test_a_score_is_answered_as_it_is(mean_classifier, tmp_path):
    directory = mean_classifier("score")
    found = _saved(directory, tmp_path / "saved", "score").predict(TEXTS)
    assert found["score"].tolist() == pytest.approx(_logits(directory, TEXTS)[:, 0].tolist(), abs=1e-6)


def test_both_texts_of_a_pair_are_read(mean_classifier, tmp_path):
    directory = mean_classifier("pair")
    loaded = _saved(directory, tmp_path / "saved", "pair")
    pairs = [{"text": "good", "text_pair": other} for other in TEXTS]
    expected = _logits(directory, ["good"] * 3, TEXTS).softmax(dim=-1).max(dim=-1).values
    assert loaded.predict(pairs)["score"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_code_that_comes_along_is_that_of_this_project_and_nothing_is_pickled(mean_classifier, tmp_path):
    _saved(mean_classifier("label"), tmp_path / "saved", "label")
    code = tmp_path / "saved" / "code" / "tasks"
    assert sorted(str(path.relative_to(code)) for path in code.rglob("*.py")) == sorted(flavor.CODE)
    for name in flavor.CODE:
        assert (code / name).read_bytes() == (flavor.TASKS / name).read_bytes()
    assert not [*(tmp_path / "saved").rglob("*.pkl")]


def test_what_was_registered_comes_back_whole(tracked, mean_classifier, tmp_path):
    directory = mean_classifier("label")
    reviews, client = Registry(tracked, "reviews"), MlflowClient(tracking_uri=server.uri(tracked))
    place = str(tracked / ".regraft" / "mlartifacts")
    run_id = client.create_run(client.create_experiment("reviews", artifact_location=place)).info.run_id
    version = reviews.register(directory, run_id=run_id, max_length=16, kind="label", reading={}, tags={})
    again = reviews.download(version)
    assert files.digest_file(again / "model.safetensors") == version.weights
    assert {path.name for path in again.iterdir()} == {path.name for path in directory.iterdir()}
    assert torch.equal(_logits(again, TEXTS), _logits(directory, TEXTS))


@pytest.mark.e2e
def test_mlflow_serves_it_far_from_this_project(mean_classifier, tmp_path):
    directory = mean_classifier("label")
    flavor.save(directory, tmp_path / "saved", Model(), max_length=16, kind="label")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["models", "serve", "-m", str(tmp_path / "saved"), "--env-manager", "local", "-p", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mlflow", *command], cwd=tmp_path, env=environment,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        found = _asked(f"http://127.0.0.1:{port}/invocations", {"inputs": TEXTS}, process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
    expected = _logits(directory, TEXTS).softmax(dim=-1).max(dim=-1).values
    assert [row["score"] for row in found["predictions"]] == pytest.approx(expected.tolist(), abs=1e-6)


def _asked(address, body, process):
    """What the server answers, once it has started."""
    request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except (URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError("the server did not start")


def test_an_answer_is_found_by_the_code_that_came_with_the_model(tiny, tiny_tokenizer, tmp_path):
    directory = tmp_path / "stock"
    model = tiny("BertForQuestionAnswering")
    model.save_pretrained(directory)
    tiny_tokenizer(directory)
    served = _saved(directory, tmp_path / "served", "answer")
    context = "good film " * 30  # several windows
    asked = [{"context": context, "question": "good " * 40}, {"context": "bad film", "question": "which"}]
    said = served.predict(pandas.DataFrame(asked))
    assert all(answer in row["context"] for answer, row in zip(said, asked, strict=True))
    assert _saved(directory, tmp_path / "dense", "answer", stride=5)._model_impl.stride == 5
    with torch.no_grad():
        model.qa_outputs.bias.zero_()
        model.qa_outputs.weight.zero_()  # nothing is likelier than no answer
    model.save_pretrained(directory)
    assert _saved(directory, tmp_path / "silent", "answer").predict(pandas.DataFrame(asked)) == ["", ""]


def test_a_translation_is_written_by_the_code_that_came_with_the_model(tiny, tiny_tokenizer, tmp_path):
    directory = tmp_path / "stock"
    model = tiny("T5ForConditionalGeneration")
    model.save_pretrained(directory)
    tiny_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    said = _saved(directory, tmp_path / "served", "translation").predict(["good film", "bad"])
    for text, found in zip(["good film", "bad"], said, strict=True):
        given = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        alone = model.generate(**given, max_new_tokens=16, do_sample=False)
        assert found == tokenizer.decode(alone[0], skip_special_tokens=True)
