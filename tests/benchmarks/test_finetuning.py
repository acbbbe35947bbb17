"""The figures of fine-tuning are there, and what is compared is alike."""

import json

import pytest

from benchmarks import contest, finetuning, labelled, record, trainers
from benchmarks.finetuning import BEST, OURS, Found, Run
from tasks.params import FinetuningParams

KEYS = {*finetuning.CONTESTS, "sweep20_cost"}
ISSUE = {
    "head_vs_best",
    "sweep20_cost",
    "top2_short_vs_best",
    "top2_long_vs_best",
    "full_short_vs_best",
    "full_long_vs_best",
    "schedule_vs_best",
    "schedule_vs_tutorial",
}
TEXTS = labelled.Part([[place, 1] for place in range(100)], [place % 2 for place in range(100)], 2)
HEAD = ("short", ("head",))


def _run(contestant, *, right, cpu, texts="short", phases=("head",)):
    return Run(contestant, texts, phases, 10, 100, trainers.Cost(cpu, cpu, None), right, 100)


@pytest.mark.e2e
def test_a_quick_run_writes_every_figure(tmp_path, capsys):
    finetuning.main(["--quick", "--into", str(tmp_path)])
    found = json.loads((tmp_path / "finetuning-quick.json").read_text(encoding="utf-8"))
    assert set(found["figures"]) == ISSUE
    told = {name for name, value in found["figures"].items() if value is not None}
    assert told == ISSUE - set(found["withheld"])
    assert all(found["figures"][name] > 0 for name in told)
    assert all(line["cpu_ms_per_row"] > 0 and 0 <= line["accuracy"] <= 1 for line in found["contestants"])
    assert found["quick"] is True
    assert "schedule_vs_tutorial" in capsys.readouterr().out


def test_repetitions_and_parts_share_no_row():
    found = labelled.portions(TEXTS, 16, 8, 3)
    rows = [row[0] for portion in found for part in portion for row in part.input_ids]
    assert len(rows) == len(set(rows)) == 3 * (16 + 2 + 8)


def test_more_rows_than_there_are_texts_are_refused():
    with pytest.raises(ValueError, match="3 portions need 150 texts; there are 100"):
        labelled.portions(TEXTS, 40, 5, 3)


def test_both_kinds_of_text_are_real_labelled_and_of_their_length(checkpoint):
    short, long = (labelled.read(name, checkpoint) for name in ("short", "long"))
    assert (short.classes, long.classes) == (3, 5)
    assert 10 < short.tokens / len(short.targets) < 15
    assert 70 < long.tokens / len(long.targets) < 90
    assert max(map(len, long.input_ids)) <= labelled.LONGEST


@pytest.mark.parametrize("size", [finetuning.FULL, finetuning.QUICK])
def test_the_packages_hold_enough_texts_for_a_run(size, checkpoint):
    for name, rows in (("short", size.short), ("long", size.long)):
        texts = labelled.read(name, checkpoint)
        assert len(labelled.portions(texts, rows, size.unseen, size.repetitions)) == size.repetitions
    assert labelled.portions(labelled.read("short", checkpoint), size.sweep, 1, size.repetitions)


def test_the_median_repetition_counts():
    pairs = [(10, 1), (30, 10), (20, 5)]
    runs = [
        run
        for theirs, our in pairs
        for run in (_run(BEST, right=50, cpu=theirs), _run(OURS, right=50, cpu=our))
    ]
    assert finetuning._ratio(runs, *HEAD, BEST) == 4.0


@pytest.mark.parametrize(("right", "told"), [(90, True), (50, True), (45, True), (35, False)])
def test_a_figure_for_which_accuracy_was_paid_is_withheld(right, told):
    every = [
        _run(contestant, right=right if contestant == OURS else 50, cpu=1, texts=texts, phases=phases)
        for texts, phases, rival in finetuning.CONTESTS.values()
        for contestant in (OURS, rival)
    ]
    each = list({run.key: run for run in every}.values())
    figures, withheld = finetuning._figures(Found(each, [{"cost_over_one": 1.5}], [], None))
    assert figures.keys() == KEYS == ISSUE
    assert {value for name, value in figures.items() if name != "sweep20_cost"} == {1.0 if told else None}
    assert all("the best Trainer 50.0%" in reason for reason in withheld.values())
    assert len(withheld) == (0 if told else 7)


def test_a_line_is_straighter_than_a_parabola():
    line = [{"rows": rows, "seconds": 2 * rows + 1} for rows in (1, 2, 4)]
    bent = [{"rows": rows, "seconds": rows**4} for rows in (1, 2, 4)]
    assert finetuning._straightness(line) == pytest.approx(1.0)
    assert finetuning._straightness(bent) < 0.95


def test_the_trainer_takes_the_rates_of_our_defaults(tmp_path):
    phase = contest.phases(["top2"])[0]
    settings = FinetuningParams(phases=(phase,))
    taken = trainers._arguments(phase, tmp_path, 0, "random")
    assert taken.per_device_train_batch_size == settings.batch_size
    assert (taken.learning_rate, taken.num_train_epochs) == (phase.learning_rate, phase.epochs)
    assert (taken.weight_decay, taken.max_grad_norm) == (
        settings.weight_decay,
        settings.maximum_gradient_norm,
    )
    assert (taken.get_warmup_steps(100), taken.lr_scheduler_type) == (100 * phase.warmup, phase.schedule)


def test_rows_of_a_small_table_are_grouped_as_those_of_a_large_one():
    lengths = [3, 9] * 64
    order = [lengths[place] for place in trainers.Grouped(lengths, 32)]
    assert sorted(order, reverse=True) == order


@pytest.mark.gpu
@pytest.mark.skipif(not trainers.torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_tells_how_well_each_uses_it():
    size = finetuning.QUICK._replace(sweep=32, runs=2, curve=(32, 48))
    found = record.alone(finetuning.measure, size, threads=1)
    assert {line["contestant"].partition(",")[0] for line in found.gpu} == {
        OURS, BEST, finetuning.TUTORIAL,
    }  # fmt: skip
    assert all(line["examples_per_second"] > 0 for line in found.gpu)


@pytest.fixture(scope="module")
def checkpoint():
    return contest.checkpoint()
