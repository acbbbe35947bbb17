import numpy as np
import pytest

from tasks.evaluation.figures.metrics import METRICS


@pytest.mark.e2e  # importing `evaluate` takes seconds
def test_evaluate_computes_the_same_values_offline_and_leaves_nothing_behind(tmp_path, monkeypatch):
    from tasks.evaluation.figures.scores import scores

    monkeypatch.setenv("HOME", str(tmp_path))
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 50)
    probabilities = generator.dirichlet(np.ones(3), 50).astype(np.float32)
    found = scores(labels, probabilities, METRICS)
    assert found == {name: metric(labels, probabilities) for name, metric in METRICS.items()}
    assert list(found) == list(METRICS)
    assert not list(tmp_path.iterdir())
