import numpy as np
import pytest

from tasks.evaluation import calibration
from tasks.evaluation.asking.predict import sigmoid, softmax
from tasks.evaluation.predictions import Predictions


def _drawn(kind="label", *, rows=4000, sharper=1.0, seed=1):
    """Rows whose truth follows from logits, which are then made `sharper` than they should be."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 1.5, (rows, 3)).astype(np.float32)
    if kind == "labels":
        actual = (generator.random(scores.shape) < sigmoid(scores)).astype(np.int8)
    else:
        actual = np.array([generator.choice(3, p=p / p.sum()) for p in softmax(scores).astype(np.float64)])
    given = scores * np.float32(sharper)
    ids = tuple(str(n) for n in range(rows))
    return Predictions("model", ids, actual, calibration.LINKS[kind](given), kind, given)


@pytest.mark.parametrize("kind", sorted(calibration.LINKS))
@pytest.mark.parametrize("sharper", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_logits_too_sharp(kind, sharper):
    assert calibration.fit(_drawn(kind, sharper=sharper)) == pytest.approx(sharper, rel=0.1)


@pytest.mark.parametrize("kind", sorted(calibration.LINKS))
def test_a_chosen_temperature_helps_other_rows_and_changes_no_choice(kind):
    heat = calibration.fit(_drawn(kind, sharper=3))
    test = _drawn(kind, sharper=3, seed=2)
    before, after = calibration.at(test, 1.0), calibration.at(test, heat)
    for metric in calibration.FIGURES[kind].values():
        assert metric(test.actual, after) < metric(test.actual, before)
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    assert np.array_equal(before >= 0.5, after >= 0.5) or kind != "labels"


@pytest.mark.parametrize("rows", [5, 50])
def test_a_few_rows_that_are_all_right_do_not_make_a_model_certain(rows):
    scores = np.tile(np.array([[2.0, 0.0]], dtype=np.float32), (rows, 1))
    actual = np.zeros(rows, dtype=np.int64)
    always = Predictions("model", ("a",) * rows, actual, softmax(scores), "label", scores)
    heat = calibration.fit(always)
    assert 0.4 < heat < 1
    assert calibration.at(always, heat).max() < 0.99
    assert calibration.temperature("label", actual, scores) < 0.2  # where nothing holds it back


def test_each_label_of_a_row_counts_in_its_reliability():
    actual = np.array([[1, 0], [0, 0]], dtype=np.int8)
    said = np.array([[0.9, 0.2], [0.9, 0.1]], dtype=np.float32)
    table = calibration.reliability("labels", actual, said)
    assert table["rows"].sum() == 4
    assert table["accuracy"] @ table["rows"] == pytest.approx(3)  # 0.9 for the second row's first is wrong


def test_what_is_thought_before_weighs_once_whatever_the_number_of_labels():
    few, many = (_drawn("labels", rows=rows, sharper=2) for rows in (300, 300))
    wide = Predictions(
        "model",
        many.ids,
        np.tile(many.actual, (1, 20)),
        np.tile(many.answer, (1, 20)),
        "labels",
        np.tile(many.logits, (1, 20)),
    )
    free = calibration.temperature("labels", few.actual, few.logits)
    assert abs(calibration.fit(wide) - free) < abs(calibration.fit(few) - free)
