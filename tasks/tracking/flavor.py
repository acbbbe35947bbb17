"""A trained classifier in MLflow's transformers flavor, as `mlflow models serve` and pyfunc load it."""

import shutil
from importlib import metadata
from logging import ERROR, getLogger
from pathlib import Path

import mlflow.transformers
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema
from transformers import AutoModelForSequenceClassification, AutoTokenizer

WEIGHTS = "model.safetensors"
EXAMPLE = ["what a lovely day", "this was a waste of time"]
PAIRS = [{"text": "the day was lovely", "text_pair": "it rained all day"}]
ANSWER = Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")])
TEXT = Schema([ColSpec(DataType.string)])
BOTH = Schema([ColSpec(DataType.string, name) for name in ("text", "text_pair")])


def save(directory: Path, target: Path, about: Model, *, max_length: int, pairs: bool) -> None:
    """Write the transformers directory `directory` to `target`, with its weights file byte for byte.

    Served, it cuts texts, or `pairs` of text and text_pair, to `max_length` tokens as in training. Nothing is
    asked of the network.
    """
    getLogger("mlflow.transformers").setLevel(ERROR)  # it warns that a local model has no card on the Hub
    model = AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    # MLflow asks the Hub for the card of whatever name the model bears; no repository can have this one.
    model.name_or_path = f"regraft://{directory.name}"
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": tokenizer},  # a path would fail: 'str' has no __name__
        str(target),
        task="text-classification",
        mlflow_model=about,
        signature=ModelSignature(inputs=BOTH if pairs else TEXT, outputs=ANSWER),
        input_example=PAIRS if pairs else EXAMPLE,
        model_config={"truncation": True, "max_length": max_length},
        pip_requirements=_requirements(),  # the default ones import torchvision
    )
    (target / "LICENSE.txt").unlink(missing_ok=True)  # MLflow's guess from the name above
    shutil.copyfile(directory / WEIGHTS, target / "model" / WEIGHTS)  # what was measured, by the byte


def _requirements() -> list[str]:
    packages = ("mlflow", "torch", "transformers")
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in packages]
