"""The stage on a tiny real BERT and hand-made rows: what it leaves behind, and what it refuses."""

import csv
import errno
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from tasks import files
from tasks import params as parameters
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, TrainedModel, Vocabulary
from tasks.errors import DataError, TrainingError
from tasks.evaluation import predict
from tasks.model import batches, floors
from tasks.stages import finetuning

SHIPPED = parameters.load(Path(__file__).parents[2] / "params.yaml")
HEAD = "{name: head, depth: 0, epochs: 2, learning_rate: 1.0e-2}"
WHOLE = "{name: whole, depth: all, epochs: 1, learning_rate: 1.0e-3}"


class Ledger:
    def __init__(self):
        self.figures = {}

    def metrics(self, values, *, step=0):
        self.figures |= {(name, step): value for name, value in values.items()}

    def file(self, path, folder=""): ...


def _params(*phases, **changes):
    assignments = [f"finetuning.phases=[{', '.join(phases)}]", "finetuning.batch_size=8"]
    return parameters.override(SHIPPED, assignments + [f"finetuning.{k}={v}" for k, v in changes.items()])


@pytest.fixture
def root(tmp_path, tiny_bert):
    tokenizer, model = tmp_path / "tokenizer", tiny_bert()
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    with files.replace_directory(Vocabulary.folder(tmp_path)) as draft:
        shutil.move(tokenizer, draft / "tokenizer")
        Vocabulary.save(draft, size=61, kept=61, fresh=0, special={})
    with files.replace_directory(ConvertedCheckpoint.folder(tmp_path)) as draft:
        model.save_pretrained(draft / "model")
        ConvertedCheckpoint.save(
            draft, family="bert", architecture="BertForSequenceClassification", labels=["a", "b", "c"],
            source="", parameters={}, fresh=[], proofs={},
        )  # fmt: skip
    _encode(tmp_path, ["a", "b", "c"])
    return tmp_path


def _encode(root, labels, kind="label"):
    chance = np.random.default_rng(0)
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        for split, count in (("train", 40), ("validation", 12), ("test", 12)):
            rows = [chance.integers(5, 61, size=chance.integers(3, 9)).astype(np.int32) for _ in range(count)]
            columns = {
                "id": [f"{split}-{n}" for n in range(count)],
                "input_ids": pa.array(rows, pa.list_(pa.int32())),
                "label": pa.array([int(row.sum()) % 3 for row in rows], pa.int64()),
            }
            parquet.write_table(pa.table(columns), draft / f"{split}.parquet")
        sizes = {name: {} for name in ("rows", "tokens", "truncated", "lost", "unknown")}
        EncodedDataset.save(draft, kind=kind, labels=labels, max_length=16, **sizes)


def test_what_it_leaves_behind(root):
    ledger = Ledger()
    record = finetuning.run(_params(HEAD, WHOLE), root, ledger)
    assert [phase["name"] for phase in record.phases] == ["head", "whole"]
    assert (record.base, record.data) == (
        ConvertedCheckpoint.load(root).digest,
        EncodedDataset.load(root).digest,
    )
    assert record.weights == files.digest_file(record.path / "model" / "model.safetensors")
    assert (record.path / "model" / "tokenizer.json").exists()
    with (record.path / "steps.csv").open() as stream:
        steps = list(csv.DictReader(stream))
    assert [row["phase"] for row in steps] == ["head"] * 10 + ["whole"] * 5
    assert ("train.loss", 15) in ledger.figures
    assert ("validation.accuracy", 10) in ledger.figures


def test_the_head_and_the_frozen_features_are_kept_as_they_stood_before_the_body_learned(root):
    record = finetuning.run(_params(HEAD, WHOLE), root, Ledger())
    converted = floors.load(ConvertedCheckpoint.load(root).path / "model")
    head, final = (
        load_file(record.path / "head.safetensors"),
        load_file(record.path / "model" / "model.safetensors"),
    )
    assert head.keys() == floors.floors(converted)[-1].parameters.keys()
    assert not torch.equal(head["classifier.weight"], converted.classifier.weight)
    assert not torch.equal(head["classifier.weight"], final["classifier.weight"])
    rows = parquet.read_table(EncodedDataset.load(root).path / "train.parquet")
    expected = predict.features(
        converted, rows["input_ids"].to_pylist(), ids=rows["id"].to_pylist(),
        batches=lambda ids: batches.sorted_batches(ids, batch_size=64, pad=0),
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(record.path / "frozen.npy"), expected)


@pytest.mark.parametrize("phases", [(WHOLE,), (WHOLE, HEAD)])
def test_a_head_on_a_body_that_has_learned_is_no_contestant(root, phases):
    record = finetuning.run(_params(*phases), root, Ledger())
    assert not (record.path / "head.safetensors").exists()
    assert not (record.path / "frozen.npy").exists()


def test_the_same_seed_gives_the_same_digest_and_another_seed_another(root):
    first = finetuning.run(_params(HEAD, WHOLE), root, Ledger()).digest
    shutil.rmtree(root / ".regraft")
    assert finetuning.run(_params(HEAD, WHOLE), root, Ledger()).digest == first
    assert finetuning.run(_params(HEAD, WHOLE, seed=2), root, Ledger()).digest != first


def test_what_fails_after_the_training_does_not_cost_it(root):
    """MLflow gone at the end, say: the next try takes no step. The next other training clears up."""
    first = finetuning.run(_params(HEAD, WHOLE), root, Ledger())
    taken = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    assert finetuning.run(_params(HEAD, WHOLE), root, Ledger()) == first
    assert taken == []
    finetuning.run(_params(HEAD, WHOLE, seed=2), root, Ledger())
    hook.remove()
    assert len(taken) == 15
    assert len(list((root / ".regraft" / "resume").glob("*/finished"))) == 1


def test_a_full_disk_is_an_os_error_with_its_number(root):
    """safetensors tells it in words only; a limit on file sizes stands for the full disk."""
    code = (
        "import resource, torch, pathlib, sys; from tasks.training import resume\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: resume.write_tensors(pathlib.Path(sys.argv[1]), {'w': torch.zeros(1000)}, {})\n"
        "except OSError as error: print(error.errno)"
    )
    words = [sys.executable, "-c", code, str(root / "w.safetensors")]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr


def _with_new_tokens(root, new=(58, 60)):
    """The vocabulary says that these tokens are not the checkpoint's; rows hold them already."""
    shutil.copytree(Vocabulary.folder(root) / "tokenizer", root / "tokenizer")
    sources = [None if id in new else id for id in range(61)]
    with files.replace_directory(Vocabulary.folder(root)) as draft:
        shutil.move(root / "tokenizer", draft / "tokenizer")
        table = {"id": list(range(61)), "source_id": pa.array(sources, pa.int32())}
        parquet.write_table(pa.table(table), draft / "alignment.parquet")
        Vocabulary.save(draft, size=61, kept=59, fresh=2, special={})
    return torch.tensor(new)


TABLE = "bert.embeddings.word_embeddings.weight"
UPPER = "{name: upper, depth: half, epochs: 1, learning_rate: 1.0e-2}"


def _weights(root):
    model = load_file(TrainedModel.folder(root) / "model" / "model.safetensors")
    return load_file(ConvertedCheckpoint.folder(root) / "model" / "model.safetensors"), model


@pytest.mark.parametrize("phases", [(HEAD,), (HEAD, UPPER)])
def test_new_rows_learn_where_the_embeddings_are_frozen_and_old_rows_stay_to_the_byte(root, phases):
    new = _with_new_tokens(root)
    record = finetuning.run(_params(*phases, weight_decay=0.1), root, Ledger())
    before, after = _weights(root)
    old = torch.tensor([row for row in range(61) if row not in new])
    assert after[TABLE][old].numpy().tobytes() == before[TABLE][old].numpy().tobytes()
    assert all((after[TABLE][row] - before[TABLE][row]).abs().max() > 1e-3 for row in new)
    for name in before:
        if "embeddings" in name and name != TABLE:
            assert torch.equal(before[name], after[name]), name
    assert record.phases[0]["floors"] == ("new rows", "head")
    assert record.phases[0]["parameters"] == 2 * 24 + (24 * 24 + 24) + (3 * 24 + 3)


def test_with_the_whole_model_all_rows_learn(root):
    _with_new_tokens(root)
    record = finetuning.run(_params(HEAD, WHOLE), root, Ledger())
    before, after = _weights(root)
    assert (before[TABLE] != after[TABLE]).any(dim=1).sum() > 40
    assert "new rows" not in record.phases[1]["floors"]


def test_while_new_rows_learn_there_is_no_untouched_body_to_be_judged(root):
    """evaluation puts the head on the converted model, whose new rows are not those it learned with."""
    _with_new_tokens(root)
    record = finetuning.run(_params(HEAD, WHOLE), root, Ledger())
    assert not (record.path / "head.safetensors").exists()
    assert not (record.path / "frozen.npy").exists()


def test_training_new_rows_repeats(root):
    _with_new_tokens(root)
    first = finetuning.run(_params(HEAD, WHOLE), root, Ledger()).digest
    shutil.rmtree(root / ".regraft")
    assert finetuning.run(_params(HEAD, WHOLE), root, Ledger()).digest == first


def test_a_resume_point_is_not_taken_for_that_of_other_new_tokens(root):
    _with_new_tokens(root)
    first = finetuning.run(_params(HEAD), root, Ledger()).weights
    _with_new_tokens(root, new=(57, 59))
    assert finetuning.run(_params(HEAD), root, Ledger()).weights != first


def test_another_label_count_than_the_heads_is_refused(root):
    _encode(root, ["a", "b"])
    with pytest.raises(DataError, match=r"the head has 3 labels .* the data 2 .*run `dvc repro conversion`"):
        finetuning.run(_params(HEAD), root, Ledger())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_absent_is_refused(root):
    with pytest.raises(TrainingError, match="torch sees no CUDA device: use auto or cpu"):
        finetuning.run(_params(HEAD, device="cuda"), root, Ledger())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_and_saves_what_a_cpu_can_load(root):
    record = finetuning.run(_params(HEAD, WHOLE, device="cuda"), root, Ledger())
    assert floors.load(record.path / "model").device.type == "cpu"


def test_rows_of_another_kind_are_refused(root):
    _encode(root, ["a", "b", "c"], kind="pair")
    with pytest.raises(DataError, match=r"rows of kind 'pair' .* not trained on yet"):
        finetuning.run(_params(HEAD), root, Ledger())
