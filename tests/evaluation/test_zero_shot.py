import numpy as np

from tasks.evaluation import zero_shot
from tasks.evaluation.zero_shot import TEMPLATES


def _told(good):
    """Features of three labels' sentences: unit vectors in the template `good`, noise in all others."""
    generator = np.random.default_rng(0)
    told = generator.normal(size=(len(TEMPLATES), 3, 6))
    told[good] = np.eye(3, 6)
    return told.reshape(-1, 6)


def _rows(count, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    return np.eye(3, 6)[labels] + generator.normal(0, 0.3, (count, 6)), labels


def test_the_template_that_fits_training_rows_is_taken():
    seen, labels = _rows(200, 1)
    asked, actual = _rows(100, 2)
    for good in range(len(TEMPLATES)):
        found = zero_shot.answer(seen, labels, asked, _told(good))
        assert (found.argmax(axis=1) == actual).mean() > 0.9
        assert np.allclose(found.sum(axis=1), 1, atol=1e-6)


def test_only_directions_count():
    seen, labels = _rows(50, 1)
    asked, _ = _rows(20, 2)
    found = zero_shot.answer(seen, labels, asked, _told(0))
    assert np.allclose(found, zero_shot.answer(3 * seen, labels, 5 * asked, 2 * _told(0)), atol=1e-4)


def test_every_label_stands_in_every_template():
    found = zero_shot.sentences(["so so", "very_good"])
    assert found[:2] == ["so so", "very good"]
    assert len(set(found)) == 2 * len(TEMPLATES)
