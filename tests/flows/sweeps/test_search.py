"""What optuna proposes becomes trials, and what became of them is told to it."""

import builtins
from pathlib import Path

import pytest

from flows.sweeps import axes, search
from tasks import params as parameters
from tasks.errors import InputError
from tasks.sweeps.results import Result

SHIPPED = parameters.load(Path(__file__).parents[3] / "params.yaml")
RATE = "finetuning.phases.0.learning_rate"


def _space(*assignments):
    return axes.space(SHIPPED, None, assignments)


def _searched(space, trials, *, jobs=1, figure):
    proposals, found = search.proposals(space, trials, jobs), []
    while batch := proposals.next():
        assert len(batch) <= jobs
        proposals.hear([figure(trial) for trial in batch])
        found += batch
    return found


def _near(rate):
    """A figure that is best where the learning rate is `rate`."""

    def figure(trial):
        distance = abs(trial.params.finetuning.phases[0].learning_rate - rate)
        return Result(trial.name, trial.changes, {"accuracy": -distance, "loss": distance}, 1.0, False)

    return figure


def test_a_grid_is_proposed_at_once():
    proposals = search.proposals(_space("finetuning.seed=1,2,3"), None, 1)
    assert [trial.params.finetuning.seed for trial in proposals.next()] == [1, 2, 3]
    assert proposals.next() == []


@pytest.mark.parametrize("select", ["accuracy", "loss"])
def test_a_search_comes_near_the_best_and_keeps_to_its_range(select):
    pytest.importorskip("optuna")
    space = _space(f"{RATE}=log(1e-5,1e-1)", f"finetuning.select={select}")
    found = [t.params.finetuning.phases[0].learning_rate for t in _searched(space, 30, figure=_near(1e-3))]
    assert all(1e-5 <= rate <= 1e-1 for rate in found)
    early, late = found[:10], found[20:]
    assert sum(abs(rate - 1e-3) for rate in late) < sum(abs(rate - 1e-3) for rate in early)


def test_the_same_results_lead_to_the_same_proposals():
    pytest.importorskip("optuna")
    space = _space(
        f"{RATE}=log(1e-5,1e-1)",
        "finetuning.weight_decay=interval(0,0.3)",
        "finetuning.batch_size=interval(8,32)",
    )
    one, two = (_searched(space, 6, jobs=2, figure=_near(1e-2)) for _ in range(2))
    assert [trial.name for trial in one] == [trial.name for trial in two]
    assert all(8 <= trial.params.finetuning.batch_size <= 32 for trial in one)


def test_what_was_tried_is_not_tried_again():
    pytest.importorskip("optuna")
    found = _searched(_space("finetuning.seed=1,2"), 12, jobs=2, figure=_near(1e-3))
    assert sorted(trial.params.finetuning.seed for trial in found) == [1, 2]


def test_a_failed_trial_is_told_and_the_search_goes_on():
    pytest.importorskip("optuna")

    def fails(trial):
        return Result(trial.name, trial.changes, {}, 0.0, False, failure="no memory")

    assert len(_searched(_space(f"{RATE}=log(1e-5,1e-1)"), 4, figure=fails)) == 4


def test_without_optuna_the_remedy_is_named(monkeypatch):
    known = builtins.__import__

    def absent(name, *rest):
        if name == "optuna":
            raise ModuleNotFoundError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"pip install 'regraft\[optuna\]'"):
        search.proposals(_space("finetuning.seed=1,2"), 3, 1)
