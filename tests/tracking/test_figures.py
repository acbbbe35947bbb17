"""Figures on MLflow's page of models: of an evaluation's run, linked to the model and to the test rows."""

import json

import pytest
from mlflow import MlflowClient

from tasks.tracking import figures, server
from tasks.tracking.registry import Version

TEST = "sha256:" + "b" * 64
DIGEST = "b" * 36
VALUES = {"test.accuracy": 0.9, "test.macro f1 (all)": 0.8}


@pytest.fixture
def client(tracked):
    return MlflowClient(server.uri(tracked))


@pytest.fixture
def experiment(client, tracked):
    return client.create_experiment("reviews", str(tracked / ".regraft" / "mlartifacts"))


@pytest.fixture
def log(client, experiment):
    """A logged model and a run; ids of both."""

    def make():
        run = client.create_run(experiment).info.run_id
        made = client.create_logged_model(experiment, "reviews", run)
        client.finalize_logged_model(made.model_id, "READY")
        return made.model_id, client.create_run(experiment).info.run_id

    return make


def link(root, run_id, model, values=VALUES, *, test=TEST, number="1"):
    version = Version(number, run_id, {"regraft.model": model} if model else {})
    figures.link(values, run_id, root, name="reviews", version=version, test=test, rows=7)


def shown(client, model):
    """(figure, value, data set, digest, run) of everything that the model's page tells."""
    return sorted(
        (one.key, one.value, one.dataset_name, one.dataset_digest, one.run_id)
        for one in client.get_logged_model(model).metrics or ()
    )


def expected(run_id, values, digest=DIGEST):
    return sorted((name, value, "test rows", digest, run_id) for name, value in values.items())


TOLD = {"test.accuracy": 0.9, "test.macro f1 _all_": 0.8}


def test_a_models_figures_name_the_run_and_the_test_rows(tracked, client, log):
    model, run_id = log()
    link(tracked, run_id, model)
    assert shown(client, model) == expected(run_id, TOLD)
    inputs = client.get_run(run_id).inputs
    assert [one.model_id for one in inputs.model_inputs] == [model]
    (data,) = [one.dataset for one in inputs.dataset_inputs]
    assert (data.name, data.digest, data.profile) == ("test rows", DIGEST, '{"rows": 7}')


def test_a_point_that_the_run_has_is_linked_and_not_told_again(tracked, client, log):
    model, run_id = log()
    for value, at in ((0.5, 1000), (0.9, 2000), (0.4, 3000)):
        client.log_metric(run_id, "test.accuracy", value, at, 0)
    link(tracked, run_id, model, {"test.accuracy": 0.9})
    assert [one.value for one in client.get_metric_history(run_id, "test.accuracy")] == [0.5, 0.9, 0.4]
    (found,) = client.get_logged_model(model).metrics
    assert (found.value, found.timestamp) == (0.9, 2000)


def test_linking_twice_says_everything_once(tracked, client, log):
    model, run_id = log()
    for _ in range(2):
        link(tracked, run_id, model)
    assert shown(client, model) == expected(run_id, TOLD)
    assert len(client.get_metric_history(run_id, "test.accuracy")) == 1


def test_other_test_rows_and_other_models_have_figures_of_their_own(tracked, client, log):
    (first, early), (second, late) = log(), log()
    link(tracked, early, first, {"test.accuracy": 0.9})
    link(tracked, late, second, {"test.accuracy": 0.7})
    link(tracked, late, first, {"test.accuracy": 0.6}, test="sha256:" + "c" * 64)
    assert shown(client, second) == expected(late, {"test.accuracy": 0.7})
    assert shown(client, first) == sorted(
        expected(early, {"test.accuracy": 0.9}) + expected(late, {"test.accuracy": 0.6}, "c" * 36)
    )
    rows = {"dataset_name": "test rows", "dataset_digest": DIGEST}
    order = {"field_name": "metrics.test.accuracy", "ascending": True, **rows}
    experiment = client.get_run(early).info.experiment_id
    ranked = client.search_logged_models([experiment], datasets=[rows], order_by=[order])
    assert [model.model_id for model in ranked] == [second, first]


def test_a_models_page_names_each_version_of_it_once(tracked, client, log):
    model, run_id = log()
    for number in ("1", "2", "1"):
        link(tracked, run_id, model, number=number)
    told = json.loads(client.get_logged_model(model).tags["mlflow.modelVersions"])
    assert [(one["name"], one["version"]) for one in told] == [("reviews", "1"), ("reviews", "2")]


def test_a_version_that_other_hands_registered_has_no_page(tracked, client, log):
    model, run_id = log()
    link(tracked, run_id, "")
    assert shown(client, model) == []
    assert client.get_run(run_id).data.metrics == {}


@pytest.mark.e2e
def test_a_server_links_as_a_file_does(served, tracked):
    client = MlflowClient(served.address)
    experiment = client.create_experiment("reviews")
    run_id = client.create_run(experiment).info.run_id
    made = client.create_logged_model(experiment, "reviews", run_id)
    client.finalize_logged_model(made.model_id, "READY")
    for _ in range(2):
        link(tracked, run_id, made.model_id)
    assert shown(client, made.model_id) == expected(run_id, TOLD)
