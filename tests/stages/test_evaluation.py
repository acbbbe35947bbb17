"""The stage on real files: a tiny random BERT whose fine-tuned twin reads the label off one token."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import files, params
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, Evaluation, PreparedText, TrainedModel
from tasks.errors import ArtifactError, CheckpointError, DataError, ParamsError

ROOT = Path(__file__).parents[2]
LABELS = ("bad", "good", "so so")
TRACKED = ("evaluation.html", "metrics.json")
WORDS = ("awful", "lovely", "plain")
ROWS = {"train": 60, "validation": 12, "test": 48}
SETTINGS = ["evaluation.resamples=100", "preparation.subset.train=60"]


class Silent:
    """Remembers what tracking would have been told."""

    def __init__(self):
        self.values, self.files = {}, []

    def metrics(self, values, *, step=0):
        self.values |= values

    def file(self, path, folder=""):
        assert path.is_file()
        self.files.append(path.name)


def _params(*changes):
    return params.override(params.load(ROOT / "params.yaml"), [*SETTINGS, *changes])


def _table(split):
    """Rows whose first token after the start gives the label away, in a small share of rows falsely."""
    generator = np.random.default_rng(len(split))
    labels = np.arange(ROWS[split]) % 3
    told = np.where(generator.random(len(labels)) < 0.1, (labels + 1) % 3, labels)
    return [
        {
            "id": f"{split}-{number}",
            "text": f"{WORDS[word]} number {number}",
            "label": int(label),
            "input_ids": [2, 10 + int(word), *generator.integers(20, 60, 1 + number % 5).tolist(), 3],
        }
        for number, (label, word) in enumerate(zip(labels, told, strict=True))
    ]


def _encoded(root):
    tables = {split: _table(split) for split in ROWS}
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        schema = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("label", pa.int64())])
        for split, table in tables.items():
            rows = [{key: row[key] for key in schema.names} for row in table]
            pq.write_table(pa.Table.from_pylist(rows, schema), draft / f"{split}.parquet")
        EncodedDataset.save(
            draft,
            kind="label",
            labels=LABELS,
            max_length=32,
            rows=ROWS,
            tokens=ROWS,
            truncated=ROWS,
            lost=ROWS,
            unknown=ROWS,
        )


@pytest.fixture
def ready(tmp_path, prepared):
    """What preparation and encoding leave."""

    def write(labels=LABELS, **more):
        rows = [
            {"id": row["id"], "text": row["text"], "label": LABELS[row["label"]], "split": split}
            for split in ROWS
            for row in _table(split)
        ]
        prepared(tmp_path, rows, labels=labels, **more)
        _encoded(tmp_path)

    return write


def _models(root, make, *, outputs=3):
    """A converted checkpoint with a random head, and a model that really was trained from it, a little."""
    from safetensors.torch import save_file

    model = make(labels=outputs, layers=1)
    with files.replace_directory(ConvertedCheckpoint.folder(root)) as draft:
        model.save_pretrained(draft / "model")
        ConvertedCheckpoint.save(
            draft, family="", architecture=type(model).__name__, labels=LABELS,
            source="sha256:0", parameters={}, fresh=(), proofs={},
        )  # fmt: skip
    head = {n: p.detach().clone() for n, p in model.named_parameters() if not n.startswith("bert.e")}
    if outputs == 3:
        _train(model, _table("train"))
    with files.replace_directory(TrainedModel.folder(root)) as draft:
        model.eval().save_pretrained(draft / "model")
        _write_tokenizer(draft / "model")
        save_file(head, draft / "head.safetensors")
        (draft / "steps.csv").write_text(
            "step,phase,number,loss,learning_rate,gradient_norm,rows\n"
            "1,head,1,1.1,0.001,1.0,32\n2,whole,1,0.9,0.001,1.0,32\n",
            encoding="utf-8",
        )
        drift = {"floors": {"layer 0": {"cka": 0.875, "cosine": 0.5}}, "loss": {"before": 2.0, "after": 2.25}}
        (draft / "drift.json").write_text(json.dumps(drift), encoding="utf-8")
        (draft / "changes.svg").write_text("<svg><text>floors</text></svg>", encoding="utf-8")
        TrainedModel.save(
            draft,
            base=ConvertedCheckpoint.load(root).digest,
            data=EncodedDataset.load(root).digest,
            labels=LABELS,
            weights="sha256:3",
            phases=[],
        )


def _write_tokenizer(target):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "awful": 10, "lovely": 11, "plain": 12}
    words |= {"is": 13, "bad": 14, "good": 15, "so": 16}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(target)


def _train(model, rows):
    import torch

    ids = torch.tensor([row["input_ids"][:2] for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()


def _bytes(root):
    """Everything evaluation leaves that DVC digests, by name."""
    paths = [*Evaluation.folder(root).iterdir(), *(root / "reports" / name for name in TRACKED)]
    return {path.name: path.read_bytes() for path in paths}


def _run(root, *changes):
    from tasks.stages import evaluation

    track = Silent()
    return evaluation.run(_params(*changes), root, track), track


@pytest.mark.e2e
def test_the_stage_judges_a_model_that_learned_against_all_contestants(ready, tmp_path, tiny_bert):
    from tasks.evaluation import predictions

    ready(contaminated={"glue": 3})
    _models(tmp_path, tiny_bert)
    record, track = _run(tmp_path)

    contestants = ["majority", "tfidf", "frozen", "zero_shot", "head", "model"]
    found = predictions.read(record.path / "predictions.parquet")
    assert list(found) == contestants
    assert all(answers.ids == found["model"].ids for answers in found.values())
    assert (record.rows, record.labels, set(record.metrics)) == (48, LABELS, set(contestants))
    assert record.metrics["model"]["accuracy"]["value"] == pytest.approx(found["model"].correct.mean())
    assert (
        record.metrics["model"]["accuracy"]["value"] > 0.7 > record.metrics["majority"]["accuracy"]["value"]
    )
    assert set(record.comparisons) == set(contestants) - {"model"}
    assert record.comparisons["majority"]["p_value"] < 0.001

    values = json.loads((tmp_path / "reports" / "metrics.json").read_text())
    assert values["head"]["log_loss"] == record.metrics["head"]["log_loss"]["value"]
    assert track.values["test.accuracy"] == values["model"]["accuracy"]
    assert track.values["test.tfidf.macro_f1"] == values["tfidf"]["macro_f1"]
    tables = ["classes.csv", "confusion.csv", "reliability.csv", "coverage.csv", "suspects.csv"]
    assert track.files == ["evaluation.html", "metrics.json", *tables, "README.md"]

    with (record.path / "classes.csv").open() as stream:
        classes = list(csv.DictReader(stream))
    assert [(one["class"], one["measure"]) for one in classes] == [
        (label, measure) for label in LABELS for measure in ("precision", "recall", "f1")
    ]
    assert {one["rows"] for one in classes} == {"16"}
    assert all(0 <= float(one["low"]) <= float(one["value"]) <= float(one["high"]) <= 1 for one in classes)
    lines = (record.path / "confusion.csv").read_text().splitlines()
    assert lines[0] == "actual,predicted"
    assert sum(len(set(line.split(","))) == 1 for line in lines[1:]) == found["model"].correct.sum()

    page = (tmp_path / "reports" / "evaluation.html").read_text()
    assert "The fine-tuned model beats majority" in page
    assert "at most 60 train" in page
    assert page.count("<svg") == 7
    for text in (page, (record.path / "README.md").read_text(encoding="utf-8")):
        assert "that the data held, and that left train: 3 of glue" in text
        assert "what leaves layer 0 has a linear CKA of 0.875" in text
        assert "its cross-entropy went from 2.000 to 2.250 nats a token" in text
    written = _bytes(tmp_path)

    again, _ = _run(tmp_path)
    assert again.digest == record.digest
    assert _bytes(tmp_path) == written
    assert Evaluation.load(tmp_path) == again


@pytest.mark.e2e
def test_everything_can_be_told_again_without_the_model(ready, tmp_path, tiny_bert):
    from tasks.evaluation import calibration, predictions, slices

    ready()
    _models(tmp_path, tiny_bert)
    record, track = _run(
        tmp_path,
        "evaluation.slices={odd: \"text LIKE '%1' OR text LIKE '%3'\"}",
        "evaluation.smallest_slice=8",
        "evaluation.abstain={accuracy: 0.95}",
    )
    test = predictions.read(record.path / "predictions.parquet")
    validation = predictions.read(record.path / "validation.parquet")["model"]
    assert validation.ids == tuple(f"validation-{n}" for n in range(12))
    assert [name for name, found in test.items() if found.logits is not None] == ["head", "model"]
    assert np.array_equal(calibration.at(test["model"], 1.0), test["model"].answer)
    assert record.decision["temperature"] == calibration.fit(validation)
    sure = calibration.at(test["model"], record.decision["temperature"]).max(axis=1)
    answered = sure >= record.decision["abstain_below"]
    assert record.decided["coverage"]["value"] == answered.mean()
    assert record.decided["accuracy"]["value"] == pytest.approx(test["model"].correct[answered].mean())
    assert record.calibration["rows"] == 12
    assert record.calibration["after"]["log_loss"] != record.calibration["before"]["log_loss"]

    masks = slices.read(record.path / "slices.parquet", test["model"].ids)
    assert list(masks) == list(record.slices)
    assert record.slices["odd"]["rows"] == masks["odd"].sum() == 10
    told = record.slices["label = good"]["metrics"]["accuracy"]
    assert told["value"] == test["model"].correct[masks["label = good"]].mean()
    assert track.values["slice.label = good.accuracy"] == told["value"]
    assert list(told) == ["high", "low", "value"]
    timings = json.loads((tmp_path / "reports" / "evaluation-timings.json").read_text())
    assert list(timings) == sorted(test)
    assert timings["model"]["rows_per_second"] > 0


@pytest.mark.e2e
def test_rows_of_one_cluster_widen_the_intervals(ready, tmp_path, tiny_bert):
    ready()
    _models(tmp_path, tiny_bert)
    changes = ("evaluation.baselines=[majority]", "evaluation.metrics=[accuracy]")
    alone, _ = _run(tmp_path, *changes)
    path = PreparedText.folder(tmp_path) / "rows.parquet"
    rows = pq.read_table(path)
    clusters = [f"{int(row['label'] == 'good'):016x}" for row in rows.to_pylist()]
    place = rows.schema.get_field_index("cluster")
    pq.write_table(rows.set_column(place, "cluster", pa.array(clusters)), path)
    together, _ = _run(tmp_path, *changes)
    assert "over the 2 groups of near-duplicates" in (tmp_path / "reports" / "evaluation.html").read_text()
    assert [record.comparisons["majority"]["groups"] for record in (alone, together)] == [None, 2]
    before, after = (record.metrics["majority"]["accuracy"] for record in (alone, together))
    assert after["value"] == before["value"]
    assert (after["low"], after["high"]) == (0, 0.5) or after["high"] - after["low"] > 0.3


def test_decisions_that_the_kind_does_not_know_are_refused_before_any_work(tmp_path):
    with pytest.raises(ParamsError) as caught:
        _run(
            tmp_path,
            "sources.text.kind=score",
            "evaluation.abstain={accuracy: 0.9}",
            "evaluation.threshold=best_f1",
        )
    assert "evaluation.abstain: only rows of kind label and pair have a confidence, not score" in str(
        caught.value
    )
    assert "evaluation.threshold: only rows of kind labels have thresholds" in str(caught.value)


def test_a_slice_that_names_no_column_is_refused_before_any_work(ready, tmp_path, tiny_bert):
    ready()
    _models(tmp_path, tiny_bert)
    with pytest.raises(
        ParamsError, match=r"evaluation.slices.mine: 'topic': .*columns: id, characters, text, label"
    ):
        _run(tmp_path, "evaluation.slices={mine: topic}")
    assert not Evaluation.folder(tmp_path).exists()


@pytest.mark.e2e
def test_without_a_head_only_phase_there_is_no_head_contestant(ready, tmp_path, tiny_bert):
    ready()
    _models(tmp_path, tiny_bert)
    (TrainedModel.folder(tmp_path) / "head.safetensors").unlink()
    record, _ = _run(tmp_path, "evaluation.baselines=[majority]", "evaluation.metrics=[mcc]")
    assert list(record.metrics) == ["majority", "model"]


def test_stages_that_disagree_about_labels_are_named(ready, tmp_path, tiny_bert):
    ready(labels=("good", "bad", "so so"))
    _models(tmp_path, tiny_bert)
    with pytest.raises(
        DataError, match=r"finetuning has 3 labels \(bad, good, so so\), preparation 3 \(good, bad"
    ):
        _run(tmp_path)


def test_a_head_of_another_size_is_named_with_both_numbers(ready, tmp_path, tiny_bert):
    ready()
    _models(tmp_path, tiny_bert, outputs=5)
    with pytest.raises(DataError, match="the head has 5 outputs, the data 3 labels"):
        _run(tmp_path)
    assert not Evaluation.folder(tmp_path).exists()


def test_a_row_whose_label_changed_after_encoding_is_named(ready, tmp_path, tiny_bert):
    ready()
    _models(tmp_path, tiny_bert)
    path = PreparedText.folder(tmp_path) / "rows.parquet"
    rows = pq.read_table(path).to_pylist()
    next(row for row in rows if row["id"] == "test-7")["label"] = "so so"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"1 of 48 rows are not preparation's.*first: test-7"):
        _run(tmp_path)


def test_unknown_names_are_refused_before_any_work(tmp_path):
    with pytest.raises(ParamsError, match="no metric 'acc'"):
        _run(tmp_path, "evaluation.metrics=[acc]")
    with pytest.raises(ParamsError, match="no baseline 'random'"):
        _run(tmp_path, "evaluation.baselines=[random]")


def test_a_stage_that_has_not_run_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="run `dvc repro preparation` first"):
        _run(tmp_path)


@pytest.fixture
def speaking(tiny):
    """Makes a classifier of a decoder that has learned to say what a word is."""

    def make(*, labels, layers):
        import torch

        told = [
            [10, 1, 1, 13, 14, 0],
            [11, 1, 1, 13, 15, 0],
            [12, 1, 1, 13, 16, 16],
        ]  # as the tokenizer reads
        rows = torch.tensor(told)
        model = tiny("GPT2LMHeadModel", n_layer=layers)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            model(input_ids=rows, labels=torch.where(rows > 0, rows, -100)).loss.backward()
            optimizer.step()
        made = tiny("GPT2ForSequenceClassification", n_layer=layers, num_labels=labels)
        made.transformer.load_state_dict(model.transformer.state_dict())
        return made

    return make


WAYS = 'evaluation.prompting={templates: ["{text} {label}", "{text} is {label}"], shots: [0, 2], draws: 1, rows: 9}'


@pytest.mark.e2e
def test_a_decoder_is_asked_in_words_as_validation_rows_chose(ready, tmp_path, speaking):
    pytest.importorskip("lm_eval")
    from tasks.evaluation import predictions

    ready()
    _models(tmp_path, speaking)
    (TrainedModel.folder(tmp_path) / "head.safetensors").unlink()
    record, track = _run(tmp_path, "evaluation.baselines=[majority, k_shot]", WAYS)
    told = json.loads((record.path / "prompting.json").read_text())
    assert (told["rows"], told["cut"], len(told["tried"])) == (9, 0, 8)
    assert told["chosen"]["candidate"]["template"] == "{text} is {label}"
    assert told["chosen"]["accuracy"] == max(one["accuracy"] for one in told["tried"]) > 0.7
    assert min(one["accuracy"] for one in told["tried"]) < 0.7
    found = predictions.read(record.path / "predictions.parquet")
    assert list(found) == ["majority", "k_shot", "model"]
    assert found["k_shot"].answer.sum(axis=1) == pytest.approx(1)
    assert track.values["test.k_shot.accuracy"] == found["k_shot"].correct.mean() > 0.7
    assert record.comparisons["k_shot"]["rows"] == 48
    page = (tmp_path / "reports" / "evaluation.html").read_text()
    assert "How the model was asked in words" in page
    assert page.count("<small>chosen</small>") == 1

    written = _bytes(tmp_path)
    _run(tmp_path, "evaluation.baselines=[majority, k_shot]", WAYS)
    assert _bytes(tmp_path) == written


def test_an_encoder_is_not_asked_in_words(ready, tmp_path, tiny_bert, monkeypatch):
    from tasks import environment

    ready()
    _models(tmp_path, tiny_bert)
    monkeypatch.setattr(environment, "find_spec", lambda name: name)  # as if lm-eval were installed
    with pytest.raises(CheckpointError, match=r"is of type bert, which does not write: .* take a decoder"):
        _run(tmp_path, "evaluation.baselines=[k_shot]")
    assert not Evaluation.folder(tmp_path).exists()


EXPECTED = "{text: lovely, label: good}, {text: awful, label: bad}, {text: 'LOVELY', label: good}"


@pytest.mark.e2e
def test_the_stage_tells_what_the_model_minds_and_what_it_does_not_know(ready, tmp_path, tiny_bert):
    ready()
    _models(tmp_path, tiny_bert)
    record, track = _run(
        tmp_path,
        "evaluation.baselines=[majority]",
        "evaluation.behaviour.rows=30",
        "evaluation.behaviour.direction=[{append: number, label: good, tolerance: 0.9}]",
        f"evaluation.behaviour.expected=[{EXPECTED}]",
    )
    told = {one["name"]: one for one in json.loads((record.path / "behaviour.json").read_text())}
    passed = {name: one["passed"] and one["passed"]["value"] for name, one in told.items()}
    assert {"name": None, "lower": None, "whitespace": None, "number → good": 1.0}.items() <= passed.items()
    assert (told["upper"]["rows"], told["typo"]["rows"]) == (30, 13), (
        "a word that it never knew stays unknown"
    )
    assert passed["upper"] < 1, "its words are all lower case"
    assert told["upper"]["robustness"]["other"] > told["upper"]["robustness"]["score"]
    assert passed["expected"] >= 2 / 3

    page = (tmp_path / "reports" / "evaluation.html").read_text()
    assert "no row whose tokens it changes" in page
    assert told["upper"]["worst"][0]["text"] in page
    assert track.values["behaviour.upper"] == passed["upper"]
    assert track.values["behaviour.number - good"] == 1
    assert "name" not in json.loads((tmp_path / "reports" / "metrics.json").read_text())["behaviour"]


def test_tests_of_behaviour_that_the_rows_cannot_have_are_listed(ready, tmp_path, tiny_bert):
    ready()
    _models(tmp_path, tiny_bert)
    with pytest.raises(ParamsError) as caught:
        _run(
            tmp_path,
            "evaluation.behaviour.direction=[{append: It was awful., label: god}]",
            "evaluation.behaviour.expected=[{text: a, pair: b, label: good}]",
        )
    first, second = str(caught.value).splitlines()
    assert first == "evaluation.behaviour.direction.0: no row has the label 'god'; did you mean 'good'?"
    assert second == "evaluation.behaviour.expected.0 has a pair, but rows are of kind label"
