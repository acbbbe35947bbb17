"""A trained model in MLflow's transformers flavor, as `mlflow models serve` and pyfunc load it.

A class of ours is none that transformers loads, and for answers and translations it has no pipeline: these
become a pyfunc with the code that computes them. No index has a package of ours to name as a requirement, and
a model should answer by the code that it was judged with.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from logging import ERROR, getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow.pyfunc
import mlflow.transformers
import transformers
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, Object, Property, Schema
from transformers import AutoTokenizer

from tasks import architectures

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TASKS = Path(__file__).parents[1]
CODE = (
    "__init__.py",
    "architectures.py",
    "spans.py",
    "tracking/__init__.py",
    "tracking/answering.py",
)  # of a served model
EXAMPLE = ["what a lovely day", "this was a waste of time"]
PAIRS = [{"text": "the day was lovely", "text_pair": "it rained all day"}]
ANSWER = Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")])
TEXT = Schema([ColSpec(DataType.string)])
LONGEST = 64  # tokens that a language model says, at most
WRITTEN = ("translation", "prefix-remainder")
QUESTIONS = [{"context": "It rained all day in Ghent.", "question": "Where did it rain?"}]
ASKED = Schema([ColSpec(DataType.string, name) for name in ("context", "question")])
TOLD = ["adapter", "version", "prediction", "probabilities"]  # columns of a bundle's answers
BUNDLED = (  # what a bundle needs to answer, in an environment of its own
    "fastapi", "filelock", "ftfy", "jinja2", "mlflow", "numpy", "pandas", "peft", "polars", "psutil",
    "pyarrow", "pydantic", "pyyaml", "rensa", "rich", "sacrebleu", "safetensors", "scikit-learn", "scipy",
    "sqlalchemy", "torch", "transformers",
)  # fmt: skip
BOTH = Schema([ColSpec(DataType.string, name) for name in ("text", "text_pair")])


@dataclass(frozen=True)
class Serving:
    """How a model of rows of one kind is asked and answers; `config` is what its pipeline is told."""

    task: str  # of transformers; "" where it has none
    inputs: Schema
    outputs: Schema
    example: Any
    config: Mapping[str, Any]


def serving(kind: str, labels: int, max_length: int, *, masked: bool, stride: int | None = None) -> Serving:
    """Of rows of `kind` with so many labels. A row with any number of labels is answered by all of them, the
    likeliest in the column 0, each with its own probability; a score stands under `score`. Of tags
    MLflow's pyfunc gives those of a text's tokens with commas between; `mlflow.transformers.load_model` gives
    the pipeline, which also tells where in the text each stands."""
    task, config = "text-classification", {"truncation": True, "max_length": max_length}
    if kind == "answer":
        found = {"answers": "found", "max_length": max_length, "stride": stride}
        return Serving("", ASKED, TEXT, QUESTIONS, found)
    if kind in WRITTEN:
        return Serving("", TEXT, TEXT, EXAMPLE, {"answers": "written", "max_length": max_length})
    if kind == "pair":
        return Serving(task, BOTH, ANSWER, PAIRS, config)
    if kind == "labels":
        ranked = Object([Property("label", DataType.string), Property("score", DataType.double)])
        columns = Schema([ColSpec(ranked, str(place)) for place in range(labels)])
        return Serving(task, TEXT, columns, EXAMPLE, {**config, "top_k": labels})
    if kind in ("text", "completion", "chat"):
        return _language(max_length, masked=masked)
    if kind == "tags":
        return Serving("token-classification", TEXT, TEXT, EXAMPLE, {"ignore_labels": []})
    return Serving(task, TEXT, ANSWER, EXAMPLE, config)


def _language(max_length: int, *, masked: bool) -> Serving:
    """A text is continued, a chat as its template has written it; where the model guesses hidden tokens, the
    one mask of a text is filled."""
    if masked:
        cut = {"truncation": True, "max_length": max_length}
        return Serving("fill-mask", TEXT, TEXT, EXAMPLE, {"tokenizer_kwargs": cut})
    config = {"max_new_tokens": LONGEST, "do_sample": False, "return_full_text": False, "truncation": True}
    return Serving("text-generation", TEXT, TEXT, EXAMPLE, config)


def save(
    directory: Path, target: Path, about: Model, *, max_length: int, kind: str, stride: int | None = None
) -> None:
    """Write the transformers directory `directory` to `target`, with its weights file byte for byte.

    Served, it answers rows of `kind` as `serving` says, cut to `max_length` tokens, or windows of as many
    that share `stride`, as in training. Nothing is asked of the network.
    """
    if kind in ("answer", *WRITTEN) or _architecture(directory) in architectures.CLASSES:
        return _save_own(directory, target, about, max_length=max_length, kind=kind, stride=stride)
    getLogger("mlflow.transformers").setLevel(ERROR)  # it warns that a local model has no card on the Hub
    model = getattr(transformers, _architecture(directory)).from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokenizer.model_max_length = _room(model, max_length)  # some pipelines are not told it otherwise
    # MLflow asks the Hub for the card of whatever name the model bears; no repository can have this one.
    model.name_or_path = f"regraft://{directory.name}"
    served = serving(kind, model.config.num_labels, max_length, masked=not model.can_generate())
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": tokenizer},  # a path would fail: 'str' has no __name__
        str(target),
        task=served.task,
        mlflow_model=about,
        signature=ModelSignature(inputs=served.inputs, outputs=served.outputs),
        input_example=served.example,
        model_config=dict(served.config),
        pip_requirements=requirements(),  # the default ones import torchvision
    )
    (target / "LICENSE.txt").unlink(missing_ok=True)  # MLflow's guess from the name above
    shutil.copyfile(directory / WEIGHTS, target / "model" / WEIGHTS)  # what was measured, by the byte


def _save_own(
    directory: Path, target: Path, about: Model, *, max_length: int, kind: str, stride: int | None
) -> None:
    """The directory as it is, and the modules that load and ask it, under their own names."""
    names = json.loads((directory / CONFIG).read_text(encoding="utf-8")).get("id2label", ())
    served = serving(kind, len(names), max_length, masked=False, stride=stride)
    with TemporaryDirectory() as folder:
        code = Path(folder) / "tasks"
        for path in CODE:
            (code / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TASKS / path, code / path)
        mlflow.pyfunc.save_model(
            str(target),
            loader_module="tasks.tracking.answering",
            data_path=str(shutil.copytree(directory, Path(folder) / "model")),
            code_paths=[str(code)],
            mlflow_model=about,
            signature=ModelSignature(inputs=served.inputs, outputs=served.outputs),
            input_example=served.example,
            model_config=dict(served.config),
            pip_requirements=requirements(),
        )


def save_bundle(packed: Path, target: Path, about: Model, *, example: Any, loader: str) -> None:
    """Write the directory `packed` to `target` as a pyfunc that the module `loader` of ours loads, with all
    our modules. It is asked for rows like `example`, a data frame with the columns text and adapter."""
    asked = [
        ColSpec(DataType.string, name, required=name == "text") for name in ("text", "adapter", "text_pair")
    ]
    told = [ColSpec(DataType.string, name, required=name == "adapter") for name in TOLD]
    mlflow.pyfunc.save_model(
        str(target),
        loader_module=loader,
        data_path=str(packed),
        code_paths=[str(TASKS)],
        mlflow_model=about,
        signature=ModelSignature(inputs=Schema(asked), outputs=Schema(told)),
        input_example=example,
        pip_requirements=requirements(BUNDLED),
    )


def _architecture(directory: Path) -> str:
    return str(json.loads((directory / CONFIG).read_text(encoding="utf-8"))["architectures"][0])


def _room(model: Any, max_length: int) -> int:
    """Tokens that a text may have: what a language model goes on to say must fit its positions too."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not model.can_generate() or positions is None:
        return max_length
    return max(1, min(max_length, int(positions) - LONGEST))


def requirements(packages: Sequence[str] = ("mlflow", "torch", "transformers")) -> list[str]:
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in packages]
