"""What is exported answers as the model does, or is not there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tasks import environment, files
from tasks.artifacts import EncodedDataset, Evaluation, TrainedModel
from tasks.errors import ArtifactError, InputError, ParamsError, TrainingError
from tasks.model import graph
from tasks.stages import export

pytest.importorskip("onnxruntime", reason="ONNX comes with regraft[onnx]")
onnx = pytest.importorskip("onnx", reason="ONNX comes with regraft[onnx]")
pytest.importorskip("onnxscript", reason="ONNX comes with regraft[onnx]")
REPOSITORY = Path(__file__).parents[2]
LABELS = ("bad", "fair", "good")
TEXTS = ["another book by Alice", "daisies", "a White Rabbit with pink eyes ran close by her", "the bank"]
SIZES = {name: {} for name in ("rows", "tokens", "truncated", "lost", "unknown")}


@pytest.fixture
def learned(tracked, tiny, tiny_tokenizer, prepared):
    """A project that has fine-tuned this class on rows of a kind, of which it validates four."""

    def make(name="BertForSequenceClassification", *, kind="label", spread=20.0, **config):
        model = tiny(name, num_hidden_layers=1, **config)
        with torch.no_grad():
            for parameter in model.parameters():  # a random head hardly tells two texts apart
                parameter.mul_(spread ** (parameter.dim() == 2 and parameter.shape[0] == 3))
        rows = [
            {"id": f"review-{place}", "split": "validation", **_content(kind, text)}
            for place, text in enumerate(TEXTS)
        ]
        prepared(tracked, [*rows, {**rows[0], "id": "other", "split": "train"}], kind=kind, labels=LABELS)
        with files.replace_directory(TrainedModel.folder(tracked)) as draft:
            model.save_pretrained(draft / "model")
            tiny_tokenizer(draft / "model")
            _type(draft / "model" / "tokenizer_config.json")
            TrainedModel.save(draft, base="", data="", labels=LABELS, weights="", phases=[])
        with files.replace_directory(EncodedDataset.folder(tracked)) as draft:
            EncodedDataset.save(draft, kind=kind, labels=LABELS, max_length=16, **SIZES)
        _evaluate(tracked, TrainedModel.load(tracked).digest)
        shutil.copyfile(REPOSITORY / "params.yaml", tracked / "params.yaml")
        return tracked

    return make


def _type(path):
    """As BERT's tokenizer, it tells the texts of a pair apart."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    files.write_text(path, json.dumps({**json.loads(path.read_text()), "model_input_names": names}))


def _content(kind, text):
    if kind == "tags":
        return {"tokens": text.split(), "tags": ["bad"] * len(text.split())}
    return {"text": text, **({"pair": "by her sister"} if kind == "pair" else {})}


def _evaluate(root, model):
    empty = {one: {} for one in ("metrics", "comparisons", "slices", "calibration", "decided")}
    with files.replace_directory(Evaluation.folder(root)) as draft:
        Evaluation.save(
            draft, model=model, test="", labels=LABELS, rows=0, decision={"temperature": 2.0}, **empty
        )


@pytest.mark.parametrize(
    ("name", "kind", "inputs"),
    [
        ("BertForSequenceClassification", "label", {"input_ids", "attention_mask"}),
        ("LlamaForSequenceClassification", "labels", {"input_ids", "attention_mask"}),
        ("MixtralForSequenceClassification", "label", {"input_ids", "attention_mask"}),
        pytest.param(
            "BertForSequenceClassification",
            "pair",
            {"input_ids", "attention_mask", "token_type_ids"},
            marks=pytest.mark.e2e,
        ),
        pytest.param(
            "RobertaForTokenClassification",
            "tags",
            {"input_ids", "attention_mask"},
            marks=pytest.mark.e2e,
        ),
    ],
)
def test_a_directory_holds_what_it_takes_to_be_answered_alike(learned, tmp_path, name, kind, inputs):
    root, target = learned(name, kind=kind), tmp_path / "exported"
    made = export.export(None, target, root=root)
    assert (made.source, made.architecture, made.rows) == ("data/finetuning", name, 4 + 5)
    assert made.tokens[1] == 16 > made.tokens[0]
    assert 0 <= made.agreement.difference < 1e-5
    manner = json.loads((target / "manner.json").read_text())
    assert (manner["kind"], manner["labels"], manner["max_length"]) == (kind, list(LABELS), 16)
    assert manner["decision"]["temperature"] == 2.0
    record = json.loads((target / "export.json").read_text())
    assert record["files"] == {
        path.name: files.digest_file(path) for path in target.iterdir() if path.name != "export.json"
    }
    assert record["files"].keys() >= {"model.onnx", "tokenizer.json", "config.json", "manner.json"}
    assert record["weights"] == files.digest_file(root / "data/finetuning/model/model.safetensors")
    assert AutoTokenizer.from_pretrained(target).model_max_length == 16
    graphs = onnx.load(target / "model.onnx").graph
    assert {one.name for one in graphs.input} == inputs


def _tampering(write, kept, change):
    """`write`, and then `change` of what it has written, which `kept` holds from the first time on."""

    def both(model, target, *, inputs):
        if not kept.exists():
            write(model, kept, inputs=inputs)
        made = onnx.load(kept)
        change(made.graph)
        onnx.save(made, target)

    return both


def _one_weight(graph):
    (found,) = [one for one in graph.initializer if one.name.endswith("intermediate.dense.bias")]
    values = onnx.numpy_helper.to_array(found).copy()
    values[3] += 0.05
    found.CopyFrom(onnx.numpy_helper.from_array(values, found.name))


def _one_size(graph):
    for given in graph.input:
        for dimension in given.type.tensor_type.shape.dim:
            dimension.dim_value = 3


def test_a_graph_that_says_something_else_is_never_there(learned, tmp_path, monkeypatch):
    root, target, write = learned(), tmp_path / "new" / "exported", graph.write
    told = r"what the model says: row (review-\d|english\.txt\[:\d+\])( alone)?: logits differ by"
    refused = r"onnxruntime cannot compute model\.onnx for a batch of \[\d+, \d+\]"
    for change, sentence in ((_one_weight, told), (_one_size, refused)):
        monkeypatch.setattr(graph, "write", _tampering(write, tmp_path / "kept.onnx", change))
        with pytest.raises(TrainingError, match=sentence):
            export.export(None, target, root=root)
        assert not target.parent.exists()
    monkeypatch.setattr(graph, "write", _tampering(write, tmp_path / "kept.onnx", lambda graph: None))
    export.export(None, target, root=root)


def test_a_graph_that_takes_padding_for_text_is_found_out_in_batches(learned, tmp_path, monkeypatch):
    whole = graph.Traced.forward

    def heedless(self, input_ids, attention_mask, token_type_ids=None):
        return whole(self, input_ids, torch.ones_like(attention_mask) + 0 * attention_mask, token_type_ids)

    monkeypatch.setattr(graph.Traced, "forward", heedless)
    with pytest.raises(TrainingError, match=r"row [^ ]*: logits differ"):  # of none alone
        export.export(None, tmp_path / "exported", root=learned())


def test_nothing_is_written_where_something_is_or_without_the_extra(learned, tmp_path, monkeypatch):
    root, target = learned(), tmp_path / "exported"
    target.mkdir()
    with pytest.raises(InputError, match="exported exists: name a directory that does not"):
        export.export(None, target, root=root)
    monkeypatch.setattr(environment, "find_spec", lambda name: None)  # whatever is installed here
    told = r"regraft export needs onnx, which is not installed: pip install 'regraft\[onnx\]'"
    with pytest.raises(ParamsError, match=told):
        export.export(None, tmp_path / "other", root=root)
    assert not list(target.iterdir())


def test_what_cannot_be_exported_is_told_before_it_is_loaded(learned, tmp_path):
    root = learned()
    _evaluate(root, "sha256:another")
    with pytest.raises(ArtifactError, match="evaluation is of another model: run `dvc repro evaluation`"):
        export.export(None, tmp_path / "exported", root=root)
    with pytest.raises(ArtifactError, match="run `dvc repro finetuning` first"):
        export.export(str(tmp_path / "nowhere"), tmp_path / "exported", root=root)
    with pytest.raises(InputError, match="write models:/NAME@champion or models:/NAME/3"):
        export.export("models:/a model", tmp_path / "exported", root=root)


@pytest.mark.parametrize("kind", ["chat", "answer", "translation"])
def test_what_writes_its_answer_is_refused(learned, tmp_path, kind):
    root = learned()
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        EncodedDataset.save(draft, kind=kind, labels=(), max_length=16, **SIZES)
    with pytest.raises(InputError, match=f"data/finetuning: rows of kind {kind} are answered step by step"):
        export.export(None, tmp_path / "exported", root=root)


def test_of_many_validation_rows_some_of_every_length_are_asked(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MOST", 3)
    texts = export._texts(export.find(None, learned()))
    assert [id for id in texts if id.startswith("review")] == ["review-1", "review-3", "review-2"]
