"""Evaluation and promotion of language models: tiny ones that learned which word follows which."""

import json
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from flows.commands import consume
from tasks import files, params
from tasks.artifacts import SPLITS, ConvertedCheckpoint, EncodedDataset, Sources, TrainedModel
from tasks.errors import InputError
from tasks.evaluation import predictions
from tasks.stages import evaluation, promotion
from tasks.tracking import runs, server

SHIPPED = params.load(Path(__file__).parents[2] / "params.yaml")
WORDS = (
    "<pad>",
    "<unk>",
    "<end>",
    "[MASK]",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "weekend",
)
COUNTS = {"train": 40, "validation": 4, "test": 40}
STEPS = "step,phase,number,loss,learning_rate,gradient_norm,rows\n1,whole,1,0.9,0.001,1.0,32\n"
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


class Silent:
    def metrics(self, values, *, step=0): ...

    def file(self, path, folder=""):
        assert path.is_file()


def settings(kind, *assignments):
    given = [f"sources.text.kind={kind}", "promotion.model=days", "evaluation.resamples=100", *assignments]
    return params.override(SHIPPED, given)


def drawn(split):
    """Days in their order, from any of them on, and an end."""
    generator = np.random.default_rng(len(split))
    for number in range(COUNTS[split]):
        first, count = int(generator.integers(6)), 4 + number % 4
        yield f"{split}-{number}", [*(4 + (first + n) % 6 for n in range(count)), 2]


def columns(kind, ids):
    """A row as encoding writes it: two words are the prompt."""
    if kind == "completion":
        return {"input_ids": ids[:2], "target_ids": ids[2:]}
    return {"input_ids": ids, **({"prompt_length": 2} if kind == "chat" else {})}


@pytest.fixture
def tokenizer():
    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", mask_token="[MASK]",
        chat_template=TEMPLATE, model_max_length=33,
    )  # fmt: skip


def causal():
    config = GPT2Config(
        vocab_size=10, n_embd=24, n_layer=1, n_head=3, n_positions=80, bos_token_id=2, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def mixture():
    config = MixtralConfig(
        vocab_size=10, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
        intermediate_size=16, max_position_embeddings=33, bos_token_id=2, eos_token_id=2, pad_token_id=0,
        num_local_experts=3, num_experts_per_tok=1,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def masked():
    config = BertConfig(
        vocab_size=10, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=33, pad_token_id=0,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


def learn(model, epochs):
    rows = torch.tensor([[*ids, *[0] * (9 - len(ids))] for _, ids in drawn("train")])
    there = rows > 0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        optimizer.zero_grad()
        wanted = torch.where(there, rows, -100)
        model(input_ids=rows, attention_mask=there.long(), labels=wanted).loss.backward()
        optimizer.step()


@pytest.fixture
def ready(tracked, prepared, tokenizer, monkeypatch):
    """Writes what the stages before evaluation leave, for rows of a kind."""

    def locate(stage, params, root):
        client = MlflowClient(tracking_uri=server.uri(root))
        found = client.get_experiment_by_name("days")
        place = str(tracked / ".regraft" / "mlartifacts")
        experiment = found.experiment_id if found else client.create_experiment("days", place)
        return client.create_run(experiment).info.run_id

    def write(kind, make=causal, *, epochs=60, test_rows=None):
        torch.manual_seed(1)
        with files.replace_directory(Sources.folder(tracked)) as draft:
            Sources.save(draft, text="sha256:1", checkpoint="sha256:2")
        rows = [
            {"id": id, "text": tokenizer.decode(ids), "first": WORDS[ids[0]], "split": split}
            for split in SPLITS
            for id, ids in drawn(split)
        ]
        prepared(tracked, rows, kind=kind, labels=(), keep=("first",))
        encode(tracked, kind, test_rows)
        models_of(tracked, make(), epochs, tokenizer)
        return tracked

    monkeypatch.setattr(runs, "locate", locate)  # the run of a fine-tuning that was none
    return write


def encode(root, kind, test_rows):
    ids, number = pa.list_(pa.int32()), pa.int32()
    types = {"id": pa.string(), "input_ids": ids, "target_ids": ids, "prompt_length": number}
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        for split in SPLITS:
            rows = [{"id": id, **columns(kind, ids)} for id, ids in drawn(split)]
            kept = rows[: test_rows if split == "test" else None]
            schema = pa.schema([(name, types[name]) for name in rows[0]])
            pq.write_table(pa.Table.from_pylist(kept, schema), draft / f"{split}.parquet")
        sizes = dict.fromkeys(("rows", "tokens", "truncated", "lost", "unknown"), COUNTS)
        EncodedDataset.save(draft, kind=kind, labels=(), max_length=16, **sizes)


def models_of(root, model, epochs, tokenizer):
    with files.replace_directory(ConvertedCheckpoint.folder(root)) as draft:
        model.save_pretrained(draft / "model")
        ConvertedCheckpoint.save(
            draft, family="", architecture=type(model).__name__, source="", parameters={}, fresh=(),
            proofs={"structure": "made here"},
            labels=(),
        )  # fmt: skip
    learn(model, epochs)
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
            labels=(),
        )


def told(root, kind, text):
    return next(iter(consume.predict(settings(kind), root, text, None)))


def served(root, texts):
    mlflow.set_tracking_uri(f"sqlite:///{root / '.regraft' / 'mlflow.db'}")
    return list(mlflow.pyfunc.load_model("models:/days@champion").predict(texts))


@pytest.mark.e2e
def test_a_mixture_tells_which_expert_reads_what(ready):
    root = ready("text", mixture)
    asked = settings("text", "sources.text.keep=[first]", "evaluation.slices={day: first}")
    record = evaluation.run(asked, root, Silent())
    tokens = sum(len(ids) for _, ids in drawn("test"))
    lines = pl.read_csv(record.path / "routing.csv")
    for by in (pl.col("by").is_null(), pl.col("by") == "day"):
        read = lines.filter(by).group_by("layer").agg(pl.col("tokens").sum()).sort("layer")
        assert read["tokens"].to_list() == [tokens, tokens]
    firsts = {WORDS[ids[0]] for _, ids in drawn("test")}
    assert set(lines["domain"].drop_nulls()) == firsts
    page = (root / "reports" / "evaluation.html").read_text(encoding="utf-8")
    assert "read by 1 of 3 experts" in page
    assert page.count("<svg") == 4
    told = json.loads((root / "reports" / "metrics.json").read_text())["routing"]
    assert told["least_load"] < told["most_load"]
    assert told["day.bits"] > 0
    assert evaluation.run(asked, root, Silent()).digest == record.digest


@pytest.mark.e2e
@pytest.mark.parametrize(("kind", "foreseen"), [("chat", -2), ("completion", -2), ("text", -1)])
def test_a_language_model_reaches_the_alias(ready, kind, foreseen):
    root = ready(kind)
    record = evaluation.run(settings(kind), root, Silent())
    answers = predictions.read(record.path / "predictions.parquet")
    assert list(answers) == ["unigram", "pretrained", "model"]
    lengths = {id: len(ids) + foreseen for id, ids in drawn("test")}
    assert dict(zip(answers["model"].ids, answers["model"].actual[:, 0].tolist(), strict=True)) == lengths
    figures = {name: {m: v["value"] for m, v in found.items()} for name, found in record.metrics.items()}
    assert figures["model"]["perplexity"] < 2 < figures["unigram"]["perplexity"] < 8
    assert figures["model"]["token_accuracy"] > 0.7 > figures["pretrained"]["token_accuracy"]
    assert record.comparisons["pretrained"]["measure"] == "negative bits per byte"
    page = (root / "reports" / "evaluation.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "Hardest rows" in page
    assert (record.path / "confusion.csv").read_text() == "actual,predicted\n"
    assert evaluation.run(settings(kind), root, Silent()).digest == record.digest

    assert promotion.run(settings(kind), root, Silent()).alias_moved
    assert told(root, kind, "monday tuesday").startswith("wednesday thursday friday")
    if kind == "text":
        (said,) = served(root, ["monday tuesday"])
        assert said.startswith("wednesday thursday friday")


@pytest.mark.e2e
def test_a_model_that_guesses_hidden_tokens_is_judged_by_them(ready):
    root = ready("text", masked, epochs=0)
    record = evaluation.run(settings("text"), root, Silent())
    answers = predictions.read(record.path / "predictions.parquet")["model"]
    assert set(answers.actual[:, 0]) == {1}  # 15 % of 4 to 7 words
    figures = {name: found["loss"] for name, found in record.metrics.items()}
    assert figures["model"] == figures["pretrained"] != figures["unigram"]  # it has not learned
    assert promotion.run(settings("text"), root, Silent()).outcome in ("hold", "reject")
    assert promotion.run(settings("text", "promotion.gate.must_beat=[]"), root, Silent()).alias_moved
    with pytest.raises(InputError, match="a BertForMaskedLM guesses hidden tokens and cannot continue"):
        told(root, "text", "monday tuesday")
    assert set(served(root, ["monday [MASK] wednesday thursday"])) < set(WORDS)


@pytest.mark.e2e
def test_a_champion_foresees_other_test_rows_too(ready):
    root = ready("text", epochs=5)
    evaluation.run(settings("text"), root, Silent())
    promotion.run(settings("text", "promotion.gate.must_beat=[]"), root, Silent())
    ready("text", epochs=60, test_rows=30)
    evaluation.run(settings("text"), root, Silent())
    record = promotion.run(settings("text", "promotion.gate.must_beat=[]"), root, Silent())
    assert record.alias_moved
    assert "> champion -" in record.reasons[0]
    assert "on the same 30 rows" in record.reasons[0]
