"""Several processes train as one does; what happens to one of them reaches the first as a sentence."""

import csv
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file

from tasks import files
from tasks import params as parameters
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset
from tasks.errors import TrainingError
from tasks.stages import finetuning

SHIPPED = parameters.load(Path(__file__).parents[2] / "params.yaml")
HEAD = "{name: head, depth: 0, epochs: 2, learning_rate: 1.0e-2}"
UPPER = "{name: upper, depth: 2, epochs: 2, learning_rate: 1.0e-3, early_stopping: 1}"
WHOLE = "{name: whole, depth: all, epochs: 1, learning_rate: 1.0e-3}"
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Ledger:
    """Calls `act` when it hears of step number `at`."""

    def __init__(self, at=None, act=None):
        self.at, self.act = at, act

    def metrics(self, values, *, step=0):
        if step == self.at and "train.loss" in values:
            self.act()

    def file(self, path, folder=""): ...


def _run(root, ledger=None, **changes):
    every = {"phases": f"[{HEAD}, {UPPER}, {WHOLE}]", "batch_size": 13, **changes}
    chosen = [f"finetuning.{name}={value}" for name, value in every.items()]
    return finetuning.run(parameters.override(SHIPPED, chosen), root, ledger or Ledger())


def _convert(root, model):
    with files.replace_directory(ConvertedCheckpoint.folder(root)) as draft:
        model.save_pretrained(draft / "model")
        ConvertedCheckpoint.save(
            draft, family="bert", architecture=type(model).__name__, labels=["a", "b", "c"], source="",
            parameters={}, fresh=[], proofs={},
        )  # fmt: skip


def _encode_tags(root):
    chance = np.random.default_rng(0)
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        for split, count in (("train", 40), ("validation", 5), ("test", 5)):
            rows = [chance.integers(5, 61, size=chance.integers(4, 9)).astype(np.int32) for _ in range(count)]
            columns = {
                "id": [f"{split}-{n}" for n in range(count)],
                "input_ids": pa.array(rows, pa.list_(pa.int32())),
                "places": pa.array([range(1, len(row) - 1) for row in rows], pa.list_(pa.int32())),
                "tags": pa.array([row[1:-1] % 3 for row in rows], pa.list_(pa.int64())),
            }
            parquet.write_table(pa.table(columns), draft / f"{split}.parquet")
        sizes = {name: {} for name in ("rows", "tokens", "truncated", "lost", "unknown")}
        EncodedDataset.save(draft, kind="tags", labels=["a", "b", "c"], max_length=16, **sizes)


def _learned(record):
    """The weights, and every loss and figure told. A bias of keys has no gradient but rounding, of which Adam
    makes steps as large as any."""
    found = load_file(record.path / "model" / "model.safetensors")
    told = []
    for name in ("steps.csv", "validation.csv"):
        with (record.path / name).open() as stream:
            told += [
                float(row[key])
                for row in csv.DictReader(stream)
                for key in ("loss", "accuracy")
                if key in row
            ]
    return {k: v for k, v in found.items() if not k.endswith("key.bias")}, told


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["label", "tags"])
def test_two_processes_learn_what_one_learns(trainable, tiny, kind, started):
    """On kept states and on computed ones, in parts; the last batch is a single row, so that one process has
    none."""
    name = {"label": "BertForSequenceClassification", "tags": "BertForTokenClassification"}[kind]
    _convert(trainable, tiny(name, **STILL))
    if kind == "tags":
        _encode_tags(trainable)
    alone, one = _learned(_run(trainable, accumulation=2))
    others = []
    watching = Ledger(3, lambda: others.extend(started()))
    shared, two = _learned(_run(trainable, watching, accumulation=2, processes=2))
    assert len(others) == 1, "the training of one is not taken for that of two"
    assert alone.keys() == shared.keys()
    assert max(float((alone[key] - shared[key]).abs().max()) for key in alone) < 1e-5
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert started() == []


@pytest.mark.e2e
def test_an_interrupted_training_of_two_processes_ends_with_the_same_weights(trainable, caplog, started):
    """By Ctrl-C, and with dropout, which each process draws for itself."""
    whole = _run(trainable, processes=2)
    [folder] = (trainable / ".regraft" / "resume").glob("*/point.safetensors")
    folder.unlink()
    for best in folder.parent.glob("best-*"):
        best.unlink()

    with pytest.raises(KeyboardInterrupt):
        _run(trainable, Ledger(10, lambda: signal.raise_signal(signal.SIGINT)), processes=2)
    assert started() == []
    with caplog.at_level("INFO"):
        again = _run(trainable, processes=2)
    assert "going on from phase upper, step 2" in caplog.text
    assert again.weights == whole.weights


@pytest.mark.e2e
def test_a_process_that_is_killed_ends_the_training_with_its_number(trainable, started):
    def kill():
        [other] = started()
        other.kill()

    with pytest.raises(TrainingError, match=r"process 1 of 2 was ended by signal 9; run again to go on"):
        _run(trainable, Ledger(3, kill), processes=2)
    assert not torch.distributed.is_initialized()


def test_fewer_gpus_than_processes_are_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TrainingError, match=r"finetuning.processes is 2, but torch sees 1 CUDA device"):
        _run(tmp_path, processes=2)
