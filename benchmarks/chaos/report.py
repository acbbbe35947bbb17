"""What trials came to: a share, a line for each victim, a sentence for each trial."""

from collections.abc import Sequence
from typing import Any

from benchmarks.chaos.strikes import DISK, NETWORK, VICTIMS
from benchmarks.chaos.trials import Trial

NAMES = {DISK: "full disk", NETWORK: "network cut"}


def figures(trials: Sequence[Trial]) -> dict[str, float]:
    return {"chaos_survived_share": sum(not trial.faults for trial in trials) / max(len(trials), 1)}


def lines(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A line for each victim that there was."""
    return [
        {
            "contestant": NAMES.get(victim, f"kill -9 of {victim}"),
            "trials": len(struck),
            "survived": sum(not trial.faults for trial in struck),
            "attempts": sum(trial.attempts for trial in struck),
        }
        for victim in VICTIMS
        if (struck := [trial for trial in trials if trial.strike.victim == victim])
    ]


def told(trial: Trial) -> str:
    strike, result = trial.strike, "; ".join(trial.faults) or f"the same, attempts: {trial.attempts}"
    lasting = f", for {strike.lasting:.1f} s" if strike.lasting else ""
    moment = f"{strike.after:.1f} s into {strike.stage}{lasting}, due from {strike.due}"
    return f"seed {strike.seed}: {strike.victim} {moment}: {result}"
