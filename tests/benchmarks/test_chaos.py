"""Random strikes can be repeated, reach every victim, and what was not survived is counted and told."""

from benchmarks import chaos
from benchmarks.chaos import Strike, Trial

STRIKE = Strike(7, chaos.STAGE, "encoding", "finetuning", 1.5)


def test_a_strike_is_repeated_by_its_seed_and_hits_a_stage_that_is_due():
    strikes = [chaos.draw(seed) for seed in range(1, chaos.TRIALS + 1)]
    assert strikes == [chaos.draw(seed) for seed in range(1, chaos.TRIALS + 1)]
    assert {strike.victim for strike in strikes} == set(chaos.VICTIMS)
    assert {strike.stage for strike in strikes} == set(chaos.DUE)
    assert all(chaos.DUE.index(strike.due) <= chaos.DUE.index(strike.stage) for strike in strikes)
    assert all(0 <= strike.after <= chaos.LASTING for strike in strikes)


def test_a_quick_soak_has_both_a_process_and_a_server_among_its_victims():
    victims = {chaos.draw(seed).victim for seed in range(1, 1 + chaos.QUICK)}
    assert victims & {chaos.FLOW, chaos.STAGE}
    assert victims & {chaos.MLFLOW, chaos.PREFECT}


def test_one_trial_that_was_not_survived_is_counted_and_told_with_its_moment():
    trials = [Trial(STRIKE, 2, ()), Trial(STRIKE, 3, ("finetuning has a and not b",))]
    assert chaos.figures(trials) == {"chaos_survived_share": 0.5}
    assert chaos.lines(trials) == [
        {"contestant": "kill -9 of stage", "trials": 2, "survived": 1, "attempts": 5}
    ]
    assert chaos.told(trials[1]) == (
        "seed 7: stage 1.5 s into finetuning, due from encoding: finetuning has a and not b"
    )
