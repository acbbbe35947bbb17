"""The figures of the gate are there, and hold what they must."""

import json

import numpy as np
import pytest

from benchmarks import evaluation, record
from benchmarks.evaluation import Point

KEYS = {
    "gate_false_promotions",
    "gate_power",
    "naive_false_promotions",
    "predict_short_vs_pipeline",
    "predict_long_vs_pipeline",
}


def test_the_kept_figures_are_those_of_a_full_run_and_hold_what_they_must():
    found = json.loads((record.RESULTS / "evaluation.json").read_text(encoding="utf-8"))
    figures = found["figures"]
    assert figures.keys() >= KEYS
    assert found["quick"] is False
    assert figures["gate_false_promotions"] <= 0.05
    assert figures["gate_power"] >= 0.8
    assert figures["naive_false_promotions"] > 0.4
    assert figures["predict_short_vs_pipeline"] >= 2
    assert figures["predict_long_vs_pipeline"] >= 1.3


@pytest.mark.e2e
def test_a_quick_run_writes_every_figure(tmp_path, capsys):
    evaluation.main(["--quick", "--into", str(tmp_path)])
    assert (tmp_path / "evaluation.json").read_bytes() == (tmp_path / "evaluation-quick.json").read_bytes()
    found = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert found["figures"].keys() >= KEYS
    simulated = [one for one in found["contestants"] if one["contestant"].startswith("discordance")]
    assert len(simulated) == len(evaluation.DISCORDANCES) * len(evaluation.DIFFERENCES)
    assert "gate_power" in capsys.readouterr().out


def test_simulated_pairs_have_the_discordance_and_the_difference_asked_for():
    pairs = list(evaluation._simulated(0.2, 0.04, 60, np.random.default_rng(3)))
    right = np.array([[one.correct for one in (found.candidate, found.champion)] for found, _ in pairs])
    assert (right[:, 0] != right[:, 1]).mean() == pytest.approx(0.2, abs=0.01)
    assert right[:, 0].mean() - right[:, 1].mean() == pytest.approx(0.04, abs=0.006)
    assert right[:, 1].mean() == pytest.approx(evaluation.ACCURACY, abs=0.01)


def test_false_promotions_are_told_where_they_are_most():
    equal = [Point(0.05, 0.0, 100, 2, 40), Point(0.25, 0.0, 100, 3, 48), Point(0.1, 0.03, 100, 84, 99)]
    assert evaluation._figures(equal) == {
        "gate_false_promotions": 0.03,
        "gate_power": 0.84,
        "naive_false_promotions": 0.48,
    }
