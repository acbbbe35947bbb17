"""The form that a deployment of `transfer` shows: every key of params.yaml, its default, what it means."""

import shutil
from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema

from flows.pipeline import transfer
from flows.retraining import retrain
from tasks import params as parameters

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def form(tmp_path, monkeypatch):
    """As `prefect deploy` makes it in a checkout whose params.yaml is not the shipped one."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    mine = parameters.override(parameters.load(tmp_path / "params.yaml"), ["finetuning.batch_size=7"])
    (tmp_path / "params.yaml").write_text(parameters.dump(mine))
    monkeypatch.chdir(tmp_path)
    return parameter_schema(transfer).model_dump()


def test_the_form_begins_with_the_values_of_params_yaml(form):
    mine = parameters.load(Path("params.yaml")).model_dump(mode="json")
    shown = form["definitions"]["Params"]["properties"]
    assert {name: about["default"] for name, about in shown.items()} == mine
    assert shown["finetuning"]["default"]["batch_size"] == 7
    assert form["properties"]["params"]["default"] is None, "who fills nothing in runs the checkout"


def test_every_key_of_the_form_says_what_it_means(form):
    definitions = form["definitions"]
    keys = {
        f"{name}.{key}": about
        for name, model in definitions.items()
        for key, about in model.get("properties", {}).items()
    }
    assert len(keys) > 100
    assert [key for key, about in keys.items() if "description" not in about and "$ref" not in about] == []
    for flow in (transfer, retrain):
        properties = parameter_schema(flow).model_dump()["properties"]
        assert [name for name, about in properties.items() if not about.get("description")] == []


@pytest.mark.parametrize("text", [None, "sources: {}\n"])
def test_without_a_usable_file_there_is_a_form_all_the_same(tmp_path, monkeypatch, text):
    if text:
        (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    sections = parameter_schema(transfer).model_dump()["definitions"]["Params"]["properties"]
    assert "default" not in sections["finetuning"]
