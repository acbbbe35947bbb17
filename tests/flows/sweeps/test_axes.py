"""What `-S` and `--preset` of a sweep come to, without anything being run."""

import shlex
from pathlib import Path

import pytest

from flows.commands import forecast
from flows.sweeps import axes
from tasks import params as parameters
from tasks.errors import InputError, ParamsError

REPOSITORY = Path(__file__).parents[3]
SHIPPED = parameters.load(REPOSITORY / "params.yaml")


def _grid(*assignments, preset=None):
    return axes.space(SHIPPED, preset, assignments).grid()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("1,2 , 3", ["1", "2", "3"]),
        ("choice(adamw, sgd)", ["adamw", "sgd"]),
        ("range(1,4)", ["1", "2", "3"]),
        ("range(0,10,5)", ["0", "5"]),
        ("[a, b]", ["[a, b]"]),
        ("{kind: lora, rank: 4},null", ["{kind: lora, rank: 4}", "null"]),
        ("[{name: head, depth: 0}],[{name: top, depth: 1}]", ["[{name: head, depth: 0}]", "[{name: top, depth: 1}]"]),
        ("'MIT, really',\"a,b\"", ["'MIT, really'", '"a,b"']),
        ("it's,so", ["it's", "so"]),
        ("", [""]),
    ],
)  # fmt: skip
def test_values_are_divided_at_commas_that_stand_outside(text, values):
    (axis,) = axes.space(SHIPPED, None, [f"finetuning.x={text}"]).axes
    assert list(axis.values) == values


def test_every_combination_is_a_trial_the_first_axis_slowest():
    found = _grid(
        "finetuning.seed=1,2", "finetuning.batch_size=8", "finetuning.phases.0.learning_rate=1.0e-3,3.0e-3"
    )
    assert [(t.params.finetuning.seed, t.params.finetuning.phases[0].learning_rate) for t in found] == [
        (1, 1e-3), (1, 3e-3), (2, 1e-3), (2, 3e-3)
    ]  # fmt: skip
    assert {t.params.finetuning.batch_size for t in found} == {8}
    assert found[1].changes == {"finetuning.seed": "1", "finetuning.phases.0.learning_rate": "3.0e-3"}


def test_presets_come_before_what_changes_them():
    one, two = _grid("finetuning.phases.0.epochs=7", preset="feature-extraction, lora")
    assert [phase.name for phase in one.params.finetuning.phases] == ["head"]
    assert two.params.finetuning.adapter.kind == "lora"
    assert one.params.finetuning.phases[0].epochs == two.params.finetuning.phases[0].epochs == 7
    assert (one.changes, two.changes) == ({"preset": "feature-extraction"}, {"preset": "lora"})


def test_equal_trials_are_one():
    assert len(_grid("finetuning.weight_decay=0,0.0,1")) == 2


def test_names_follow_from_the_assignments_alone():
    other = SHIPPED.model_copy(update={"promotion": SHIPPED.promotion.model_copy(update={"model": "x"})})
    names = [trial.name for trial in _grid("finetuning.seed=1,2")]
    assert names == [trial.name for trial in axes.space(other, None, ["finetuning.seed=1,2"]).grid()]
    assert len(set(names)) == 2


def test_the_command_of_a_trial_gives_its_params_back():
    (trial, _) = _grid("finetuning.adapter={kind: lora},null", "finetuning.seed=3", preset="gradual")
    words = shlex.split(trial.command)
    assert words[:4] == ["regraft", "init", "--preset", "gradual"]
    assert words[4:] == ["-S", "finetuning.adapter={kind: lora}", "-S", "finetuning.seed=3"]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["finetuning.seed"], "write section.key=value"),
        (["finetuning.seed=1,,2"], "a value is missing beside a comma"),
        (["finetuning.seed=1,2,"], "a value is missing beside a comma"),
        (["finetuning.seed=range(a,4)"], "range takes whole numbers"),
        (["finetuning.seed=range(4,1)"], "range takes whole numbers"),
        (["finetuning.seed=range(0,10,0)"], "range takes whole numbers"),
        (["finetuning.weight_decay=log(0,1)"], "log goes from a lower positive number to a higher one"),
        (["finetuning.weight_decay=interval(1)"], "interval takes two numbers"),
        (["finetuning.weight_decay=interval(0,1)"], "needs --trials N"),
        (["finetuning.seed=1", "finetuning.seed=2"], "stands twice"),
        (["finetuning.sed=1,2"], "did you mean 'seed'"),
        (["finetuning.select=loss,accuracy"], "takes one value in a sweep"),
        (["preparation.salt=a,b"], "takes one value in a sweep"),
        (["sources={},{}"], "takes one value in a sweep"),
        (["evaluation.seed=1,2"], "takes one value in a sweep"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_remedy(assignments, message):
    with pytest.raises(ParamsError, match=message):
        _grid(*assignments)


def test_what_decides_the_rows_may_differ_from_the_file_if_it_is_the_same_for_all():
    found = _grid("preparation.salt=other", "finetuning.seed=1,2")
    assert {trial.params.preparation.salt for trial in found} == {"other"}


def test_all_faults_of_a_grid_are_told_at_once():
    with pytest.raises(ParamsError) as caught:
        _grid(
            "finetuning.phases.0.learning_rate=1.0e-3,5",
            "finetuning.seed=-1,1",
            "finetuning.phases.1.depth=1",
            preset="full,gradual",
        )
    told = str(caught.value)
    assert "preset full: -S finetuning.phases.1.depth=1: no '1' here" in told
    assert "preset gradual: -S: finetuning.seed" in told
    assert "preset gradual: -S: finetuning.phases.0.learning_rate" in told


def test_an_unknown_preset_is_told_with_the_nearest():
    with pytest.raises(ParamsError, match="did you mean 'lora'"):
        _grid(preset="full,lor")


def test_nothing_to_try_is_an_error():
    with pytest.raises(InputError, match="name what to try"):
        axes.space(SHIPPED, None, [])


def test_trials_are_ranked_by_the_figure_that_all_of_them_select_by():
    assert axes.space(SHIPPED, None, ["finetuning.seed=1,2"]).select == "accuracy"
    assert axes.space(SHIPPED, None, ["finetuning.seed=1,2", "finetuning.select=loss"]).select == "loss"


def test_a_trial_touches_what_reads_its_params_and_what_follows():
    wanted = [
        parameters.override(SHIPPED, [assignment])
        for assignment in (
            "finetuning.seed=2",
            "encoding.max_length=64",
            "sources.checkpoint.path=x",
            "finetuning.seed=1",
        )
    ]
    touched = forecast.touched(REPOSITORY, SHIPPED, wanted)
    assert touched[0] == ["finetuning", "evaluation", "promotion"]
    assert touched[1] == ["encoding", "finetuning", "evaluation", "promotion"]
    assert touched[2][0] == "sources"
    assert touched[3] == []


@pytest.mark.parametrize(
    "key", ["encoding.max_length=16,32", "vocabulary.size=500,5000", "sources.checkpoint.path=a,b"]
)
def test_what_decides_the_judged_tokens_is_the_same_for_all_where_tokens_are_judged(key):
    words = parameters.override(SHIPPED, ["sources.text.kind=text"])
    with pytest.raises(ParamsError, match="takes one value in a sweep"):
        axes.space(words, None, [key])
    assert len(axes.space(SHIPPED, None, [key]).axes) == 1


def test_trials_that_are_to_be_trained_elsewhere_are_refused():
    away = parameters.override(SHIPPED, ["operations.finetuning=finetune/gpu"])
    with pytest.raises(ParamsError, match=r"is finetune/gpu, .* with -S operations\.finetuning=null"):
        axes.space(away, None, ["finetuning.seed=1,2"])
    with pytest.raises(ParamsError, match="is finetune/gpu"):
        axes.space(SHIPPED, None, ["finetuning.seed=1,2", "operations.finetuning=finetune/gpu,null"])
    here = axes.space(away, None, ["finetuning.seed=1,2", "operations.finetuning=null"])
    assert {trial.params.operations.finetuning for trial in here.grid()} == {None}
