"""Evaluation and promotion of models of every kind of row: tiny ones that really learned, a little."""

import csv
import json
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from flows.commands import consume
from tasks import files, params
from tasks.artifacts import SPLITS, ConvertedCheckpoint, EncodedDataset, Sources, TrainedModel
from tasks.errors import DataError, ParamsError
from tasks.evaluation import calibration, decisions, predictions, slices
from tasks.evaluation.figures import multilabel
from tasks.stages import evaluation, promotion
from tasks.tracking import runs, server
from tasks.tracking.registry import Registry

SHIPPED = params.load(Path(__file__).parents[2] / "params.yaml")
COUNTS = {"train": 60, "validation": 6, "test": 60}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "long", "short", "the")
STEPS = "step,phase,number,loss,learning_rate,gradient_norm,rows\n1,whole,1,0.9,0.001,1.0,32\n"


class Silent:
    def __init__(self):
        self.values = {}

    def metrics(self, values, *, step=0):
        self.values |= values

    def file(self, path, folder=""):
        assert path.is_file()


def settings(kind, *assignments):
    given = [f"sources.text.kind={kind}", "promotion.model=tiny", "evaluation.resamples=100", *assignments]
    return params.override(SHIPPED, given)


def drawn(split):
    """Texts, each with its words' numbers: what is true of them can be read off these."""
    generator = np.random.default_rng(len(split))
    for number in range(COUNTS[split]):
        ids = generator.integers(4, len(WORDS), 2 + number % 5)
        yield f"{split}-{number}", [int(id) for id in ids], " ".join(WORDS[id] for id in ids)


def labels_of(ids):
    return [name for name, word in (("fine", 4), ("lengthy", 7)) if word in ids]


def score_of(ids):
    return float(ids.count(4) - ids.count(5))


def tags_of(ids):
    """A film is what it is called, and all that is behind it in a row of adjectives."""
    found = []
    for id in ids:
        inside = found and found[-1] != "O"
        found.append("B-film" if id == 6 else "I-film" if inside and id in (7, 8) else "O")
    return found


LABELS = ("fine", "lengthy")
TAGS = ("B-film", "I-film", "O")
SAID = {
    "labels": labels_of,
    "score": score_of,
    "tags": tags_of,
}  # kind -> what a row's column of that name has
ENCODED = {
    "labels": ("labels", pa.list_(pa.int8()), lambda ids: [int(n in labels_of(ids)) for n in LABELS]),
    "score": ("label", pa.float32(), score_of),
    "tags": ("tags", pa.list_(pa.int64()), lambda ids: [TAGS.index(tag) for tag in tags_of(ids)]),
}
NAMES = {"labels": LABELS, "score": (), "tags": TAGS}


def channel_of(id):
    """What came along with a row; every fifth says nothing."""
    number = int(id.partition("-")[2])
    return None if number % 5 == 0 else ("web", "shop")[number % 2]


def write_rows(root, kind, prepared, keep):
    rows = [
        {"id": id, "text": text, "tokens": text.split(), kind: SAID[kind](ids), "split": split}
        | {"channel": channel_of(id)}
        for split in SPLITS
        for id, ids, text in drawn(split)
    ]
    prepared(root, rows, kind=kind, labels=NAMES[kind], keep=keep)
    column, type_, told = ENCODED[kind]
    places = {"places": pa.list_(pa.int32())} if kind == "tags" else {}
    schema = pa.schema({"id": pa.string(), "input_ids": pa.list_(pa.int32()), **places, column: type_})
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        for split in SPLITS:
            table = [
                {
                    "id": id,
                    "input_ids": [2, *ids, 3],
                    "places": [*range(1, len(ids) + 1)],
                    column: told(ids),
                }
                for id, ids, _ in drawn(split)
            ]
            pq.write_table(pa.Table.from_pylist(table, schema), draft / f"{split}.parquet")
        sizes = dict.fromkeys(("tokens", "truncated", "lost", "unknown"), COUNTS)
        EncodedDataset.save(draft, kind=kind, labels=NAMES[kind], max_length=16, rows=COUNTS, **sizes)


def learn(model, kind, epochs):
    import torch

    torch.manual_seed(0)
    rows = [[2, *ids, 3] for _, ids, _ in drawn("train")]
    padded = torch.tensor([row + [0] * (9 - len(row)) for row in rows])
    given = {"input_ids": padded, "attention_mask": (padded > 0).long()}
    wanted = (
        torch.tensor([ENCODED[kind][2](row) for row in rows], dtype=torch.float32)
        if kind != "tags"
        else (
            torch.tensor(
                [[-100, *ENCODED[kind][2](row[1:-1]), *[-100] * (10 - len(row))][:9] for row in rows]
            )
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        optimizer.zero_grad()
        model(**given, labels=wanted).loss.backward()
        optimizer.step()


def write_models(root, kind, tokenizer, *, epochs=60, head=None):
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    torch.manual_seed(1)
    head = (
        head
        or {
            "labels": {"problem_type": "multi_label_classification", "id2label": dict(enumerate(LABELS))},
            "score": {"problem_type": "regression", "id2label": {0: "score"}},
            "tags": {"id2label": dict(enumerate(TAGS))},
        }[kind]
    )
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=33, pad_token_id=0, **head,
    )  # fmt: skip
    model = (BertForTokenClassification if kind == "tags" else BertForSequenceClassification)(config).eval()
    names = {"labels": NAMES[kind]}
    with files.replace_directory(ConvertedCheckpoint.folder(root)) as draft:
        model.save_pretrained(draft / "model")
        ConvertedCheckpoint.save(
            draft, family="bert", architecture=type(model).__name__, source="", parameters={}, fresh=(),
            proofs={"structure": "made here"}, **names,
        )  # fmt: skip
    learn(model, kind, epochs)
    with files.replace_directory(TrainedModel.folder(root)) as draft:
        model.save_pretrained(draft / "model")
        tokenizer.save_pretrained(draft / "model")
        (draft / "steps.csv").write_text(STEPS)
        TrainedModel.save(
            draft,
            base=ConvertedCheckpoint.load(root).digest,
            data=EncodedDataset.load(root).digest,
            weights=files.digest_file(draft / "model" / "model.safetensors"),
            phases=(),
            **names,
        )


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=33,
    )  # fmt: skip


@pytest.fixture
def ready(tracked, prepared, tokenizer, monkeypatch):
    """Writes what the stages before evaluation leave, for rows of a kind."""

    def locate(stage, params, root):
        place = str(tracked / ".regraft" / "mlartifacts")
        client = MlflowClient(tracking_uri=server.uri(root))
        found = client.get_experiment_by_name("tiny")
        experiment = found.experiment_id if found else client.create_experiment("tiny", place)
        return client.create_run(experiment).info.run_id

    def write(kind, keep=(), **how):
        with files.replace_directory(Sources.folder(tracked)) as draft:
            Sources.save(draft, text="sha256:1", checkpoint="sha256:2")
        write_rows(tracked, kind, prepared, keep)
        write_models(tracked, kind, tokenizer, **how)
        return tracked

    monkeypatch.setattr(runs, "locate", locate)  # the run of a fine-tuning that was none
    return write


def page_of(root):
    return (root / "reports" / "evaluation.html").read_text(encoding="utf-8")


def served(root):
    mlflow.set_tracking_uri(f"sqlite:///{root / '.regraft' / 'mlflow.db'}")
    return mlflow.pyfunc.load_model("models:/tiny@champion")


def told(root, kind, text):
    return next(iter(consume.predict(settings(kind), root, text, None)))


def confusion(root):
    return (root / "data" / "evaluation" / "confusion.csv").read_text(encoding="utf-8").splitlines()


@pytest.mark.e2e
def test_rows_with_any_number_of_labels_reach_a_champion(ready, tmp_path):
    root = ready("labels")
    record = evaluation.run(settings("labels"), root, Silent())
    assert list(predictions.read(record.path / "predictions.parquet")) == [
        "shares",
        "tfidf",
        "frozen",
        "model",
    ]
    figures = {name: found["micro_f1"]["value"] for name, found in record.metrics.items()}
    assert figures["model"] > 0.95 > figures["shares"]
    assert record.comparisons["shares"]["measure"] == "F1 of a row's labels"
    assert record.comparisons["shares"]["p_value"] < 0.001
    assert "permutation test" in page_of(root)
    assert page_of(root).count("<svg") == 4
    assert set(confusion(root)[1:]) <= {f"{a},{b}" for a in (*LABELS, "—") for b in (*LABELS, "—")}
    assert evaluation.run(settings("labels"), root, Silent()).digest == record.digest

    assert promotion.run(settings("labels", "promotion.gate.must_beat=[shares]"), root, Silent()).alias_moved
    assert told(root, "labels", "good long film").startswith(("fine (", "lengthy ("))
    assert told(root, "labels", "bad").startswith("no label (the likeliest is ")
    table = root / "reviews.csv"
    table.write_text("text,note\ngood film,a\nbad film,b\n", encoding="utf-8")
    list(consume.predict(settings("labels"), root, str(table), tmp_path / "out.csv"))
    first, second = csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines())
    assert (first["prediction"], second["prediction"], second["note"]) == ("fine", "", "b")
    assert float(first["probability of fine"]) > 0.5 > float(first["probability of lengthy"])

    answers = served(root).predict(["good long film", "good"])
    assert [{one["label"] for one in row} for row in answers.to_numpy()] == [set(LABELS)] * 2
    assert answers[0][1]["label"] == "fine"
    assert answers[0][1]["score"] > 0.5, "as sure as it was trained; predict tells it at its temperature"


@pytest.mark.e2e
def test_rows_with_a_score_reach_a_champion(ready):
    root = ready("score")
    record = evaluation.run(settings("score"), root, Silent())
    figures = {name: found["rmse"]["value"] for name, found in record.metrics.items()}
    assert list(figures) == sorted(["mean", "tfidf", "frozen", "model"])
    assert figures["model"] < 0.7 * figures["mean"]
    assert record.comparisons["mean"]["measure"] == "negative squared error"
    assert page_of(root).count("<svg") == 3
    assert "Largest errors" in page_of(root)
    assert "<h2>Classes</h2>" not in page_of(root)
    assert confusion(root) == ["actual,predicted"]

    assert promotion.run(settings("score", "promotion.gate.must_beat=[mean]"), root, Silent()).alias_moved
    said = [float(told(root, "score", text)) for text in ("good good good", "bad bad")]
    assert said[0] > 1 > -1 > said[1]
    answers = served(root).predict(["good good good", "bad bad"])
    assert answers["score"].tolist() == pytest.approx(said, abs=1e-3)
    assert json.loads((root / "reports" / "metrics.json").read_text())["model"]["rmse"] == figures["model"]


@pytest.mark.e2e
def test_rows_with_a_tag_a_word_reach_a_champion(ready):
    root = ready("tags", epochs=120)
    record = evaluation.run(settings("tags"), root, Silent())
    figures = {name: found["entity_f1"]["value"] for name, found in record.metrics.items()}
    assert list(figures) == ["lookup", "majority", "model"]
    assert figures["model"] > 0.8 > figures["lookup"]
    assert figures["majority"] == 0
    assert record.comparisons["majority"]["measure"] == "share of a row's words tagged rightly"
    answers = predictions.read(record.path / "predictions.parquet")["model"]
    assert [len(row) for row in answers.answer] == [len(ids) for _, ids, _ in drawn("test")]
    assert page_of(root).count("<svg") == 4
    assert len(confusion(root)) == 1 + sum(len(row) for row in answers.actual)
    assert evaluation.run(settings("tags"), root, Silent()).digest == record.digest

    assert promotion.run(settings("tags", "promotion.gate.must_beat=[majority]"), root, Silent()).alias_moved
    assert told(root, "tags", "the film long") == "the/O film/B-film long/I-film"
    assert told(root, "tags", "bad " * 20).split()[13:15] == ["bad/O", "bad/?"]
    assert list(served(root).predict(["the film", "bad"])) == ["O,B-film", "O"]


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["labels", "score", "tags"])
def test_values_that_came_along_are_told_apart_and_protected(ready, kind):
    asked = settings(
        kind, "sources.text.keep=[channel]", "evaluation.smallest_slice=8", "promotion.gate.must_beat=[]",
        "promotion.gate.slices={minimum: 8, margin: 0.0}",
        "evaluation.slices={by: channel, web or silent: \"channel IS NULL OR channel = 'web'\"}",
    )  # fmt: skip
    root = ready(kind, keep=("channel",))
    record = evaluation.run(asked, root, Silent())
    rows = {n: found["rows"] for n, found in record.slices.items() if not n.startswith(("label", "length"))}
    assert rows == {"by = shop": 24, "by = web": 24, "web or silent": 36}
    assert all(record.slices[name]["metrics"] for name in rows)
    assert "rows whose channel is web" in page_of(root)
    masks = slices.read(record.path / "slices.parquet", [id for id, *_ in drawn("test")])
    assert masks["by = web"].tolist() == [channel_of(id) == "web" for id, *_ in drawn("test")]

    assert promotion.run(asked, root, Silent()).alias_moved
    ready_again(root, asked, epochs=1)
    worse = promotion.run(asked, root, Silent())
    assert worse.outcome == "reject"
    assert any("slice by = web: 24 rows" in reason for reason in worse.reasons)


@pytest.mark.e2e
def test_a_champion_of_scores_answers_other_test_rows(ready):
    root = ready("score", epochs=3)
    evaluation.run(settings("score"), root, Silent())
    promotion.run(settings("score", "promotion.gate.must_beat=[]"), root, Silent())
    folder = EncodedDataset.folder(root)
    with files.replace_directory(folder) as draft:
        for split in SPLITS:
            table = pq.read_table(folder / f"{split}.parquet")
            pq.write_table(table.slice(0, 50) if split == "test" else table, draft / f"{split}.parquet")
        sizes = dict.fromkeys(("rows", "tokens", "truncated", "lost", "unknown"), COUNTS)
        EncodedDataset.save(draft, kind="score", labels=(), max_length=16, **sizes)
    ready_again(root, settings("score"))
    record = promotion.run(settings("score", "promotion.gate.must_beat=[]"), root, Silent())
    assert record.outcome == "promote"
    assert "> champion " in record.reasons[0]
    assert "on the same 50 rows" in record.reasons[0]


def ready_again(root, asked, *, epochs=60):
    """Another model of the rows that are there, evaluated."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TrainedModel.folder(root) / "model")
    write_models(root, asked.sources.text.kind, tokenizer, epochs=epochs)
    evaluation.run(asked, root, Silent())


@pytest.mark.e2e
def test_each_label_has_a_threshold_that_validation_rows_have_chosen(ready):
    root = ready("labels", epochs=8)
    changes = ("evaluation.threshold=best_f1", "evaluation.baselines=[shares]", "evaluation.smallest_slice=1")
    record = evaluation.run(settings("labels", *changes), root, Silent())
    validation = predictions.read(record.path / "validation.parquet")["model"]
    test = predictions.read(record.path / "predictions.parquet")["model"]
    heat, chosen = record.decision["temperature"], record.decision["thresholds"]
    assert chosen == decisions.best_f1(validation.actual, calibration.at(validation, heat))
    assert len(chosen) == len(LABELS)
    held = decisions.held(calibration.at(test, heat), chosen)
    assert record.decided["micro_f1"]["value"] == multilabel.micro_f1(test.actual, held)
    assert record.slices["label = fine"]["rows"] == test.actual[:, 0].sum()
    assert record.slices["label = fine"]["metrics"]["micro_f1"]["value"] <= 1
    assert "A label holds from these probabilities on: fine " in page_of(root)
    assert evaluation.run(settings("labels", *changes), root, Silent()).digest == record.digest


def test_what_fits_another_kind_of_row_is_refused_before_any_work(tracked):
    with pytest.raises(ParamsError, match="no metric 'accuracy' for rows of this kind"):
        evaluation.run(settings("score", "evaluation.metrics=[accuracy]"), tracked, Silent())
    with pytest.raises(ParamsError, match="no baseline 'majority' for rows of kind labels"):
        evaluation.run(settings("labels", "evaluation.baselines=[majority]"), tracked, Silent())


def test_labels_that_changed_after_encoding_are_noticed(ready):
    root = ready("labels", epochs=0)
    path = root / "data" / "preparation" / "rows.parquet"
    rows = pq.read_table(path).to_pylist()
    next(row for row in rows if row["id"] == "test-3")["labels"] = ["lengthy", "fine", "new"]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"1 of 60 rows are not preparation's.*first: test-3"):
        evaluation.run(settings("labels"), root, Silent())


def test_a_head_with_too_many_outputs_for_a_score_is_named(ready):
    root = ready("score", epochs=0, head={"problem_type": "regression", "num_labels": 2})
    with pytest.raises(DataError, match="the head has 2 outputs"):
        evaluation.run(settings("score"), root, Silent())


def test_the_registry_remembers_the_kind(ready):
    root = ready("score", epochs=0)
    evaluation.run(settings("score", "evaluation.baselines=[mean]"), root, Silent())
    promotion.run(settings("score"), root, Silent())
    assert Registry(root, "tiny").version("1").tags["regraft.kind"] == '"score"'
