import numpy as np
import pytest
from huggingface_hub import ModelCard

from tasks.evaluation import card
from tasks.evaluation.behaviour import Checked
from tasks.evaluation.card import Origin
from tasks.evaluation.figures.metrics import Interval
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.report import Facts
from tasks.evaluation.slices import Measured

ACCURACY = {"accuracy": Interval(0.75, 0.5, 1.0)}


def facts():
    answers = Predictions(
        "model", ("a", "b"), np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    )
    return Facts(
        labels=("bad", "good"),
        figures={"majority": ACCURACY, "model": ACCURACY},
        descriptions={},
        comparisons={},
        confidence=0.95,
        answers=answers,
        texts={"a": "a private text", "b": "another one"},
        pictures=(),
        sources={},
        rows={"train": 4800, "test": 2},
        subset={"train": 4800},
        test="sha256:t",
        groups=2,
        slices=[Measured("a | b", "told", 300, ACCURACY), Measured("small", "told", 3, {})],
        smallest=100,
        trust=None,
        wanted=None,
        behaviour=[Checked("typo", "invariance", "told", 9, Interval(1, 0.7, 1), None, ())],
    )


def origin(**changes):
    values = {
        "base": "package:bert==1.0/model",
        "base_licence": "Apache-2.0",
        "data": "/home/ann/secret project/reviews.csv",
        "data_licence": "our own",
        "languages": ("en",),
        "phases": [{"name": "head", "floors": ("head",), "steps": 80, "parameters": 148995}],
        "proofs": {"load": "no tensor missing"},
        "contamination": "none",
        "forgetting": "little",
        "digests": {"Weights": "sha256:w"},
    }
    return Origin(**(values | changes))


def test_the_hub_reads_the_front_matter():
    found = ModelCard(card.render(facts(), origin())).data.to_dict()
    assert found == {
        "license": "apache-2.0", "base_model": "package:bert==1.0/model", "datasets": ["reviews.csv"],
        "language": ["en"], "library_name": "transformers", "metrics": ["accuracy"],
        "pipeline_tag": "text-classification", "tags": ["regraft"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("licence", "expected"), [("MIT", ("mit", None)), ("not stated", ("other", "not stated"))]
)
def test_a_licence_that_the_hub_does_not_know_is_told_in_words(licence, expected):
    data = ModelCard(card.render(facts(), origin(base_licence=licence, languages=()))).data
    assert (data.license, data.license_name) == expected
    assert data.language is None


def test_the_card_tells_figures_limits_and_digests_and_no_text_or_folder_of_anybody():
    text = card.render(facts(), origin())
    for told in (
        "| model | 0.750 (0.500 – 1.000) |",
        "| head | head | 80 | 148,995 |",
        "| a \\| b | 300 |",
        "| typo | invariance | 9 | 1.000 (0.700 – 1.000) |",
        "- Weights: `sha256:w`",
        "licence our own",
        "- Forgetting: little.",
        "at most 4,800 train",
    ):
        assert told in text
    assert "private" not in text
    assert "ann" not in text.replace("another", "")
    assert "small" not in text
    assert card.render(facts(), origin()) == text


def test_a_class_of_ours_is_not_said_to_be_of_transformers():
    text = card.render(facts(), origin(own="BertForMeanClassification"))
    assert ModelCard(text).data.library_name == "mlflow"
    assert "plain transformers does not" in text
    assert "plain transformers" not in card.render(facts(), origin())
