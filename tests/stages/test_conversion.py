"""The whole stage on a tiny checkpoint: what it writes, twice alike, and that it fails whole."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from tasks import files, params
from tasks.artifacts import ConvertedCheckpoint, Vocabulary
from tasks.errors import ArtifactError, CheckpointError, DataError, PlanError, ProofError
from tasks.stages import conversion, sources
from tasks.weights import proof

LABELS = ["negative", "neutral", "positive"]
PARAMS = """
sources:
  text: {path: table.csv}
  checkpoint: {path: checkpoint, licence: 'Apache-2.0 & <others>'}
preparation: {}
vocabulary: {}
conversion: {}
encoding: {}
finetuning: {phases: [{name: head, depth: 0, learning_rate: 1.0e-3}]}
evaluation: {}
promotion: {model: tiny}
"""


class Listener:
    def __init__(self):
        self.figures, self.files = {}, []

    def metrics(self, values, *, step=0):
        self.figures |= values

    def file(self, path, folder=""):
        self.files.append(path)


def vocabulary(root, size=37, source_ids=None):
    ids = list(range(size))
    rows = {
        "id": ids,
        "token": [f"t{id}" for id in ids],
        "origin": ["kept"] * size,
        "source_id": source_ids or ids,
    }
    with files.replace_directory(Vocabulary.folder(root)) as draft:
        parquet.write_table(pa.table(rows), draft / "alignment.parquet")
        Vocabulary.save(draft, size=size, kept=size, fresh=0, special={})


@pytest.fixture
def root(tmp_path):
    """A project with a tiny BERT, its upstream stages done."""
    torch.manual_seed(3)
    config = BertConfig(
        hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=2,
        vocab_size=37, max_position_embeddings=19,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "table.csv").write_text("text,label\na,b\n")
    files.write_text(tmp_path / "data" / "preparation" / "labels.json", json.dumps(LABELS))
    vocabulary(tmp_path)
    return tmp_path


def see(root):
    sources.run(params.parse(PARAMS), root, Listener())


def run(root, text=PARAMS):
    listener = Listener()
    return conversion.run(params.parse(text), root, listener), listener


def test_a_checkpoint_becomes_a_classifier_that_transformers_loads(root):
    see(root)
    record, listener = run(root)
    assert record == ConvertedCheckpoint.load(root)
    assert (record.family, record.architecture) == ("bert", "BertForSequenceClassification")
    assert record.labels == tuple(LABELS)
    assert record.fresh == ("classifier.weight", "classifier.bias")
    assert list(record.proofs) == sorted(["structure", "content", "load", "parity"])
    assert record.parameters["initialised"] == 3 * 24 + 3
    model = AutoModelForSequenceClassification.from_pretrained(record.path / "model")
    assert model.config.label2id == {"negative": 0, "neutral": 1, "positive": 2}
    source = load_file(root / "checkpoint" / "model.safetensors")
    assert torch.equal(model.bert.pooler.dense.weight, source["pooler.dense.weight"])
    assert listener.files == [root / "reports" / "conversion.html"]
    assert listener.figures["parameters.initialised"] == 75


def test_the_plan_explains_every_tensor_and_the_report_shows_it(root):
    see(root)
    record, _ = run(root)
    plan = json.loads((record.path / "plan.json").read_text())
    names = load_file(record.path / "model" / "model.safetensors").keys()
    assert [row["target"] for row in plan["rows"] if row["target"]] != []
    assert {row["target"] for row in plan["rows"] if row["target"]} == set(names)
    assert sum(plan["parameters"].values()) == sum(row["parameters"] for row in plan["rows"])
    page = (root / "reports" / "conversion.html").read_text()
    for row in plan["rows"]:
        assert (row["target"] or row["source"]) in page
    assert "normal(0, 0.02) seed 17: new head, 3 labels" in page
    assert "Apache-2.0 &amp; &lt;others&gt;" in page
    assert "<script" not in page
    assert "http" not in page


def test_the_same_input_gives_the_same_bytes_and_no_path_of_this_machine(root):
    see(root)
    (first, _), page = run(root), (root / "reports" / "conversion.html").read_bytes()
    (second, _), again = run(root), (root / "reports" / "conversion.html").read_bytes()
    assert (first.digest, page) == (second.digest, again)
    for path in [*first.path.rglob("*"), root / "reports" / "conversion.html"]:
        assert path.is_dir() or str(root).encode() not in path.read_bytes()


def test_another_seed_changes_the_head_and_nothing_else(root):
    see(root)
    record, _ = run(root)
    before = load_file(record.path / "model" / "model.safetensors")
    run(root, PARAMS.replace("conversion: {}", "conversion: {seed: 18}"))
    after = load_file(record.path / "model" / "model.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["classifier.weight"]


def test_a_vocabulary_larger_than_the_embedding_table_is_refused(root):
    see(root)
    vocabulary(root, size=38)
    with pytest.raises(
        CheckpointError, match=r"up to 37, so it needs 38 embedding rows; the checkpoint has 37"
    ):
        run(root)


@pytest.mark.parametrize(
    ("source_ids", "message"),
    [
        ([*range(35), None, None], "2 tokens .* the first 't35' with id 35"),
        ([1, 0, *range(2, 37)], "2 tokens .* the first 't0' with id 0"),
    ],
)
def test_tokens_that_the_embedding_table_does_not_hold_in_place_are_refused(root, source_ids, message):
    see(root)
    vocabulary(root, source_ids=source_ids)
    with pytest.raises(PlanError, match=message + ".*set vocabulary.tokenizer to checkpoint"):
        run(root)


def test_a_checkpoint_that_changed_since_it_was_seen_is_refused(root):
    see(root)
    path = root / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "pooler.dense.bias": tensors["pooler.dense.bias"] + 1}, path)
    with pytest.raises(ArtifactError, match=r"model\.safetensors changed since the sources stage looked"):
        run(root)


def test_an_unknown_model_type_gets_a_suggestion(root):
    path = root / "checkpoint" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "robert"}))
    see(root)
    with pytest.raises(CheckpointError, match=r"'robert'; did you mean 'roberta'\?"):
        run(root)


def test_a_pickle_is_refused(root):
    (root / "checkpoint" / "model.safetensors").rename(root / "checkpoint" / "pytorch_model.bin")
    see(root)
    with pytest.raises(CheckpointError, match="is a pickle"):
        run(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 0}', "must be a JSON list"),
        ("[]", "have no classes"),
        ('["a"]', "at least two labels"),
        ('["a", "a"]', "each once"),
    ],
)
def test_labels_must_be_a_list_of_different_names(tmp_path: Path, text, message):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DataError, match=message):
        conversion.read_labels(tmp_path / "labels.json")


def test_stages_that_have_not_run_are_named(root):
    with pytest.raises(ArtifactError, match="run `dvc repro sources` first"):
        run(root)
    with pytest.raises(ArtifactError, match="run `dvc repro preparation` first"):
        conversion.read_labels(root / "labels.json")


def fail(*_, **__):
    raise ProofError("not what was promised")


def test_a_failed_proof_leaves_nothing_and_a_former_output_as_it_was(root, monkeypatch):
    see(root)
    monkeypatch.setattr(proof, "verify", fail)
    with pytest.raises(ProofError, match="not what was promised"):
        run(root)
    assert not ConvertedCheckpoint.folder(root).exists()
    assert [path.name for path in (root / "data").iterdir() if "conversion" in path.name] == []
    assert not (root / "reports").exists()
    monkeypatch.undo()
    former, _ = run(root)
    monkeypatch.setattr(proof, "verify", fail)
    with pytest.raises(ProofError):
        run(root, PARAMS.replace("conversion: {}", "conversion: {seed: 18}"))
    assert ConvertedCheckpoint.load(root) == former


def test_an_unexplained_tensor_stops_the_stage(root):
    path = root / "checkpoint" / "model.safetensors"
    save_file({**load_file(path), "surprise": torch.zeros(2)}, path)
    see(root)
    with pytest.raises(PlanError, match="1 of its 40 tensors match no rule: surprise"):
        run(root)
    assert not ConvertedCheckpoint.folder(root).exists()
