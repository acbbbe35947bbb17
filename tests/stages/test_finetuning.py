"""The stage on a tiny real BERT and hand-made rows: what it leaves behind, and what it refuses."""

import csv
import errno
import json
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
from transformers.models.bert.modeling_bert import BertSelfOutput

from tasks import files
from tasks import params as parameters
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, TrainedModel, Vocabulary
from tasks.errors import DataError, ParamsError, TrainingError
from tasks.evaluation.asking import predict
from tasks.model import adapters, batches, floors, packed
from tasks.stages import finetuning
from tasks.training.pictures import INK

SHIPPED = parameters.load(Path(__file__).parents[2] / "params.yaml")
HEAD = "{name: head, depth: 0, epochs: 2, learning_rate: 1.0e-2}"
WEIGHTS = "model/model.safetensors"
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
def root(trainable):
    return trainable


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


def test_the_page_tells_what_learned_and_what_was_computed_once(root):
    path = root / "reports" / "finetuning.html"
    finetuning.run(_params(HEAD, WHOLE), root, Ledger())
    page = path.read_text(encoding="utf-8")
    assert "2 phases, 15 optimizer steps on 40 rows" in page
    assert "what the head reads: computed once, used in 2 epochs" in page
    assert '<td class="words">everything</td><td class="words">nothing</td>' in page
    assert "the lowest third of the layers (layer 0) has moved" in page
    drawn = (TrainedModel.load(root).path / "changes.svg").read_text(encoding="utf-8")
    assert drawn.replace(INK, "currentColor") in page
    shutil.rmtree(root / ".regraft")
    finetuning.run(_params(HEAD, WHOLE), root, Ledger())
    assert path.read_text(encoding="utf-8") == page


def test_how_fast_it_went_is_told_beside_what_is_digested(root):
    ledger = Ledger()
    finetuning.run(_params(HEAD, WHOLE), root, ledger)
    found = json.loads((root / "reports" / "finetuning-timings.json").read_text(encoding="utf-8"))
    assert [*found] == ["head", "whole"]
    for phase, steps in (("head", 10), ("whole", 5)):
        assert found[phase]["steps"] == steps
        assert found[phase]["tokens_per_second"] > 0
        assert ledger.figures[f"phase.{phase}.tokens_per_second", 0] == found[phase]["tokens_per_second"]


@pytest.mark.parametrize("padded", [False, True])
def test_padding_is_told_where_it_is_computed(root, padded):
    """Checkpointed layers are transformers' own, which take padded rows; others lie end to end on a CPU."""
    record = finetuning.run(_params(HEAD, WHOLE, gradient_checkpointing=padded, device="cpu"), root, Ledger())
    with (record.path / "steps.csv").open() as stream:
        steps = list(csv.DictReader(stream))
    lengths = parquet.read_table(EncodedDataset.load(root).path / "train.parquet")["input_ids"].to_pylist()
    assert sum(int(row["tokens"]) for row in steps[10:]) == sum(map(len, lengths))
    assert all(row["tokens"] == row["positions"] for row in steps[:10])  # the head alone, over kept states
    computed = sum(int(row["positions"]) for row in steps[10:])
    assert (computed > sum(map(len, lengths))) is padded
    found = json.loads((root / "reports" / "finetuning-timings.json").read_text(encoding="utf-8"))
    assert found["head"]["padding"] == 0
    assert found["whole"]["padding"] == pytest.approx(1 - sum(map(len, lengths)) / computed)


def test_what_it_makes_of_a_general_text_is_compared_with_before(root):
    ledger = Ledger()
    record = finetuning.run(_params(HEAD, UPPER), root, ledger)
    found = json.loads((record.path / "drift.json").read_text(encoding="utf-8"))
    assert [*found["floors"]] == ["embeddings", *(f"layer {number}" for number in range(4))]
    assert found["loss"] == {}
    for floor in ("embeddings", "layer 0", "layer 1"):  # did not learn
        assert found["floors"][floor] == {"cka": pytest.approx(1), "cosine": pytest.approx(1)}
    assert found["floors"]["layer 3"]["cosine"] < 0.9999
    assert ledger.figures["drift.cka.layer 3", 0] == found["floors"]["layer 3"]["cka"]
    page = (root / "reports" / "finetuning.html").read_text(encoding="utf-8")
    assert "What changed in what the model knew" in page
    assert f"a linear CKA of {found['floors']['layer 3']['cka']:.3f}" in page


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
        converted, {"input_ids": rows["input_ids"].to_pylist()}, ids=rows["id"].to_pylist(),
        batches=lambda rows: batches.sorted_batches(rows, batch_size=64, pad=0),
    )  # fmt: skip
    np.testing.assert_allclose(np.load(record.path / "frozen.npy"), expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize(
    "changes",
    [{"class_weights": "balanced"}, {"label_smoothing": 0.2}, {"focal_gamma": 2.0}, {"optimizer": "sgd"}],
)
def test_what_is_asked_of_the_loss_reaches_it(root, changes):
    plain, other = (finetuning.run(_params(HEAD, **one), root, Ledger()).weights for one in ({}, changes))
    assert plain != other


def test_layers_that_are_computed_twice_learn_the_same(root):
    passes = []
    weights = []
    forward = BertSelfOutput.forward

    def counted(self, *given):
        passes.append(self.training)
        return forward(self, *given)

    for twice in ("false", "true"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed, "known", lambda model: False)  # which draws dropout otherwise
            patch.setattr(BertSelfOutput, "forward", counted)
            weights.append(
                finetuning.run(_params(WHOLE, gradient_checkpointing=twice), root, Ledger()).weights
            )
    assert weights[0] == weights[1], "with the same dropout"
    layers, steps = 4, 5
    shortened = steps  # the last layer, for the first token alone
    assert sum(passes) == layers * steps + layers * steps + (layers * steps - shortened)


def test_products_of_half_the_width_train_weights_of_the_whole(root):
    seen = set()

    def note(module, given, output):
        if module.training and isinstance(module, torch.nn.Linear):
            seen.add((module.weight.dtype, output.dtype))

    plain, lowered = (
        load_file(finetuning.run(_params(WHOLE, precision=one), root, Ledger()).path / WEIGHTS)
        for one in ("float32", "bfloat16")
    )
    with torch.nn.modules.module.register_module_forward_hook(note):
        finetuning.run(_params(WHOLE, precision="bfloat16", seed=2), root, Ledger())
    assert seen == {(torch.float32, torch.bfloat16)}
    assert {value.dtype for value in lowered.values()} == {torch.float32}
    moved = max(float((plain[name] - lowered[name]).abs().max()) for name in plain)
    assert 0 < moved < 2e-2


def test_a_head_that_got_lost_is_not_made_up_from_a_later_one(root):
    finetuning.run(_params(HEAD, WHOLE), root, Ledger())
    [kept] = (root / ".regraft" / "resume").glob("*/kept")
    shutil.rmtree(kept)
    with pytest.raises(TrainingError, match=r"head\.safetensors is gone: remove .* and train again"):
        finetuning.run(_params(HEAD, WHOLE), root, Ledger())


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


LORA = "{kind: lora, rank: 4, dropout: 0.1}"
TOP = "{name: top, depth: 2, epochs: 2, learning_rate: 1.0e-2}"


@pytest.mark.parametrize(
    ("adapter", "in_a_layer", "changed"),
    [
        (LORA, 4 * 4 * 48, "attention"),
        ("{kind: dora, rank: 4}", 4 * (4 * 48 + 24), "attention"),
        ("{kind: rslora, rank: 4, targets: all-linear}", 4 * 4 * 48 + 2 * 4 * 64, ""),
        ("{kind: ia3}", 24 + 24 + 40, ""),
    ],
)
def test_an_adapter_learns_for_its_layers_and_leaves_a_stock_model(root, adapter, in_a_layer, changed):
    record = finetuning.run(_params(HEAD, TOP, adapter=adapter), root, Ledger())
    assert floors.load(record.path / "model").bert.encoder.layer[3].attention.self.query.weight.shape == (
        24,
        24,
    )
    before, after = _weights(root)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    head = {name for name in before if "encoder" not in name and "embeddings" not in name}
    assert head < moved
    assert {name.split(".")[3] for name in moved - head} == {"2", "3"}
    assert all(changed in name for name in moved - head)
    whole = (24 * 24 + 24) + (3 * 24 + 3)
    assert [phase["parameters"] for phase in record.phases] == [whole, whole + 2 * in_a_layer]
    assert record.phases[1]["floors"] == ("layer 2", "layer 3", "head")


def test_the_adapter_beside_the_model_gives_the_models_answers_on_its_base(root):
    record = finetuning.run(_params(HEAD, TOP, adapter=LORA), root, Ledger())
    converted = ConvertedCheckpoint.load(root).path / "model"
    base = floors.load(converted)
    with pytest.raises(TrainingError, match=f"trained on weights sha256:.*, not on {record.weights}"):
        adapters.load(base, record.path / "adapter", base=record.weights)
    adapters.load(base, record.path / "adapter", base=files.digest_file(converted / "model.safetensors"))
    ids = torch.randint(5, 61, (4, 9))
    with torch.no_grad():
        answers = [model(input_ids=ids).logits for model in (base, floors.load(record.path / "model"))]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)


def test_with_an_adapter_all_layers_are_adapted_and_the_embeddings_stay(root):
    record = finetuning.run(_params(HEAD, WHOLE, adapter=LORA), root, Ledger())
    before, after = _weights(root)
    assert torch.equal(before[TABLE], after[TABLE])
    assert record.phases[1]["floors"] == ("layer 0", "layer 1", "layer 2", "layer 3", "head")
    assert (record.path / "head.safetensors").exists()


def test_an_interrupted_training_of_an_adapter_ends_with_the_same_files(root):
    class Gone(Ledger):
        def __init__(self, last):
            self.last = last

        def metrics(self, values, *, step=0):
            if step > self.last:
                raise KeyboardInterrupt

    params = _params(HEAD, TOP, adapter=LORA, save_every=3)
    whole = finetuning.run(params, root, Ledger()).digest
    for last in (4, 17):  # the head alone, the adapter
        shutil.rmtree(root / ".regraft" / "resume")
        with pytest.raises(KeyboardInterrupt):
            finetuning.run(params, root, Gone(last))
        taken = []
        hook = register_optimizer_step_post_hook(lambda *_, taken=taken: taken.append(1))
        assert finetuning.run(params, root, Ledger()).digest == whole
        hook.remove()
        assert 0 < len(taken) < 20


def test_an_adapter_over_kept_states_learns_what_it_does_over_computed_ones(root):
    losses = []
    for dtype in ("float32", "none"):
        record = finetuning.run(
            _params(HEAD, TOP, adapter="{kind: lora, rank: 4}", **{"cache.dtype": dtype}), root, Ledger()
        )
        with (record.path / "steps.csv").open() as stream:
            losses.append([float(row["loss"]) for row in csv.DictReader(stream)])
    assert len(list((root / ".regraft" / "states").iterdir())) > 0
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_new_rows_that_learn_beside_an_adapter_are_kept_with_it(root):
    _with_new_tokens(root)
    record = finetuning.run(_params(HEAD, TOP, adapter=LORA), root, Ledger())
    converted = ConvertedCheckpoint.load(root).path / "model"
    base = floors.load(converted)
    adapters.load(base, record.path / "adapter", base=files.digest_file(converted / "model.safetensors"))
    assert torch.equal(base.get_parameter(TABLE), _weights(root)[1][TABLE])


@pytest.mark.parametrize(
    ("phases", "adapter", "message"),
    [
        ((HEAD,), LORA, "an adapter learns instead of the layers' own tensors: no phase has a depth above 0"),
        ((TOP.replace("depth", "floors: [norms], depth"),), LORA, "phase top: leave out floors and only"),
        ((TOP.replace("depth", "only: feed-forward, depth"),), LORA, "phase top: leave out floors and only"),
        ((TOP,), "{kind: houlsby}", r"houlsby cannot be merged .*: use lora, dora, rslora or ia3"),
        ((TOP,), "{kind: ia3, rank: 4}", "ia3 scales fixed places and has no rank: leave that out"),
    ],
)
def test_an_adapter_that_could_not_be_kept_to_is_refused_before_anything_runs(phases, adapter, message):
    with pytest.raises(ParamsError, match=message):
        _params(*phases, adapter=adapter)


INNER = "{name: inner, depth: all, only: feed-forward, epochs: 1, learning_rate: 1.0e-2}"


def test_feed_forward_networks_learn_alone_behind_a_head(root):
    record = finetuning.run(_params(HEAD, INNER), root, Ledger())
    before, after = _weights(root)
    moved = {name for name, value in after.items() if not value.equal(before[name])}
    networks = {n for n in before if "layer" in n and "attention" not in n and "LayerNorm" not in n}
    assert moved == networks | {n for n in before if n.startswith(("bert.pooler", "classifier"))}
    assert record.phases[1]["floors"] == tuple(f"layer {number}" for number in range(4))
    page = (root / "reports" / "finetuning.html").read_text(encoding="utf-8")
    assert "the feed-forward networks of layers 0 to 3" in page


def test_over_kept_states_feed_forward_networks_learn_what_they_do_over_computed_ones(root):
    schedule, weights = INNER.replace("depth: all", "depth: 1").replace("epochs: 1", "epochs: 3"), []
    for dtype in ("none", "float32"):
        finetuning.run(_params(HEAD, schedule, **{"cache.dtype": dtype}), root, Ledger())
        weights.append(_weights(root)[1])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-3)


def test_what_was_drawn_at_random_is_not_left_so(root):
    folder = ConvertedCheckpoint.folder(root)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "fresh": ["classifier.weight"]}))
    with pytest.raises(TrainingError, match=r"classifier.weight would stay as drawn at random, .*own"):
        finetuning.run(_params(INNER), root, Ledger())
    _with_new_tokens(root)
    with pytest.raises(TrainingError, match="phase inner: the embeddings of new tokens learn in every phase"):
        finetuning.run(_params(HEAD, INNER), root, Ledger())


@pytest.mark.parametrize("change", [("depth: all", "depth: 0"), ("only:", "floors: [norms], only:")])
def test_only_is_of_layers_that_learn(change):
    with pytest.raises(ParamsError, match="phase inner: `only` wants a depth above 0, and no floors"):
        _params(INNER.replace(*change))


def test_another_label_count_than_the_heads_is_refused(root, encode):
    encode(root, ["a", "b"])
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


def test_rows_of_another_kind_are_refused(root, encode):
    encode(root, ["a", "b", "c"], kind="rating")
    with pytest.raises(
        TrainingError, match=r"rows of kind 'rating' .* not trained on yet; kinds that can: label, pair"
    ):
        finetuning.run(_params(HEAD), root, Ledger())
