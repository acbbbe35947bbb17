"""`python -m benchmarks.chaos [--trials 50] [--quick] [--only VICTIM]`: is a run that was struck the same?

A small project runs once undisturbed. In each trial the stages from a random one on are due again in a copy
of it, and at a random moment of the run it happens: somebody is killed (SIGKILL), the disk is full, or the
network to the DVC remote and MLflow is cut. Killed are the flow's process, a stage's, the MLflow server, the
Prefect server, the PostgreSQL server below both, or a worker with all that it runs. A server begins again and
the same command is given until it ends; a worker's run has to go on with another worker by itself. The trial
is survived if every manifest then has the undisturbed run's digest, MLflow knows one finished run of each
stage that was due, and nothing half-written, unsent or locked is left; a full disk must have been named.
Prints what each victim came to and writes benchmarks/results/chaos.json; a quick run chaos-quick.json. What
this machine does not permit is skipped with the reason. Exit code 1 where a trial failed.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import record
from benchmarks.chaos import report, soak, strikes

LIBRARIES = ("prefect", "dvc", "mlflow", "torch")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    chosen = options.only or strikes.VICTIMS
    skipped = {victim: reason for victim, reason in soak.skipped().items() if victim in chosen}
    for victim, reason in skipped.items():
        record.say(f"{victim}: skipped: {reason}")
    victims = [victim for victim in chosen if victim not in skipped]
    drawn = strikes.several(soak.QUICK if options.quick else options.trials, options.seed, victims)
    with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
        trials = soak.soak(Path(scratch), drawn)
    lines = report.lines(trials)
    for target in record.targets(options.into, "chaos", quick=options.quick):
        further = {"quick": options.quick, "skipped": skipped}
        record.write(target, report.figures(trials), lines, libraries=LIBRARIES, **further)
    print(record.table(lines), *map(report.told, trials), sep="\n")
    sys.exit(1 if any(trial.faults for trial in trials) else 0)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=soak.TRIALS)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first trial; a trial is repeated by its own"
    )
    parser.add_argument("--quick", action="store_true", help=f"{soak.QUICK} trials: figures to try out")
    parser.add_argument(
        "--only", action="append", choices=strikes.VICTIMS, help="this victim (may be given again)"
    )
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
