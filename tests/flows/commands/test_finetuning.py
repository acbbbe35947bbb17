"""What `regraft plan` says of fine-tuning, against what the stage then does, on a tiny real BERT."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from flows.commands import figures, finetuning
from tasks import files, params
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, Vocabulary
from tasks.presets import PRESETS
from tasks.stages import learning

SHIPPED = params.load(Path(__file__).parents[3] / "params.yaml")
HEAD = {"name": "head", "depth": 0, "epochs": 2, "learning_rate": 1e-3}
UPPER = {"name": "upper", "depth": 2, "epochs": 3, "learning_rate": 1e-4, "batch_tokens": 40}
WHOLE = {"name": "whole", "depth": "all", "learning_rate": 5e-5}


def _params(phases, **changes):
    values = SHIPPED.model_dump(mode="json")
    values["sources"]["checkpoint"]["path"] = "base"
    values["finetuning"] |= {"phases": phases, "batch_size": 8, **changes}
    return params.Params.model_validate(values)


def _convert(root, model, fresh=()):
    with files.replace_directory(ConvertedCheckpoint.folder(root)) as draft:
        model.save_pretrained(draft / "model")
        ConvertedCheckpoint.save(
            draft, family="bert", architecture="BertForSequenceClassification", labels=["a", "b", "c"],
            source="", parameters={}, fresh=fresh, proofs={},
        )  # fmt: skip


def _encode(root):
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
        EncodedDataset.save(draft, kind="label", labels=["a", "b", "c"], max_length=32, **sizes)


@pytest.fixture
def root(tmp_path, tiny_bert, tiny_tokenizer):
    """After conversion and encoding; the source checkpoint is here, too."""
    tiny_bert().bert.save_pretrained(tmp_path / "base")
    with files.replace_directory(Vocabulary.folder(tmp_path)) as draft:
        tiny_tokenizer(draft / "tokenizer")
        Vocabulary.save(draft, size=61, kept=61, fresh=0, special={})
    _convert(tmp_path, tiny_bert())
    _encode(tmp_path)
    return tmp_path


SCHEDULES = {
    "shipped": SHIPPED.model_dump(mode="json")["finetuning"]["phases"],
    "three": [HEAD, UPPER, WHOLE],
    "biases": [HEAD, {**UPPER, "floors": ["biases"]}],
    "inner": [HEAD, {**UPPER, "only": "feed-forward"}],
    "few steps": [{**HEAD, "steps": 3, "epochs": 1}, {**UPPER, "steps": 2, "epochs": 1}],
    **{name: preset.values["phases"] for name, preset in PRESETS.items() if name != "lora"},
}


@pytest.mark.parametrize("changes", [{}, {"cache": {"dtype": "int8"}}, {"cache": {"maximum_bytes": 3_000}},
                                     {"cache": {"dtype": "none"}}])  # fmt: skip
@pytest.mark.parametrize("phases", SCHEDULES.values(), ids=SCHEDULES)
def test_steps_states_and_counts_are_those_of_the_stage(root, phases, changes):
    wanted = _params(phases, **changes)
    converted, encoded = ConvertedCheckpoint.load(root), EncodedDataset.load(root)
    job = learning.prepare(root, root / "kept", converted, encoded, wanted.finetuning)
    for number, found in enumerate(finetuning.outlook(root, wanted, wanted).phases):
        planned, starts = (
            learning.plan(job, number, learning.starts(job, number)),
            learning.starts(job, number),
        )
        assert found.steps == planned.ends[-1]
        assert found.floors == tuple(name for name, _, _ in planned.stack)
        assert found.parameters == sum(value.numel() for value in planned.parameters.values())
        assert found.start == (starts[0] if starts else None)
        assert found.states == sum(
            job.frozen.size(split.rows, start)
            for split in (job.train, job.validation)
            for start in starts[:1]
        )


def test_a_head_that_would_stay_as_drawn_is_told_beforehand(root, tiny_bert):
    wanted = _params([{**UPPER, "only": "feed-forward"}])
    assert "fine-tuning will fail" not in "".join(finetuning.outlook(root, wanted, wanted).cautions)
    _convert(root, tiny_bert(), fresh=["classifier.weight"])
    told = finetuning.outlook(root, wanted, wanted).cautions
    assert [one[:46] for one in told] == ["fine-tuning will fail: classifier.weight would"]


def test_an_adapter_is_counted_as_the_stage_puts_it_in(root):
    wanted = _params(**PRESETS["lora"].values)
    job = learning.prepare(
        root, root / "kept", ConvertedCheckpoint.load(root), EncodedDataset.load(root), wanted.finetuning
    )
    for number, found in enumerate(finetuning.outlook(root, wanted, wanted).phases):
        planned = learning.plan(job, number, learning.starts(job, number))
        assert found.floors == tuple(name for name, _, _ in planned.stack)
        assert found.parameters == sum(value.numel() for value in planned.parameters.values())


def test_a_plan_shows_every_phase_and_what_it_rests_on(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    wanted = _params([HEAD, {**UPPER, "learning_rate": 5e-4}, WHOLE])
    finetuning.show(finetuning.outlook(root, wanted, wanted))
    told = capsys.readouterr().out
    for line in ("head", "layers 2–3, head", "embeddings, layers 0–3, head", "below layer 2", "the body"):
        assert line in told
    assert "rows: data/encoding as it is now, 40 rows of train, 12 of validation" in told
    assert "caution: phase upper: learning rate 0.0005 is not far below the 0.001" in told
    assert "?" not in told


def test_before_conversion_the_body_is_known_and_the_head_is_not(root, capsys):
    wanted = _params([HEAD, WHOLE])
    whole = finetuning.outlook(root, wanted, wanted)
    files_gone = [path for path in ConvertedCheckpoint.folder(root).rglob("*") if path.is_file()]
    for path in files_gone:
        path.unlink()
    (ConvertedCheckpoint.folder(root) / "model").rmdir()
    found = finetuning.outlook(root, wanted, wanted)
    assert found.outline.layers == whole.outline.layers == 4
    assert found.phases[0].parameters == 0
    assert whole.phases[1].parameters - found.phases[1].parameters == whole.phases[0].parameters
    finetuning.show(found)
    told = capsys.readouterr().out
    assert "0 + head" in told
    assert "its new head is unknown until conversion has run" in told


def test_another_checkpoint_is_not_told_by_the_converted_one(root, tiny_bert):
    tiny_bert(layers=2).bert.save_pretrained(root / "other")
    now = _params([HEAD])
    wanted = params.override(now, ["sources.checkpoint.path=other"])
    assert finetuning.outlook(root, now, wanted).outline.layers == 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("org/name", "unknown until conversion has run: org/name is not on this disk yet"),
        ("/nowhere/at/all", "unknown until conversion has run: no such path: /nowhere/at/all"),
    ],
)
def test_without_any_model_only_that_is_said(tmp_path, capsys, reference, message):
    wanted = params.override(_params([HEAD]), [f"sources.checkpoint.path={reference}"])
    finetuning.show(finetuning.outlook(tmp_path, wanted, wanted))
    assert message in capsys.readouterr().out


def test_a_head_that_stands_still_is_no_part_of_what_learns(root, capsys):
    ConvertedCheckpoint.folder(root).rename(root / "away")
    wanted = _params([{**WHOLE, "only": "feed-forward"}])
    finetuning.show(finetuning.outlook(root, wanted, wanted))
    told = capsys.readouterr().out
    assert "layers 0–3: feed-forward" in told
    assert "+ head" not in told


def test_without_rows_what_depends_on_them_is_unknown(root, capsys):
    (EncodedDataset.folder(root) / "manifest.json").unlink()
    wanted = _params([HEAD, WHOLE])
    finetuning.show(finetuning.outlook(root, wanted, wanted))
    told = capsys.readouterr().out
    assert "rows: unknown until encoding has run" in told
    assert "?" in told


def test_without_a_probe_the_time_is_unknown(root, capsys):
    wanted = _params([HEAD, WHOLE])
    finetuning.show(finetuning.outlook(root, wanted, wanted))
    assert "unknown: --probe" in capsys.readouterr().out


def test_a_probe_tells_the_time_of_each_phase_and_leaves_nothing(root, capsys):
    before = sorted(root.rglob("*"))
    wanted = _params([HEAD, {**UPPER, "depth": 1}, WHOLE])
    found = finetuning.outlook(root, wanted, wanted, probe=True)
    assert [one.all > 0 for one in found.seconds] == [True] * 3
    assert [one.frozen > 0 for one in found.seconds] == [True, False, False]  # one pass serves both
    finetuning.show(found)
    told = capsys.readouterr().out
    assert "time: from a few steps of each phase, on this machine as busy as it is" in told
    assert "unknown" not in told
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("record", [ConvertedCheckpoint, EncodedDataset, Vocabulary])
def test_a_probe_of_what_is_not_there_says_so(root, record, capsys):
    (record.folder(root) / "manifest.json").unlink()
    wanted = _params([HEAD])
    found = finetuning.outlook(root, wanted, wanted, probe=True)
    assert found.seconds == ()
    assert f"time: unknown until {record.stage} has run" in found.notes


def test_a_head_that_is_the_embeddings_is_told_to_learn_nothing_alone(root, tiny):
    shutil.rmtree(ConvertedCheckpoint.folder(root))
    _convert(root, tiny("GPT2LMHeadModel"))
    wanted = _params([HEAD, WHOLE])
    found = finetuning.outlook(root, wanted, wanted)
    assert found.outline.shared
    assert found.cautions[0].startswith("phase head will fail: this head shares its weights")


@pytest.mark.parametrize(("seconds", "told"), [(4.25, "4.2 s"), (3 * 60, "3 min"), (4210, "1 h 10 min")])
def test_durations_are_short(seconds, told):
    assert figures.duration(seconds) == told
