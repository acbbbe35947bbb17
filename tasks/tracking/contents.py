"""What a registered version holds: a transformers directory, stored once per weights, and its answers."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tasks import files
from tasks.errors import TrackingError
from tasks.tracking import live

WEIGHTS, SERVED = "regraft.weights", "regraft.served"
WEIGHTS_FILE = "model.safetensors"
ADAPTER = "regraft.adapter"  # tag: digest of the adapter that the weights learned in
ADAPTER_FOLDER = "adapter"
BUNDLE = "regraft.bundle"  # tag: digest of the adapters, tokenizer and base that it is made of
LONGEST = 4500  # characters of a registered model's tag; databases hold 5,000
STOCK, OWN = ("model", "components/tokenizer"), ("data/model",)  # what flavor.py divides a directory into


def log(
    client: MlflowClient,
    name: str,
    directory: Path,
    run_id: str,
    weights: str,
    *,
    max_length: int,
    kind: str,
    stride: int | None = None,
    card: Path | None = None,
    adapter: Path | None = None,
) -> Any:
    """The complete MLflow model of these weights that answers so, logged now or when a registration got no
    further; the `adapter` that they learned in stands in it too."""
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    beside = files.digest_tree(directory, without=WEIGHTS_FILE)
    apart = [] if adapter is None else [files.digest_tree(adapter)]
    served = files.digest_json([beside, kind, max_length, stride, *apart])
    if known := _find(client, experiment, weights, served):
        return known
    shown = {tag: value for tag, value in run.data.tags.items() if tag.startswith("mlflow.source.")}
    tags = {WEIGHTS: weights, SERVED: served, **shown}
    made = client.create_logged_model(experiment, f"{name}-{weights[7:15]}", run_id, tags=tags)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        from tasks.tracking import flavor  # heavy, and a registered model needs it no more

        about = Model(run_id=run_id, model_id=made.model_id)
        flavor.save(directory, target, about, max_length=max_length, kind=kind, stride=stride)
        if card is not None:
            shutil.copyfile(card, target / _parts(target)[0] / "README.md")
        if adapter is not None:
            shutil.copytree(adapter, target / ADAPTER_FOLDER)
        client.log_model_artifacts(made.model_id, str(target))
    for which in {run_id, run.data.tags.get(MLFLOW_PARENT_RUN_ID, run_id)}:
        client.log_outputs(which, [LoggedModelOutput(made.model_id, 0)])
    return client.finalize_logged_model(made.model_id, "READY")


def log_bundle(client: MlflowClient, name: str, save: Callable[[Path, Model], None]) -> Any:
    """What `save` writes, as a logged model of a run of its own."""
    experiment = live.experiment_id(client, name)
    run = client.create_run(experiment, run_name="bundle", tags={"regraft.stage": "bundle"}).info.run_id
    made = client.create_logged_model(experiment, f"{name}-bundle", run)
    try:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder) / "model", Model(run_id=run, model_id=made.model_id))
            client.log_model_artifacts(made.model_id, str(Path(folder) / "model"))
        client.log_outputs(run, [LoggedModelOutput(made.model_id, 0)])
        ready = client.finalize_logged_model(made.model_id, "READY")
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)
    return ready


def _find(client: MlflowClient, experiment: str, weights: str, served: str) -> Any | None:
    """The complete MLflow model of these weights that answers as `served` says; None where there is none."""
    for found in client.search_logged_models([experiment], f"tags.`{WEIGHTS}` = '{weights}'"):
        if found.status == "READY" and found.tags.get(SERVED, served) == served:
            return found
    return None


def fetch_once(client: MlflowClient, name: str, number: str, weights: str, target: Path) -> None:
    """As `fetch`, unless `target` is there; TrackingError where the weights are not those registered."""
    if not (target / WEIGHTS_FILE).exists():
        with files.replace_directory(target) as draft:
            fetch(client, name, number, draft)
    if (found := files.digest_file(target / WEIGHTS_FILE)) != weights:
        shutil.rmtree(target)
        raise TrackingError(
            f"{name} version {number}: the stored weights are {found}, registered were {weights or 'none'}; "
            "its artifacts were altered, roll back to another version"
        )


def fetch(client: MlflowClient, name: str, number: str, draft: Path) -> None:
    """Model and tokenizer of version `number` into `draft`; TrackingError where a file is missing."""
    source = client.get_model_version_download_uri(name, number)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = Path(mlflow.artifacts.download_artifacts(source, None, None, folder, client.tracking_uri))
            for part in _parts(found):
                shutil.copytree(found / part, draft, dirs_exist_ok=True)
            (draft / WEIGHTS_FILE).stat()
        except FileNotFoundError as error:
            raise TrackingError(f"{name} version {number} is not whole in {source}: {error}") from error


def fetch_adapter(client: MlflowClient, name: str, number: str, digest: str, target: Path) -> None:
    """The adapter of version `number` as the folder `target`, unless it is there.

    Raises TrackingError where it is missing, or is not the one that was registered.
    """
    if not target.exists():
        source = f"{client.get_model_version_download_uri(name, number)}/{ADAPTER_FOLDER}"
        with files.replace_directory(target) as draft, tempfile.TemporaryDirectory() as folder:
            found = mlflow.artifacts.download_artifacts(source, None, None, folder, client.tracking_uri)
            shutil.copytree(found, draft, dirs_exist_ok=True)
    if (found := files.digest_tree(target)) != digest:
        shutil.rmtree(target)
        raise TrackingError(
            f"{name} version {number}: the stored adapter is {found}, registered was {digest}; its artifacts "
            "were altered, roll back to another version"
        )


def kept(test: str) -> str:
    """Tag of a version: the file with its answers to the test rows of this digest."""
    return f"regraft.predictions.{test.removeprefix('sha256:')[:16]}"


def judged(tags: Mapping[str, str], test: str) -> dict[str, list[str]]:
    """Of a model's tags those that list the versions judged on the test rows of this digest, at least one."""
    name = f"regraft.judged.{test.removeprefix('sha256:')[:16]}"
    named = {tag for tag in tags if tag == name or tag.startswith(f"{name}.")}
    return {tag: tags.get(tag, "").split() for tag in sorted({name} | named)}


def one_more(lists: Mapping[str, list[str]], number: str) -> tuple[str, str]:
    """The tag that counts the version `number` too, and its value: the last of them, or one behind it."""
    names = list(lists)
    value = " ".join([*lists[names[-1]], number])
    return (names[-1], value) if len(value) <= LONGEST else (f"{names[0]}.{len(lists):06}", number)


def predictions_name(number: str, test: str) -> str:
    """Two versions may share a run, where a stage was run again with another result."""
    return f"version-{number}-{test.removeprefix('sha256:')[:32]}.parquet"


def _parts(found: Path) -> tuple[str, ...]:
    return OWN if (found / OWN[0]).exists() else STOCK
