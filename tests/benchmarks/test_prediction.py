import pytest

from benchmarks import prediction
from benchmarks.prediction import BATCHES, OURS, THEIRS, Turn


def test_ours_is_compared_with_the_pipelines_best_batch_size_by_medians():
    turns = [Turn(OURS, texts, 10, seconds) for texts in ("short", "long") for seconds in (1, 2, 9)]
    for texts, best in (("short", 5), ("long", 3)):
        for size in BATCHES:
            extra = 0 if size == BATCHES[1] else 4
            turns += [Turn(THEIRS.format(size), texts, 10, best + extra + apart) for apart in (-1, 0, 1)]
    assert prediction.figures(turns) == {
        "predict_short_vs_pipeline": 2.5, "predict_long_vs_pipeline": 1.5,
    }  # fmt: skip
    (line,) = [one for one in prediction.lines(turns) if one["contestant"] == f"{OURS}, short"]
    assert line["rows_per_cpu_second"] == pytest.approx(5)
