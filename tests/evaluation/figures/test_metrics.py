import numpy as np
import pytest
from sklearn import metrics as reference

from tasks.evaluation.figures import metrics
from tasks.evaluation.figures.metrics import METRICS, Metric, Occurrences, Sampling

LABELS = np.array([0, 0, 1, 1, 2, 2])
PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1],
        [0.4, 0.5, 0.1],
        [0.1, 0.8, 0.1],
        [0.2, 0.7, 0.1],
        [0.3, 0.6, 0.1],
        [0.05, 0.05, 0.9],
    ],
    dtype=np.float32,
)


def _random(rows=200, classes=4):
    generator = np.random.default_rng(7)
    labels = generator.integers(0, classes, rows)
    probabilities = generator.dirichlet(np.ones(classes), rows)
    return labels, (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", lambda y, p: reference.accuracy_score(y, p.argmax(1))),
        ("micro_f1", lambda y, p: reference.f1_score(y, p.argmax(1), average="micro")),
        ("macro_f1", lambda y, p: reference.f1_score(y, p.argmax(1), average="macro")),
        ("mcc", lambda y, p: reference.matthews_corrcoef(y, p.argmax(1))),
        ("log_loss", lambda y, p: -np.log(p[range(len(y)), y]).mean()),
        ("brier", lambda y, p: np.square(p - np.eye(p.shape[1])[y]).sum(axis=1).mean()),
    ],
)
def test_metrics_equal_scikit_learns(name, expected):
    labels, probabilities = _random()
    assert METRICS[name](labels, probabilities) == pytest.approx(expected(labels, probabilities), abs=1e-6)


def test_macro_f1_leaves_out_a_class_that_neither_occurs_nor_is_predicted():
    labels, probabilities = np.array([0, 1]), np.array([[0.9, 0.1, 0], [0.2, 0.8, 0]])
    assert METRICS["macro_f1"](labels, probabilities) == 1.0


def test_log_loss_of_a_certain_mistake_is_finite():
    value = METRICS["log_loss"](np.array([1]), np.array([[1.0, 0.0]]))
    assert value == pytest.approx(-np.log(np.finfo(np.float32).eps))


def test_mcc_of_a_constant_answer_is_zero():
    assert METRICS["mcc"](LABELS, np.tile([1.0, 0.0, 0.0], (6, 1))) == 0.0


def test_calibration_error_by_hand():
    labels = np.array([0, 0, 0, 0])
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.2, 0.8]])
    assert METRICS["ece"](labels, probabilities) == pytest.approx(0.05)  # 3 of 4 right at confidence 0.8


def test_a_confidence_of_one_falls_into_the_last_bin():
    table = metrics.reliability(np.array([0, 0]), np.array([[1.0, 0.0], [0.5, 0.5]]), bins=4)
    assert table["confidence"].tolist() == [0.5, 1.0]
    assert table["rows"].tolist() == [1, 1]


def test_confusion_counts_actual_by_predicted():
    table = metrics.confusion(LABELS, PROBABILITIES.argmax(axis=1), 3)
    assert table.tolist() == [[1, 1, 0], [0, 2, 0], [0, 1, 1]]


def test_per_class_equals_scikit_learns_and_is_zero_without_denominator():
    chosen = np.array([0, 0, 0, 1, 1, 1])  # class 2 is never predicted
    found = metrics.per_class(LABELS, chosen, 3)
    expected = reference.precision_recall_fscore_support(LABELS, chosen, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        assert found[name] == pytest.approx(values)


def _bootstrap(labels, probabilities, seed=1):
    return metrics.bootstrap(
        labels,
        probabilities,
        {n: METRICS[n] for n in ("accuracy", "log_loss")},
        resamples=400,
        confidence=0.95,
        seed=seed,
    )


def test_an_interval_is_as_wide_as_the_normal_approximation_says():
    labels, probabilities = _random(rows=900)
    accuracy = METRICS["accuracy"](labels, probabilities)
    low, high = _bootstrap(labels, probabilities)["accuracy"]
    expected = 2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 900)
    assert low < accuracy < high
    assert high - low == pytest.approx(expected, rel=0.15)


def test_the_seed_decides_the_interval():
    labels, probabilities = _random()
    assert _bootstrap(labels, probabilities) == _bootstrap(labels, probabilities)
    assert _bootstrap(labels, probabilities) != _bootstrap(labels, probabilities, seed=2)


def test_the_direction_of_each_metric_is_the_one_in_which_certainty_of_the_truth_wins():
    labels, probabilities = _random()
    truth = np.eye(4, dtype=np.float32)[labels]
    for name, metric in METRICS.items():
        gain = metric(labels, truth) - metric(labels, probabilities)
        assert (gain > 0) == metric.higher_is_better, name


def test_rows_that_are_copies_of_one_another_are_drawn_together():
    labels = np.repeat(np.arange(40) % 2, 25)  # 40 different rows, 25 copies of each
    right = np.repeat(np.random.default_rng(0).random(40) < 0.6, 25)
    said = np.where(right, labels, 1 - labels)
    probabilities = np.eye(2, dtype=np.float32)[said]
    accuracy = {"accuracy": METRICS["accuracy"]}
    single, grouped = (
        metrics.measure(labels, probabilities, accuracy, Sampling(500, 0.95, 1, groups))["accuracy"]
        for groups in (None, np.repeat(np.arange(40), 25))
    )
    assert single.value == grouped.value
    assert grouped.high - grouped.low > 4 * (single.high - single.low)  # five times, by the root of 25


def test_groups_of_one_row_are_drawn_as_rows_are():
    labels = np.arange(60) % 3
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), 60).astype(np.float32)
    found = [
        metrics.measure(labels, probabilities, METRICS, Sampling(100, 0.9, 1, groups))
        for groups in (None, np.arange(60))
    ]
    assert found[0] == found[1]


def test_groups_of_unequal_size_give_all_their_rows():
    seen = []
    note = Metric(lambda actual, answer: float(seen.append(actual.tolist()) or 0), higher_is_better=True)
    values = np.array([7, 1, 7, 7, 2])
    metrics.bootstrap(
        values, values, {"note": note}, resamples=200, confidence=0.9, seed=1,
        groups=np.array([9, 4, 9, 9, 5]),
    )  # fmt: skip
    assert all(rows.count(7) % 3 == 0 for rows in seen)
    assert {rows.count(7) for rows in seen} == {0, 3, 6, 9}
    assert {len(rows) for rows in seen} == {3, 5, 7, 9}


def _class_ranges(rows, labels, chosen, sampling, classes=4):
    given, said = Occurrences(rows, labels), Occurrences(rows, chosen)
    right = said.where(labels == chosen)
    return metrics.class_ranges(given, said, right, sampling, rows=int(rows.max()) + 1, classes=classes)


@pytest.mark.parametrize("groups", [None, np.arange(200) // 4])
def test_intervals_of_classes_are_those_of_the_same_resamples(groups):
    labels, probabilities = _random()
    chosen, sampling = probabilities.argmax(axis=1), Sampling(100, 0.9, 1, groups)
    found = _class_ranges(np.arange(200), labels, chosen, sampling)
    each = {
        f"{name} {place}": Metric(
            lambda a, b, name=name, place=place: metrics.per_class(a, b, 4)[name][place],
            higher_is_better=True,
        )
        for name in found
        for place in range(4)
    }
    expected = metrics.measure(labels, chosen, each, sampling)
    for name, (low, high) in found.items():
        for place in range(4):
            interval = expected[f"{name} {place}"]
            assert (low[place], high[place]) == pytest.approx((interval.low, interval.high))


def test_a_class_is_judged_by_the_resamples_that_have_it():
    labels = np.array([0, 1, 1, 1, 1])
    found = _class_ranges(np.arange(5), labels, labels, Sampling(100, 0.95, 1), classes=3)
    for low, high in found.values():
        assert low.tolist() == high.tolist() == [1, 1, 0], "the last has neither rows nor answers"


def test_all_words_of_a_row_are_drawn_together():
    labels, probabilities = _random()
    chosen, rows = probabilities.argmax(axis=1), np.arange(200) // 4
    together = _class_ranges(rows, labels, chosen, Sampling(100, 0.9, 1))
    grouped = _class_ranges(np.arange(200), labels, chosen, Sampling(100, 0.9, 1, rows))
    assert {name: found.tolist() for name, found in together.items()} == {
        name: found.tolist() for name, found in grouped.items()
    }
