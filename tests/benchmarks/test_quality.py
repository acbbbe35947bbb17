"""The statistics of quality give known answers, and a quick run writes every figure."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import intervals, learners, quality, quality_page, quality_tables
from benchmarks.quality import QUICK, Run, Size
from tasks import params
from tasks.evaluation.predictions import Predictions
from tasks.presets import PRESETS

ISSUE = {
    "transfer_gain",
    "transfer_gain_low",
    "transfer_gain_high",
    "beats_tfidf_p",
    "beats_frozen_p",
}
ROWS = 400


def _table(*shares, rows=ROWS):
    """(seeds, rows): the first `share` of the rows right in each seed."""
    return np.stack([np.arange(rows) < round(share * rows) for share in shares])


def _run(strategy, rows, seed, share, *, ids=ROWS):
    right = np.arange(ids) < round(share * ids)
    probabilities = np.stack([right, ~right], axis=1).astype(np.float32)
    labels = np.zeros(ids, dtype=np.int64)
    answers = Predictions(strategy, tuple(map(str, range(ids))), labels, probabilities)
    return Run(strategy, rows, seed, None, None, 2.0 * seed, 3.0, 10.0, answers)


def test_one_seed_has_the_interval_of_a_share():
    low, high = intervals.interval(_table(0.5))
    half = 1.96 * np.sqrt(0.25 / ROWS)
    assert (low, high) == (pytest.approx(0.5 - half, abs=0.006), pytest.approx(0.5 + half, abs=0.006))


def test_seeds_that_answer_alike_are_no_more_rows():
    assert intervals.interval(_table(0.5, 0.5, 0.5)) == pytest.approx(
        intervals.interval(_table(0.5)), abs=0.002
    )


def test_seeds_that_differ_widen_the_interval():
    alike, apart = _table(0.5, 0.5, 0.5), _table(0.3, 0.5, 0.7)
    assert apart.mean() == pytest.approx(alike.mean())
    (low, high), (lower, higher) = map(intervals.interval, (alike, apart))
    assert lower < low - 0.05
    assert higher > high + 0.05


def test_what_never_varies_has_no_width():
    assert intervals.interval(_table(1.0, 1.0)) == pytest.approx((1.0, 1.0))
    found = intervals.estimate(_table(1.0, 0.0))
    assert found == pytest.approx((0.5, 0.0, 1.0, 0.0, 1.0))


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    chance = np.random.default_rng(0)
    found = [intervals.interval(chance.random((3, 300)) < 0.7) for _ in range(200)]
    held = sum(low <= 0.7 <= high for low, high in found)
    assert held >= 0.95 * 200 - 10  # errs on the wide side; ten is three standard deviations


def test_a_gain_is_paired_by_row():
    ours, theirs = _table(0.6), _table(0.5)
    found = intervals.gain(ours, theirs)
    assert found.value == pytest.approx(0.1)
    half = 1.96 * np.sqrt(0.09 / ROWS)  # 40 rows of 400 differ, all one way: no other chance than theirs
    assert (found.low, found.high) == (
        pytest.approx(0.1 - half, abs=0.006),
        pytest.approx(0.1 + half, abs=0.006),
    )
    assert found.p_value == pytest.approx(2 * 0.5**40)


def test_the_worst_seed_decides_and_a_seed_that_loses_beats_nothing():
    against = _table(0.5)
    assert intervals.gain(_table(0.6, 0.51), against).p_value == pytest.approx(2 * 0.5**4)
    assert intervals.gain(_table(0.9, 0.4), against).p_value == 1.0
    assert intervals.gain(_table(0.5, 0.9), against).p_value == 1.0


def test_choosing_the_better_of_two_costs_a_factor_of_two():
    gains = [intervals.Gain(0, 0, 0, p_value) for p_value in (0.01, 0.5)]
    assert intervals.either(*gains) == 0.02
    assert intervals.either(*[intervals.Gain(0, 0, 0, 0.8)] * 2) == 1.0


@pytest.fixture
def runs():
    shares = {
        "majority": 0.4, "tfidf": 0.6, "frozen": 0.65, "head": 0.6, "freeze_early": 0.7,
        "gradual": 0.72, "full": 0.75, "lora": 0.7, "random": 0.5,
    }  # fmt: skip
    return [
        _run(name, rows, seed, share + 0.01 * seed + rows / 10_000)
        for name, share in shares.items()
        for rows in (100, 500)
        for seed in ((1,) if name in quality.BASELINES else (1, 2))
    ]


def test_the_figures_are_those_of_the_most_rows(runs):
    size = Size((100, 500), (1, 2), ROWS, ())
    groups = quality.grouped(runs)
    found = quality.figures(groups, quality.compared(runs, size), size)
    assert found.keys() == ISSUE | {
        f"accuracy_{name}_{rows}" for name in quality.NAMES for rows in (100, 500)
    }
    assert found["transfer_gain"] == pytest.approx(0.25)
    assert found["transfer_gain_low"] < 0.25 < found["transfer_gain_high"]
    assert found["accuracy_full_500"] == pytest.approx(0.815)
    assert found["beats_tfidf_p"] == pytest.approx(2 * 2 * 0.5**60, rel=1e-6)


def test_the_transfer_gain_stands_first(runs):
    size = Size((100, 500), (1, 2), ROWS, ())
    against = quality.compared(runs, size)
    lines = quality.lines(quality.grouped(runs))
    assert quality.told(lines, against, {"transfer_gain": 0.25}).splitlines()[1].split()[:2] == [
        "full",
        "random",
    ]
    page = quality_page.render(lines, against, {1e-4: 0.5}, size._asdict())
    assert page.index("With 500 rows, pretrained weights answer +25.0 points more") < page.index("<table>")
    assert page.count('<tr><th scope="row">') == len(lines) + len(against) - 2


def test_runs_on_other_test_rows_are_not_averaged():
    with pytest.raises(ValueError, match="full, 100 rows, seed 2 answered other test rows"):
        quality.right([_run("full", 100, 1, 0.5), _run("full", 100, 2, 0.5, ids=300)])


def test_every_strategy_takes_its_preset_and_the_same_test_rows():
    size = quality.FULL
    turns = [learners.Turn(name, rows, 2) for name in quality.PRESET for rows in size.rows]
    for turn in turns:
        given = learners.settings(turn, size)
        values = PRESETS[quality.PRESET[turn.strategy]].values
        assert given.finetuning.phases == params.FinetuningParams.model_validate(values).phases
        assert (given.finetuning.adapter is not None) == ("adapter" in values)
        assert given.finetuning.seed == given.conversion.seed == 2
        assert given.preparation.subset.test == size.test
        assert given.preparation.subset.train == turn.rows == 5 * given.preparation.subset.validation


def test_the_random_architecture_gets_its_rate_and_no_pretrained_weight(tiny_checkpoint_of_weights, tmp_path):
    given = learners.settings(learners.Turn("random", 250, 1, 3e-4), quality.FULL)
    assert [phase.learning_rate for phase in given.finetuning.phases] == [3e-4]
    from safetensors.torch import load_file

    source = tiny_checkpoint_of_weights
    drawn = [tmp_path / name for name in ("first", "again", "other")]
    for target, seed in zip(drawn, (1, 1, 2), strict=True):
        learners.forget(source, target, seed)
    before, first, again, other = (load_file(path / "model.safetensors") for path in (source, *drawn))
    name = "encoder.layer.0.attention.self.query.weight"
    assert first[name].shape == before[f"bert.{name}"].shape
    assert not first[name].equal(before[f"bert.{name}"])
    assert first[name].equal(again[name])
    assert not first[name].equal(other[name])
    assert (drawn[0] / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.fixture
def tiny_checkpoint_of_weights(tiny_classifier, tmp_path) -> Path:
    return tiny_classifier(tmp_path / "pretrained")


def test_the_tables_are_those_of_the_readme_when_pasted(runs):
    lines = quality.lines(quality.grouped(runs))
    cost = quality_tables.cost(lines).splitlines()
    assert cost[0] == "| 500 rows | accuracy | 95 % interval | single seeds | processor seconds |"
    assert cost[2].startswith("| majority | .460 | ")
    assert cost[2].endswith(" | .460 | 2 |")
    assert cost[8].endswith(" | .810–.820 | 3 |")
    sizes = quality_tables.sizes(lines).splitlines()
    assert sizes[0] == "| accuracy | 100 rows | 500 rows |"
    assert sizes[8] == "| full | .775 | .815 |"
    assert len(cost) == len(sizes) == 2 + len(quality.NAMES)


@pytest.mark.e2e
def test_a_quick_run_writes_every_figure_and_a_second_learns_nothing_again(tmp_path, capsys):
    arguments = ["--quick", "--into", str(tmp_path), "--scratch", str(tmp_path / "scratch")]
    quality.main(arguments)
    found = json.loads((tmp_path / "quality-quick.json").read_text(encoding="utf-8"))
    assert set(found["figures"]) == ISSUE | {f"accuracy_{name}_{QUICK.rows[0]}" for name in quality.NAMES}
    assert [line["contestant"] for line in found["contestants"]] == list(quality.NAMES)
    assert all(line["cpu_seconds"] > 0 and 0 <= line["accuracy"] <= 1 for line in found["contestants"])
    assert found["quick"] is True
    assert "transfer_gain" in capsys.readouterr().out
    quality.main(arguments)
    again = json.loads((tmp_path / "quality-quick.json").read_text(encoding="utf-8"))
    assert again["contestants"] == found["contestants"]
