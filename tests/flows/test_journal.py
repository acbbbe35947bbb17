"""What people read of a run in Prefect; that it gets there is in test_deployment.py."""

import pytest

from flows import journal
from tasks.artifacts import Evaluation, PreparedText, Promotion

RUN = {"run_id": "1f", "uri": "http://127.0.0.1:5000/#/experiments/1/runs/1f"}


def test_a_stage_is_told_of_in_its_run_and_on_its_page(tmp_path):
    (tmp_path / "reports").mkdir()
    page = tmp_path / "reports" / "encoding.html"
    page.touch()
    assert journal.summary("encoding", tmp_path, RUN) == [
        f"- MLflow run [1f]({RUN['uri']})",
        f"- Report `{page}` on the worker's machine or [in MLflow]({RUN['uri']}/artifacts/encoding.html)",
    ]


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ({"run_id": "1f", "uri": "sqlite:///mlflow.db"}, "- MLflow run `1f` in `sqlite:///mlflow.db`"),
        ({"run_id": "", "uri": ".regraft/spool/7"}, "- MLflow run `not known yet` in `.regraft/spool/7`"),
        ({"run_id": "", "uri": ""}, None),
    ],
    ids=["a file", "waits to be sent", "no run at all"],
)
def test_where_no_browser_comes_there_is_no_link(tmp_path, run, told):
    assert journal.summary("vocabulary", tmp_path, run) == ([told] if told else [])


def test_what_came_of_a_run_is_its_verdict_and_the_table_of_contestants(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    figure = {"value": 0.7731, "low": 0.7556, "high": 0.7904}
    evaluation = Evaluation(
        path=tmp_path, digest="", model="", test="", labels=("bad", "good"), rows=60, comparisons={}, slices={},
        calibration={}, decision={}, decided={}, metrics={"model": {"macro_f1": figure}, "majority": {"macro_f1": figure}},
    )  # fmt: skip
    promotion = Promotion(
        path=tmp_path, digest="", model="reviews", version="3", alias_moved=False, outcome="hold",
        reasons=("one", "two"),
    )  # fmt: skip
    text = PreparedText(
        path=tmp_path, digest="", kind="label", labels=(), rows_in=0, dropped={}, quarantined={}, changed={}, repaired=0,
        contaminated={}, algorithm="", rows={"train": 4800, "validation": 30, "test": 60},
    )  # fmt: skip
    assert list(journal.results(tmp_path, evaluation, promotion, text)) == [
        "## hold: reviews version 3",
        "- one\n- two",
        "| contestant | macro f1 |\n| --- | ---: |\n| majority | 0.773 [0.756, 0.790] |\n| unfrozen | 0.773 [0.756, 0.790] |",
        "Rows: 4,800 train, 30 validation, 60 test. In brackets 95 % bootstrap intervals.",
        f"Reports in `{tmp_path / 'reports'}`",
    ]


def test_progress_whose_end_is_not_known_makes_no_bar(tmp_path):
    keeper = journal.Keeper("preparation", tmp_path)
    keeper({"kind": "progress", "description": "cleaning", "done": 7, "total": None})
    assert keeper._bars == {}


def test_what_is_logged_outside_a_run_is_not_for_the_server(recwarn):
    """Prefect's handler would warn that it knows no flow run."""
    journal.keep_logs()
    journal.log.info("nobody runs")
    assert [str(one.message) for one in recwarn if "flow run" in str(one.message)] == []
