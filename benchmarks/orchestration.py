"""`python -m benchmarks.orchestration [--quick] [--only PART]`: its cost, what schedules keep.

A small project runs whole in four ways that take turns: its stages' bodies called one after the other in one
process, by `dvc repro`, by the flow in one process, by the flow as shipped. Then once more, with nothing
changed. What a way costs more than plain calls is told as a share of the default run's time. Then a
deployment is due every second for a while, and runs are struck at random moments (benchmarks.chaos). Prints
all and writes benchmarks/results/orchestration.json; a quick run orchestration-quick.json, and the other only
where no full run has.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import project, record, schedules
from benchmarks.chaos import report, soak, strikes
from benchmarks.project import Cost

LIBRARIES = ("prefect", "dvc", "mlflow", "torch")
PLAIN, REPRO, FLOW, SHIPPED = "plain calls", "dvc repro", "flow, one process", "flow"
WAYS: Mapping[str, Sequence[str]] = {  # contestant -> command
    PLAIN: ("python", "-m", "benchmarks.project"),
    REPRO: ("dvc", "repro"),
    FLOW: ("regraft", "run", "--leaf", "inprocess"),
    SHIPPED: ("regraft", "run"),
}
UNCHANGED = (REPRO, SHIPPED)
ENDS = (0, 3)  # whatever the gate says of a model that learned next to nothing
HELP = ("python", "-m", "tasks", "--help")
LOOKS = 5  # at the help text
MOST = 0.05  # of the default run, that orchestration may take


class Size(NamedTuple):
    repetitions: int
    ways: tuple[str, ...]
    runs: int
    workers: int
    trials: int


FULL = Size(3, tuple(WAYS), 100, 4, 50)
QUICK = Size(1, (PLAIN, REPRO, SHIPPED), 4, 2, 1)


class Turn(NamedTuple):
    name: str
    cost: Cost


class Part(NamedTuple):
    """What one part of this benchmark found."""

    figures: Mapping[str, float]
    lines: Sequence[Mapping[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one turn, few runs: figures to try out")
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    parser.add_argument("--trials", type=int, help="of chaos: how many runs are struck")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        help="this part (may be given again); what a former run found of the others is kept",
    )
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    size = size if options.trials is None else size._replace(trials=options.trials)
    with tempfile.TemporaryDirectory() as scratch:
        parts = {
            name: PARTS[name](Path(scratch) / name, size) for name in PARTS if name in (options.only or PARTS)
        }
    for target in record.targets(options.into, "orchestration", quick=options.quick):
        _write(target, parts, quick=options.quick)
        record.say(str(target))
    for part in parts.values():
        print(record.table(part.lines), end="\n\n")
    figures = [(name, value) for part in parts.values() for name, value in part.figures.items()]
    print(record.table([{"figure": name, "value": value} for name, value in figures]))


def costs(folder: Path, size: Size) -> Part:
    """Of the help text, and of each way to run a small project."""
    helped = statistics.median(project.timed(HELP, project.REPOSITORY).cpu for _ in range(LOOKS))
    turns = list(measure(folder, size))
    default = (size == QUICK and _kept()) or _default(folder)
    return Part({"help_cpu_s": helped, **_figures(turns, default)}, _lines(turns, default))


def schedule(folder: Path, size: Size) -> Part:
    kept = schedules.keep(folder, runs=size.runs, workers=size.workers)
    return Part(schedules.figures(kept), [schedules.line(kept)])


def struck(folder: Path, size: Size) -> Part:
    absent = soak.skipped()
    for victim, reason in absent.items():
        record.say(f"{victim}: skipped: {reason}")
    victims = [victim for victim in strikes.VICTIMS if victim not in absent]
    trials = soak.soak(folder, strikes.several(size.trials, 1, victims))
    return Part(report.figures(trials), report.lines(trials))


PARTS: Mapping[str, Callable[[Path, Size], Part]] = {"costs": costs, "schedule": schedule, "chaos": struck}


def _write(target: Path, parts: Mapping[str, Part], *, quick: bool) -> None:
    """Beside what `target` already holds of the parts that were not run."""
    known = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    lines = [line for line in known.get("contestants", ()) if line["part"] not in parts]
    lines += [{"part": name, **line} for name, part in parts.items() for line in part.lines]
    figures = dict(known.get("figures", {}))
    for part in parts.values():
        figures |= part.figures
    record.write(target, figures, lines, libraries=LIBRARIES, quick=quick)


def measure(folder: Path, size: Size) -> Iterator[Turn]:
    """Each way on a project of its own, then again there with nothing changed; they take turns."""
    for number in range(size.repetitions):
        for name in size.ways:
            record.say(f"{name}, {number + 1} of {size.repetitions}")
            root = project.make(folder / f"{name} {number}")
            yield Turn(name, project.timed(WAYS[name], root, codes=ENDS))
            if name in UNCHANGED:
                yield Turn(f"{name}, unchanged", project.timed(WAYS[name], root, codes=ENDS))
            shutil.rmtree(root)


def _default(folder: Path) -> float:
    """Seconds of `regraft run` in a fresh clone, on the params that are shipped."""
    record.say("the default run: minutes")
    return project.timed(WAYS[SHIPPED], project.make(folder / "default", ()), codes=ENDS).wall


def _kept() -> float | None:
    """What a full run has measured last."""
    known = record.RESULTS / "orchestration.json"
    if not known.exists():
        return None
    figures: dict[str, float] = json.loads(known.read_text(encoding="utf-8"))["figures"]
    return figures.get("default_run_s")


def _figures(turns: Sequence[Turn], default: float) -> dict[str, float]:
    """What the flow as shipped takes longer than plain calls, as a share of the default run."""
    wall = {name: cost.wall for name, cost in _medians(turns).items()}
    return {
        "unchanged_repro_s": wall[f"{REPRO}, unchanged"],
        "unchanged_flow_s": wall[f"{SHIPPED}, unchanged"],
        "overhead_share": (wall[SHIPPED] - wall[PLAIN]) / default,
        "default_run_s": default,
    }


def _lines(turns: Sequence[Turn], default: float) -> list[dict[str, Any]]:
    found = _medians(turns)
    return [
        {
            "contestant": name,
            "wall_s": cost.wall,
            "cpu_s": cost.cpu,
            "of_default_run": (cost.wall - found[PLAIN].wall) / default
            if name in WAYS
            else cost.wall / default,
        }
        for name, cost in found.items()
    ]


def _medians(turns: Sequence[Turn]) -> dict[str, Cost]:
    names = dict.fromkeys(turn.name for turn in turns)
    groups = {name: [turn.cost for turn in turns if turn.name == name] for name in names}
    return {name: Cost(*map(statistics.median, zip(*costs, strict=True))) for name, costs in groups.items()}


if __name__ == "__main__":
    main()
