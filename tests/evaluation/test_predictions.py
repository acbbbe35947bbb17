from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import ArtifactError
from tasks.evaluation import predictions
from tasks.evaluation.predictions import Predictions, ragged


def _predictions(name, seed):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(3), 4).astype(np.float32)
    return Predictions(name, ("d", "b", "a", "c"), np.array([0, 2, 1, 1]), probabilities)


def test_predictions_survive_writing_and_reading(tmp_path):
    written = [_predictions("model", 1), _predictions("head", 2)]
    predictions.write(tmp_path / "p.parquet", written)
    found = predictions.read(tmp_path / "p.parquet")
    assert list(found) == ["model", "head"]
    for answers in written:
        again = found[answers.contestant]
        assert again.ids == answers.ids
        assert np.array_equal(again.actual, answers.actual)
        assert again.actual.dtype == np.int64
        assert np.array_equal(again.answer, answers.answer)
        assert again.answer.dtype == np.float32


def test_the_same_predictions_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        predictions.write(tmp_path / name, [_predictions("model", 1)])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def _of_kind(kind):
    generator = np.random.default_rng(3)
    actual, answer = {
        "labels": (np.array([[1, 0], [0, 0], [1, 1]], np.int8), generator.random((3, 2)).astype(np.float32)),
        "tags": (ragged([[0, 2], [], [1]]), ragged([[0, 1], [], [1]])),
        "text": (np.array([[3, 9], [1, 1], [0, 0]]), np.array([[1.5, 2], [0.1, 1], [0, 0]])),
        "score": (np.array([0.1, -2, 5], np.float32), np.array([0.5, 1e-7, 4], np.float32)),
    }[kind]
    return Predictions("model", ("a", "b", "c"), actual, answer, kind)


@pytest.mark.parametrize("kind", ["labels", "score", "tags", "text"])
def test_answers_to_other_kinds_of_row_survive_too(tmp_path, kind):
    written = _of_kind(kind)
    predictions.write(tmp_path / "p.parquet", [written])
    found = predictions.read(tmp_path / "p.parquet")["model"]
    assert (found.kind, found.ids) == (kind, written.ids)
    for before, after in ((written.actual, found.actual), (written.answer, found.answer)):
        assert before.dtype == after.dtype
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_missing_file_names_the_stage(tmp_path):
    with pytest.raises(ArtifactError, match=r"p\.parquet is missing: run `dvc repro evaluation` first"):
        predictions.read(tmp_path / "p.parquet")


def test_rows_of_unequal_length_are_refused(tmp_path):
    rows = [["model"] * 2, ["a", "b"], [0, 1], [[0.5, 0.5], [1.0]]]
    pq.write_table(
        pa.table(rows, names=["contestant", "id", "label", "probabilities"]), tmp_path / "p.parquet"
    )
    with pytest.raises(ArtifactError, match=r"model has rows of \[1, 2\] probabilities"):
        predictions.read(tmp_path / "p.parquet")


def test_the_digest_of_test_rows_sees_order_and_labels():
    digests = {
        predictions.digest_rows(ids, np.array(labels))
        for ids, labels in [(["a", "b"], [0, 1]), (["b", "a"], [0, 1]), (["a", "b"], [1, 0])]
    }
    assert len(digests) == 3
    assert predictions.digest_rows(["a"], np.array([0])) == predictions.digest_rows(("a",), np.array([0]))


def test_logits_survive_where_there_are_some(tmp_path):
    scores = np.array([[0.5, -1, 2], [1, 2, 3], [0, 0, 0], [4, 5, -6]], dtype=np.float32)
    model = replace(_predictions("model", 1), logits=scores)
    predictions.write(tmp_path / "p.parquet", [_predictions("majority", 2), model])
    found = predictions.read(tmp_path / "p.parquet")
    assert found["majority"].logits is None
    assert np.array_equal(found["model"].logits, scores)
    assert found["model"].logits.dtype == np.float32


def test_predictions_of_before_logits_were_kept_are_read(tmp_path):
    predictions.write(tmp_path / "p.parquet", [_predictions("model", 1)])
    table = pq.read_table(tmp_path / "p.parquet").drop_columns("logits")
    pq.write_table(table, tmp_path / "old.parquet")
    assert predictions.read(tmp_path / "old.parquet")["model"].logits is None
