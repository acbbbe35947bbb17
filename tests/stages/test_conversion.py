"""The whole stage on a tiny checkpoint: what it writes, twice alike, and that it fails whole."""

import json
import shutil
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaModel,
)

from tasks import files, params
from tasks.artifacts import ConvertedCheckpoint, Vocabulary
from tasks.errors import ArtifactError, CheckpointError, DataError, InputError, PlanError, ProofError
from tasks.stages import conversion, sources
from tasks.stages import vocabulary as vocabulary_stage
from tasks.text.tokens.vocabulary import ALIGNMENT
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


def vocabulary(root, source_ids=range(37), *, pieces=(), origin="kept", special=None, longest=19):
    """Tokens t0, t1, …, each from one row of the checkpoint; pieces: of those, in order, from none."""
    new = iter(pieces)
    rows = [
        {
            "id": id,
            "token": f"t{id}",
            "origin": "added" if source is None else origin,
            "source_id": source,
            "pieces": next(new) if source is None else [],
        }
        for id, source in enumerate(source_ids)
    ]
    with files.replace_directory(Vocabulary.folder(root)) as draft:
        parquet.write_table(pa.Table.from_pylist(rows, ALIGNMENT), draft / "alignment.parquet")
        files.write_text(
            draft / "tokenizer" / "tokenizer_config.json", json.dumps({"model_max_length": longest})
        )
        Vocabulary.save(draft, size=len(rows), kept=0, fresh=0, special=special or {})


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
    assert list(record.proofs) == sorted(["structure", "content", "load", "parity", "similarity"])
    assert record.proofs["similarity"] == "not judged: no tokenizer beside the checkpoint"
    plan = json.loads((record.path / "plan.json").read_text())
    assert plan["proofs"] == dict(record.proofs)
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


WORDS = ["<|", "user", "|>", "film", "good"]  # with five special tokens before them


@pytest.fixture
def spoken(root, tiny_checkpoint, prepared):
    """The same with a tokenizer that knows WORDS, and rows to train another one on."""
    tiny_checkpoint(WORDS)
    path = root / "checkpoint" / "config.json"
    BertModel(BertConfig(
        hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=2,
        vocab_size=10, max_position_embeddings=19,
    )).save_pretrained(path.parent)  # fmt: skip
    texts = ["film film good", "goods goods good film", "user films films"] * 4
    rows = [{"id": str(n), "text": text, "label": "a", "split": "train"} for n, text in enumerate(texts)]
    prepared(root, rows)
    files.write_text(root / "data" / "preparation" / "labels.json", json.dumps(LABELS))
    see(root)
    return root


def spoken_with(settings, root):
    text = PARAMS.replace("vocabulary: {}", f"vocabulary: {{{settings}}}")
    vocabulary_stage.run(params.parse(text), root, Listener())
    record, _ = run(root, text)
    rows = parquet.read_table(Vocabulary.folder(root) / "alignment.parquet").to_pylist()
    old = load_file(root / "checkpoint" / "model.safetensors")["embeddings.word_embeddings.weight"]
    new = load_file(record.path / "model" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    return record, rows, old, new


ADDED = "add_tokens: ['<|user|>', '<|assistant|>', x]"


def test_added_tokens_get_the_mean_of_their_pieces_and_old_rows_stay_to_the_byte(spoken):
    record, rows, old, new = spoken_with(ADDED, spoken)
    assert [(row["token"], row["pieces"]) for row in rows[10:]] == [
        ("<|user|>", [5, 6, 7]),
        ("<|assistant|>", [5, 7]),
        ("x", []),
    ]
    assert new[:10].numpy().tobytes() == old.numpy().tobytes()
    for row, pieces in ((10, [5, 6, 7]), (11, [5, 7]), (12, list(range(10)))):
        expected = old[pieces].double().mean(dim=0).float()
        assert torch.equal(new[row], expected)
    config = json.loads((record.path / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["pad_token_id"]) == (13, 0)
    assert record.parameters["padded"] == 13 * 24
    assert "that both vocabularies have (10 of 13)" in record.proofs["parity"]
    plan = json.loads((record.path / "plan.json").read_text())
    assert plan["vocabulary"] == {
        "before": 10, "after": 13, "kept": 10, "moved": 0, "from pieces": 2, "from all": 1,
    }  # fmt: skip
    (table,) = [row for row in plan["rows"] if row["action"] == "padded"]
    assert table["reason"].startswith("2 rows made as the mean of their tokens' pieces, 1 row made")


def test_the_same_vocabulary_gives_the_same_digest(spoken):
    first, *_ = spoken_with(ADDED, spoken)
    second, *_ = spoken_with(ADDED, spoken)
    assert second.digest == first.digest


def test_rows_move_with_their_tokens_to_a_new_tokenizers_ids(spoken):
    record, rows, old, new = spoken_with("tokenizer: wordpiece, size: 40", spoken)
    found = {row["token"]: row for row in rows}
    assert found["film"]["id"] != found["film"]["source_id"] == 8
    assert torch.equal(new[found["film"]["id"]], old[8])
    assert torch.equal(new[found["[SEP]"]["id"]], old[3])
    assert len(new) == len(rows)
    plan = json.loads((record.path / "plan.json").read_text())
    assert plan["vocabulary"]["moved"] > 0
    page = (spoken / "reports" / "conversion.html").read_text()
    assert '<rect class="new"' in page
    assert '<rect class="moved"' in page


def test_the_page_draws_both_tables_with_their_sizes_and_new_tokens_as_text(spoken):
    spoken_with("add_tokens: ['<|user|>', '<b>bold</b>']", spoken)
    page = (spoken / "reports" / "conversion.html").read_text()
    assert "before: 10 × 24" in page
    assert "after: 12 × 24" in page
    assert '<rect class="new"' in page
    assert "<code>&lt;|user|&gt;</code>" in page
    assert "<code>user</code>" in page
    assert "<b>" not in page


def test_a_vocabulary_that_stays_leaves_config_plan_and_page_as_they_were(root):
    see(root)
    vocabulary(root, special={"pad": 0, "sep": 3})
    record, _ = run(root)
    plan = json.loads((record.path / "plan.json").read_text())
    assert "vocabulary" not in plan
    assert "padded" not in plan["parameters"]
    assert "Embedding table" not in (root / "reports" / "conversion.html").read_text()


def test_a_vocabulary_of_another_checkpoint_is_refused_with_all_that_is_wrong(root):
    see(root)
    vocabulary(root, range(38), special={"pad": 40}, longest=512)
    with pytest.raises(CheckpointError, match="3 faults") as caught:
        run(root)
    assert "takes row 37 of the embedding table, which has 37 rows" in str(caught.value)
    assert "pad_token_id is 40, the embedding table has 38 rows" in str(caught.value)
    assert "texts have 512 tokens, the model has 19 positions" in str(caught.value)
    assert not ConvertedCheckpoint.folder(root).exists()


def test_a_padding_token_that_moves_is_refused_where_positions_count_from_it(root):
    shutil.rmtree(root / "checkpoint")
    config = RobertaConfig(
        hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=2,
        vocab_size=37, max_position_embeddings=21,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(root / "checkpoint")
    see(root)
    vocabulary(root, [1, 0, *range(2, 37)], origin="matched", special={"pad": 0})
    with pytest.raises(CheckpointError, match="padding token has id 0, in the checkpoint 1"):
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


def test_nothing_of_a_config_reaches_out(root):
    path = root / "checkpoint" / "config.json"
    fields = {
        "auto_map": {"AutoModel": "other/repo--x.X"},
        "attn_implementation": "other/kernel",
        "quantization_config": {"quant_method": "none such"},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    see(root)
    run(root)
    kept = json.loads((ConvertedCheckpoint.folder(root) / "model" / "config.json").read_text())
    assert not fields.keys() & kept.keys()


def test_a_zipped_checkpoint_of_pytorch_becomes_the_same_model(root):
    see(root)
    run(root)
    model = ConvertedCheckpoint.folder(root) / "model" / "model.safetensors"
    before = load_file(model)
    path = root / "checkpoint" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    see(root)
    run(root)
    after = load_file(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_pickle_is_refused(root):
    path = root / "checkpoint" / "model.safetensors"
    path.with_name("pytorch_model.bin").write_bytes(b"\x80\x04}\x94\x8c\x01a\x94K\x01s.")
    path.unlink()
    see(root)
    with pytest.raises(CheckpointError, match="is a pickle"):
        run(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 0}', "must be a JSON list"),
        ("[]", "at least two labels"),
        ('["a"]', "at least two labels"),
        ('["a", "a"]', "each once"),
    ],
)
def test_labels_must_be_a_list_of_different_names(tmp_path: Path, text, message):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DataError, match=message):
        conversion.read_labels(tmp_path / "labels.json")


def of_kind(kind, text=PARAMS):
    return text.replace("path: table.csv", f"path: table.csv, kind: {kind}")


@pytest.mark.parametrize(
    ("kind", "architecture", "fresh"),
    [
        ("labels", "BertForSequenceClassification", 3 * 24 + 3),
        ("score", "BertForSequenceClassification", 24 + 1),
        ("tags", "BertForTokenClassification", 3 * 24 + 3),
        ("answer", "BertForQuestionAnswering", 2 * 24 + 2),
        ("text", "BertForMaskedLM", 24 * 24 + 3 * 24 + 37),
    ],
)
def test_the_kind_of_row_chooses_the_head(root, kind, architecture, fresh):
    see(root)
    if kind in ("score", "answer", "text"):
        (root / "data" / "preparation" / "labels.json").write_text("[]")  # such rows have no classes
    record, _ = run(root, of_kind(kind))
    assert record.architecture == architecture
    assert record.parameters["initialised"] == fresh
    assert record.labels == (tuple(LABELS) if kind in ("labels", "tags") else ())
    assert record.proofs["parity"].startswith("max |difference| 0 ")
    page = (root / "reports" / "conversion.html").read_text()
    assert ("<dt>Labels</dt>" in page) == bool(record.labels)
    assert "<dt>Padding</dt>" not in page


def test_tags_without_names_are_refused(root):
    see(root)
    (root / "data" / "preparation" / "labels.json").write_text("[]")
    with pytest.raises(DataError, match=r"labels\.json must name at least two labels"):
        run(root, of_kind("tags"))


def test_a_kind_that_an_encoder_cannot_serve_is_refused_with_what_can(root):
    see(root)
    with pytest.raises(CheckpointError, match=r"kind 'chat' .* type 'bert' .* of type gpt2 or llama"):
        run(root, of_kind("chat"))
    assert not ConvertedCheckpoint.folder(root).exists()


@pytest.fixture
def writer(root):
    """The same project with a tiny GPT-2, whose tokenizer has no padding."""
    shutil.rmtree(root / "checkpoint")
    torch.manual_seed(3)
    config = GPT2Config(
        n_embd=24, n_inner=40, n_head=3, n_layer=2, n_positions=19, vocab_size=37, bos_token_id=7,
        eos_token_id=7,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(root / "checkpoint")
    vocabulary(root, special={"eos": 7})
    see(root)
    return root


def test_a_classifier_that_reads_the_last_token_says_what_padding_is(writer):
    record, _ = run(writer)
    assert (record.architecture, record.fresh) == ("GPT2ForSequenceClassification", ("score.weight",))
    config = json.loads((record.path / "model" / "config.json").read_text())
    assert config["pad_token_id"] == 7
    told = "token 7: the head reads the last token of a text that is not this one"
    assert json.loads((record.path / "plan.json").read_text())["padding"] == told
    assert told in (writer / "reports" / "conversion.html").read_text()
    assert record.proofs["similarity"] == "not judged: the model is no encoder"


def test_added_tokens_grow_the_table_that_is_the_output_too(writer):
    vocabulary(writer, [*range(37), None], pieces=[[4, 5]], special={"eos": 7})
    record, _ = run(writer, of_kind("chat"))
    assert (record.architecture, record.fresh) == ("GPT2LMHeadModel", ())
    assert "that both vocabularies have (37 of 38)" in record.proofs["parity"]
    assert record.proofs["parity"].endswith("logits")
    model = GPT2LMHeadModel.from_pretrained(record.path / "model")
    assert model.lm_head.weight is model.transformer.wte.weight
    old = load_file(writer / "checkpoint" / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(model.lm_head.weight[:37], old)
    assert torch.equal(model.lm_head.weight[37], old[[4, 5]].double().mean(dim=0).float())


def test_the_loss_of_a_model_that_writes_is_judged_with_the_projects_tokenizer(writer):
    with pytest.raises(ProofError, match="no tokenizer beside the checkpoint"):
        run(writer, of_kind("text", with_levels("loss")))
    words = Tokenizer(
        models.BPE(vocab={"\u0120": 0}, merges=[])
    )  # knows a space, as byte-level models write it
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = Vocabulary.folder(writer) / "tokenizer"
    words.save(str(folder / "tokenizer.json"))
    with pytest.raises(ProofError, match="the tokenizer does not know English"):
        run(writer, of_kind("text", with_levels("loss")))
    assert not ConvertedCheckpoint.folder(writer).exists()


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


def with_levels(levels):
    return PARAMS.replace("conversion: {}", f"conversion: {{verify: [{levels}]}}")


def test_the_levels_are_those_of_the_params_and_structure_always(root):
    see(root)
    record, _ = run(root, with_levels("content, inverse, digests"))
    assert set(record.proofs) == {"structure", "content", "inverse", "digests"}
    plan = json.loads((record.path / "plan.json").read_text())
    assert plan["digests"].keys() == load_file(record.path / "model" / "model.safetensors").keys()
    page = unescape((root / "reports" / "conversion.html").read_text())
    assert all(sentence in page for sentence in record.proofs.values())
    assert set(run(root, with_levels(""))[0].proofs) == {"structure"}


def test_the_page_does_not_tick_what_was_not_judged(root):
    see(root)
    run(root)
    page = (root / "reports" / "conversion.html").read_text()
    assert '<span aria-label="not judged">–</span> similarity' in page
    assert page.count('aria-label="passed"') == 4


def test_a_level_for_language_models_is_refused_before_anything_is_written(root):
    see(root)
    with pytest.raises(
        InputError, match=r"BertForSequenceClassification .* loss is for causal language models"
    ):
        run(root, with_levels("loss"))
    assert not ConvertedCheckpoint.folder(root).exists()


def test_sentences_are_not_judged_by_a_source_that_knows_no_english(spoken):
    record, *_ = spoken_with("tokenizer: checkpoint", spoken)
    assert record.proofs["similarity"].startswith("not judged: the source does not tell English sentences")
    record, *_ = spoken_with(ADDED, spoken)
    assert record.proofs["similarity"] == "not judged: the vocabulary is not the source's"


def test_an_unexplained_tensor_stops_the_stage(root):
    path = root / "checkpoint" / "model.safetensors"
    save_file({**load_file(path), "surprise": torch.zeros(2)}, path)
    see(root)
    with pytest.raises(PlanError, match="1 of its 40 tensors match no rule: surprise"):
        run(root)
    assert not ConvertedCheckpoint.folder(root).exists()
