"""A registered version is built again from what it says of itself."""

import sys

import pytest
from mlflow import MlflowClient

from flows.commands import reproduction
from tasks.errors import InputError, WorkspaceError
from tasks.tracking import server

REPRODUCE = (sys.executable, "-m", "flows.cli", "reproduce")


@pytest.fixture
def client(reproduced):
    return MlflowClient(server.uri(reproduced))


@pytest.mark.e2e
def test_a_champion_is_built_again_bit_for_bit_and_nothing_stays(reproduced, command, client):
    before = len(client.search_runs([client.get_experiment_by_name("reviews").experiment_id]))
    told = command(*REPRODUCE, "models:/reviews@champion").stdout.splitlines()
    assert [line.strip() for line in told[1:]] == [
        "sources: agrees",
        "preparation: agrees",
        "vocabulary: agrees",
        "conversion: agrees",
        "encoding: agrees",
        "finetuning: agrees",
        "every digest agrees",
    ]
    assert not list((reproduced / ".regraft" / "rebuilds").iterdir())
    assert len(client.search_runs([client.get_experiment_by_name("reviews").experiment_id])) == before


@pytest.mark.e2e
def test_other_data_make_another_model_and_that_is_told(reproduced, command):
    with (reproduced / "reviews.csv").open("a") as stream:
        stream.write("a lovely garden in the rain,good\n")
    told = command(*REPRODUCE, "1", code=1).stdout
    assert "  sources: differs, registered sha256:" in told
    assert "  finetuning: differs, registered sha256:" in told
    assert told.endswith("not the same model\n")


@pytest.mark.parametrize(
    ("tag", "value", "error", "message"),
    [
        (
            "regraft.changed",
            "tasks/model/floors.py",
            InputError,
            "uncommitted changes to tasks/model/floors.py",
        ),
        ("regraft.commit", "", InputError, "reviews version 1 names no git commit"),
        ("regraft.commit", "0" * 40, WorkspaceError, "git worktree add .* failed"),
    ],
)
@pytest.mark.e2e
def test_a_version_that_no_commit_holds_is_refused(reproduced, client, tag, value, error, message):
    client.set_model_version_tag("reviews", "1", tag, value)
    with pytest.raises(error, match=message):
        reproduction.rebuild("models:/reviews/1", reproduced, print)
    assert not list((reproduced / ".regraft").glob("rebuilds/*"))


@pytest.mark.parametrize("reference", ["champion", "models:/reviews"])
def test_a_reference_that_is_none_is_refused_with_the_forms_that_are(tmp_path, reference):
    with pytest.raises(InputError, match="write models:/NAME@champion or models:/NAME/3"):
        reproduction.resolve(reference, tmp_path)
