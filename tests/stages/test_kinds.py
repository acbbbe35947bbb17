"""Every kind of row that something is learned from, through the whole stage, on tiny models of its class."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from safetensors.torch import load_file

from flows.commands import conversion
from tasks import files
from tasks import params as parameters
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, TrainedModel, Vocabulary
from tasks.errors import DataError, TrainingError
from tasks.model import floors
from tasks.stages import finetuning
from tasks.training import objectives

SHIPPED = parameters.load(Path(__file__).parents[2] / "params.yaml")
SPECIAL = {"pad": 0, "cls": 2, "sep": 3, "mask": 4}
CASES = [
    ("answer", "DistilBertForQuestionAnswering"),
    ("chat", "LlamaForCausalLM"),
    ("completion", "GPT2LMHeadModel"),
    ("label", "GPT2ForSequenceClassification"),
    ("label", "LlamaForSequenceClassification"),
    ("label", "MixtralForSequenceClassification"),
    ("labels", "BertForSequenceClassification"),
    ("score", "RobertaForSequenceClassification"),
    ("tags", "BertForTokenClassification"),
    ("text", "BertForMaskedLM"),
    ("text", "LlamaForCausalLM"),
    ("text", "MixtralForCausalLM"),
    ("translation", "T5ForConditionalGeneration"),
    ("label", "BertForMeanClassification"),
    ("labels", "DistilBertForMeanClassification"),
    ("score", "RobertaForMeanClassification"),
]
SCHEDULE = (
    "[{name: upper, depth: 2, epochs: 2, learning_rate: 1.0e-2}, "
    "{name: whole, depth: all, epochs: 3, learning_rate: 1.0e-2}]"
)


class Ledger:
    def metrics(self, values, *, step=0): ...

    def file(self, path, folder=""): ...


def _columns(kind, rows):
    """Answers that follow from the tokens, so that something can be learned."""
    hot = [[int(any(token % 3 == number for token in row)) for number in range(3)] for row in rows]
    return {
        "label": lambda: {"label": pa.array([int(row[1]) % 3 for row in rows], pa.int64())},
        "labels": lambda: {"labels": pa.array(hot, pa.list_(pa.int8()))},
        "score": lambda: {"label": pa.array([row[1] / 30 for row in rows], pa.float32())},
        "tags": lambda: {
            "places": pa.array([[1, 2] for _ in rows], pa.list_(pa.int32())),
            "tags": pa.array([[int(row[1]) % 3, int(row[2]) % 3] for row in rows], pa.list_(pa.int64())),
        },
        "answer": lambda: {
            "start": pa.array([1 + int(row[1:-1].argmax()) for row in rows], pa.int32()),
            "end": pa.array([len(row) - 2 for row in rows], pa.int32()),
        },
        "text": dict,
        "chat": lambda: {"prompt_length": pa.array([2 for _ in rows], pa.int32())},
        "completion": lambda: {"target_ids": _lists([[row[1], row[1], 3] for row in rows])},
        "translation": lambda: {"target_ids": _lists([[row[1], row[2], 3] for row in rows])},
    }[kind]()


def _lists(rows):
    return pa.array(rows, pa.list_(pa.int32()))


@pytest.fixture
def root(tmp_path, tiny, tiny_tokenizer):
    def make(kind, name, **more):
        labels = ["a", "b", "c"] if kind in ("label", "labels", "tags") else []
        chance = np.random.default_rng(0)
        tokenizer = tmp_path / "tokenizer"
        tiny_tokenizer(tokenizer)
        with files.replace_directory(Vocabulary.folder(tmp_path)) as draft:
            shutil.move(tokenizer, draft / "tokenizer")
            Vocabulary.save(draft, size=61, kept=61, fresh=0, special=SPECIAL)
        with files.replace_directory(ConvertedCheckpoint.folder(tmp_path)) as draft:
            tiny(name, num_labels=1 if kind == "score" else 3, **more).save_pretrained(draft / "model")
            ConvertedCheckpoint.save(
                draft, family="", architecture=name, labels=labels, source="", parameters={}, fresh=[],
                proofs={},
            )  # fmt: skip
        with files.replace_directory(EncodedDataset.folder(tmp_path)) as draft:
            for split, count in (("train", 48), ("validation", 16), ("test", 16)):
                sizes = chance.integers(3, 8, size=count)
                rows = [np.array([2, *chance.integers(5, 30, size=size), 3]) for size in sizes]
                table = {"id": [f"{split}-{n}" for n in range(count)], "input_ids": _lists(rows)}
                parquet.write_table(pa.table(table | _columns(kind, rows)), draft / f"{split}.parquet")
            empty = {name: {} for name in ("rows", "tokens", "truncated", "lost", "unknown")}
            EncodedDataset.save(draft, kind=kind, labels=labels, max_length=16, **empty)
        return tmp_path

    return make


def _params(**changes):
    every = {"phases": SCHEDULE, "batch_size": 8, **changes}
    return parameters.override(SHIPPED, [f"finetuning.{name}={value}" for name, value in every.items()])


def _run(root, **changes):
    return finetuning.run(_params(**changes), root, Ledger())


def test_every_kind_with_an_objective_is_tested():
    assert {kind for kind, _ in CASES} | {"pair", "prefix-remainder"} == objectives.OBJECTIVES.keys()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_each_kind_is_learned_and_leaves_a_model_of_the_same_class(root, kind, name):
    base = root(kind, name)
    record = _run(base)
    before = floors.load(ConvertedCheckpoint.folder(base) / "model")
    model = floors.load(record.path / "model")
    assert type(model).__name__ == name
    assert (record.path / "model" / "config.json").read_bytes() == (
        ConvertedCheckpoint.folder(base) / "model" / "config.json"
    ).read_bytes()
    moved = {n for n, value in model.named_parameters() if not value.equal(before.get_parameter(n))}
    assert moved >= {
        n for n, _ in model.named_parameters() if "weight" in n and "position" not in n and "wpe" not in n
    }
    with (record.path / "steps.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert len(losses) == 5 * 6
    assert sum(losses[-6:]) < sum(losses[:6])


@pytest.mark.parametrize(("kind", "name"), [CASES[1], CASES[8], CASES[9]])
def test_the_same_seed_gives_the_same_digest(root, kind, name):
    base = root(kind, name)
    digests = []
    for _ in range(2):
        digests.append(_run(base).weights)
        shutil.rmtree(base / ".regraft")
    assert digests[0] == digests[1]
    assert _run(base, seed=2).weights != digests[0]


@pytest.mark.parametrize(
    ("kind", "name"), [case for case in CASES if case[0] in ("tags", "chat", "answer") or "Mean" in case[1]]
)
def test_states_that_are_kept_give_the_weights_of_computed_ones(root, kind, name):
    base = root(kind, name)
    schedule = "[{name: upper, depth: 1, epochs: 3, learning_rate: 1.0e-2}]"
    weights = []
    for dtype in ("none", "float32"):
        record = _run(base, phases=schedule, **{"cache.dtype": dtype})
        weights.append(load_file(record.path / "model" / "model.safetensors"))
        assert (base / ".regraft" / "states").exists() == (dtype == "float32")
    for tensor, value in weights[0].items():
        np.testing.assert_allclose(weights[1][tensor], value, rtol=0, atol=2e-3)


def test_tied_tensors_are_written_once(root):
    base = root("chat", "LlamaForCausalLM", tie_word_embeddings=True)
    record = _run(base)
    tensors = load_file(record.path / "model" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert "model.embed_tokens.weight" in tensors
    assert TrainedModel.load(base).weights == record.weights


def test_an_adapter_learns_in_a_language_model(root):
    base = root("completion", "LlamaForCausalLM")
    record = _run(
        base, adapter="{kind: lora, rank: 2}", phases="[{name: lora, depth: all, learning_rate: 1.0e-2}]"
    )
    before = load_file(ConvertedCheckpoint.folder(base) / "model" / "model.safetensors")
    after = load_file(record.path / "model" / "model.safetensors")
    moved = {name for name, value in after.items() if not value.equal(before[name])}
    assert moved == {name for name in before if "self_attn" in name} | {"lm_head.weight"}


def test_two_that_learned_in_feed_forward_networks_alone_make_one_mixture(root, tmp_path):
    base = root("text", "LlamaForCausalLM", tie_word_embeddings=True)
    phases = "[{name: inner, depth: all, only: feed-forward, epochs: 2, learning_rate: 1.0e-2}]"
    experts = []
    for seed in (1, 2):
        record = _run(base, phases=phases, seed=seed)
        experts.append(str(shutil.copytree(record.path / "model", tmp_path / f"expert {seed}")))
    source = str(ConvertedCheckpoint.folder(base) / "model")
    wish = conversion.Wish(merged=experts, top=1)
    made = conversion.planned(source, "llama", wish, reverse=False, key=None, root=tmp_path)
    found = conversion.convert(made, tmp_path / "mixed", load=True)
    assert found["experts"].startswith("each of 2 alone computes what its model does")
    assert found["tokenizer"].startswith("copied: ")


ROUTERS = "[{name: routers, depth: all, only: router, epochs: 2, learning_rate: 1.0e-2}]"


def test_routers_learn_alone_and_evenly_as_they_are_told(root):
    base, weights = root("text", "MixtralForCausalLM"), []
    before = load_file(ConvertedCheckpoint.folder(base) / "model" / "model.safetensors")
    for more in ({}, {"router_aux_loss_coef": 0.05}, {"router_aux_loss_coef": 0}):
        record = _run(base, phases=ROUTERS, **more)
        weights.append(load_file(record.path / "model" / "model.safetensors"))
        moved = {name for name, value in weights[-1].items() if not value.equal(before[name])}
        assert moved == {name for name in before if name.endswith("block_sparse_moe.gate.weight")}
    told, config, none = (one["model.layers.0.block_sparse_moe.gate.weight"] for one in weights)
    assert told.equal(config)  # 0.05 is what the tiny model's config says
    assert not told.equal(none)
    page = (base / "reports" / "finetuning.html").read_text(encoding="utf-8")
    assert "the routers of layers 0 to 3" in page


def test_routers_that_choose_one_expert_have_nothing_to_learn(root):
    with pytest.raises(TrainingError, match="phase routers: one expert reads a token, at weight 1 whatever"):
        _run(root("text", "MixtralForCausalLM", num_experts_per_tok=1), phases=ROUTERS)


def test_over_kept_states_routers_learn_what_they_do_over_computed_ones(root):
    base, weights = root("text", "MixtralForCausalLM"), []
    for dtype in ("none", "float32"):
        record = _run(base, phases=ROUTERS.replace("depth: all", "depth: 2"), **{"cache.dtype": dtype})
        weights.append(load_file(record.path / "model" / "model.safetensors"))
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=0, atol=1e-4)


def test_layers_that_are_computed_twice_are_balanced_as_those_computed_once(root):
    base, weights = root("text", "MixtralForCausalLM"), []
    for twice in (False, True):
        record = _run(base, gradient_checkpointing=twice, router_aux_loss_coef=0.5)
        weights.append(load_file(record.path / "model" / "model.safetensors"))
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=0, atol=2e-3)


INNER = ROUTERS.replace("only: router", "only: feed-forward")


@pytest.mark.parametrize(("name", "phases"), [("LlamaForCausalLM", SCHEDULE), ("MixtralForCausalLM", INNER)])
def test_where_no_router_learns_there_is_none_to_balance(root, name, phases):
    with pytest.raises(TrainingError, match=f"coef: no phase lets a router of {name} learn: set it to null"):
        _run(root("text", name), phases=phases, router_aux_loss_coef=0.01)


def test_class_weights_of_rows_without_classes_are_refused(root):
    with pytest.raises(DataError, match=r"finetuning\.class_weights: rows of this kind have no classes"):
        _run(root("score", "BertForSequenceClassification"), class_weights="balanced")


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[0] in ("text", "translation")])
def test_a_language_models_loss_on_a_general_text_is_told_before_and_after(root, kind, name):
    record = _run(root(kind, name))
    found = json.loads((record.path / "drift.json").read_text(encoding="utf-8"))
    assert found["loss"]["before"] == pytest.approx(np.log(61), abs=0.5)  # a random model guesses
    assert found["loss"]["before"] != found["loss"]["after"]
    assert len([floor for floor in found["floors"] if floor.startswith("layer")]) == 4


@pytest.mark.parametrize(
    ("kind", "name"), [case for case in CASES if case[0] in ("completion", "tags", "text", "translation")]
)
def test_a_few_steps_tell_how_long_all_take_and_leave_nothing(root, kind, name):
    base = root(kind, name)
    before = sorted(base.rglob("*"))
    found = finetuning.probe(_params(), base)
    assert [one.steps > 0 and one.validation > 0 and np.isfinite(one.all) for one in found] == [True, True]
    keeps = kind in ("completion", "tags") or name in ("LlamaForCausalLM", "MixtralForCausalLM")
    assert [one.frozen > 0 for one in found] == [keeps, False]
    assert sorted(base.rglob("*")) == before


def test_what_the_head_reads_of_tokens_can_be_kept_where_nothing_else_is(root):
    schedule = "[{name: head, depth: 0, epochs: 2, learning_rate: 1.0e-2}]"
    base = root("tags", "BertForTokenClassification")
    for maximum, kept in ((1, False), (10**9, True)):
        more = {"cache.dtype": "none", "cache.maximum_bytes": maximum}
        assert _run(base, phases=schedule, **more).phases[0]["steps"] == 12
        assert any((base / ".regraft").glob("states/*/states.npy")) == kept


@pytest.mark.parametrize("setting", ["label_smoothing", "focal_gamma"])
def test_what_would_do_nothing_to_the_loss_is_refused(root, setting):
    with pytest.raises(DataError, match=r"finetuning\.label_smoothing and focal_gamma change a choice"):
        _run(root("labels", "BertForSequenceClassification"), **{setting: 0.3})
