"""`python -m benchmarks.finetuning [--quick]`: fine-tuning by phases against transformers' Trainer.

Contestants take turns in one fresh process with one thread, on rows that no other repetition sees; processor
seconds a row count, wall seconds stand beside them (on a GPU wall seconds count). A figure is written only
where ours answers as many unseen rows rightly as the best Trainer, as far as their number can tell. Prints
the contestants and writes benchmarks/results/finetuning.json; a quick run finetuning-quick.json, and the
other only where no full run has.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy.stats import binomtest

from benchmarks import record

if TYPE_CHECKING:
    from benchmarks.trainers import Cost

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy")
OURS, BEST, TUTORIAL = "ours", "best Trainer", "tutorial Trainer"
SCHEDULE = {  # phase -> depth, epochs, rate
    "head": (0, 5, 1e-3),
    "top2": (2, 3, 3e-4),
    "full": ("all", 1, 1e-4),
}
PHASES = {  # one epoch of so few long rows is 5 steps, after which accuracy is chance's
    **SCHEDULE,
    "full-x4": ("all", 4, 1e-4),
}
CONTESTS = {  # figure -> texts, phases, what ours is compared with
    "head_vs_best": ("short", ("head",), BEST),
    "top2_short_vs_best": ("short", ("top2",), BEST),
    "top2_long_vs_best": ("long", ("top2",), BEST),
    "full_short_vs_best": ("short", ("full",), BEST),
    "full_long_vs_best": ("long", ("full-x4",), BEST),
    "schedule_vs_best": ("short", tuple(SCHEDULE), BEST),
    "schedule_vs_tutorial": ("short", tuple(SCHEDULE), TUTORIAL),
}
CONFIDENCE = 0.95  # of the interval around the best Trainer's accuracy


class Size(NamedTuple):
    """Rows to learn from; validation rows, an eighth of these, come on top."""

    short: int
    long: int
    tutorial: int  # of the short ones: its cost a row is the same for any number
    sweep: int
    unseen: int
    runs: int  # of the sweep
    repetitions: int
    curve: tuple[int, ...]


FULL = Size(512, 160, 32, 1024, 256, 20, 3, (400, 800, 1600))
QUICK = Size(32, 12, 2, 32, 16, 2, 1, (8, 16, 24))


@dataclass(frozen=True)
class Run:
    """One contestant, once: `right` of `unseen` rows answered rightly."""

    contestant: str
    texts: str
    phases: tuple[str, ...]
    rows: int
    tokens: int
    cost: "Cost"
    right: int
    unseen: int

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        return self.contestant, self.texts, self.phases

    @property
    def milliseconds(self) -> float:
        """A row, of the seconds that count."""
        return 1000 * self.cost.seconds / self.rows


class Found(NamedTuple):
    runs: list[Run]
    sweeps: list[dict[str, float]]
    curve: list[dict[str, float]]
    gpu: list[dict[str, Any]] | None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows, once: figures to try out")
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    found = record.alone(measure, size, threads=1)
    figures, withheld = _figures(found)
    contestants = _lines(found.runs)
    for target in (targets := record.targets(options.into, "finetuning", quick=options.quick)):
        record.write(
            target,
            figures,  # type: ignore[arg-type]
            contestants,
            libraries=LIBRARIES,
            quick=options.quick,
            sizes=size._asdict(),
            withheld=withheld,
            sweeps=found.sweeps,
            curve=found.curve,
            straightness=_straightness(found.curve),
            gpu=found.gpu,
        )
    print(_told(contestants, found, figures, withheld))
    print("", *targets, sep="\n")


def measure(size: Size) -> Found:
    """To be called in a process of its own, whose threads are pinned."""
    from benchmarks.contest import Contest

    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), size)
        contest.warm_up()
        runs = [run for number in range(size.repetitions) for run in contest.repetition(number)]
        sweeps = [contest.sweep(number) for number in range(size.repetitions)]
        return Found(runs, sweeps, contest.curve(), contest.utilisation(runs))


def _figures(found: Found) -> tuple[dict[str, float | None], dict[str, str]]:
    """Figure -> value or None, and why those are None."""
    figures: dict[str, float | None] = {}
    withheld = {}
    for name, (texts, phases, rival) in CONTESTS.items():
        if reason := _worse(found.runs, texts, phases):
            withheld[name] = reason
        figures[name] = None if reason else _ratio(found.runs, texts, phases, rival)
    figures["sweep20_cost"] = statistics.median(sweep["cost_over_one"] for sweep in found.sweeps)
    return figures, withheld


def _ratio(runs: Sequence[Run], texts: str, phases: tuple[str, ...], rival: str) -> float:
    """How many times as long as ours the rival takes for a row: the median over the repetitions."""
    pairs = zip(_of(runs, rival, texts, phases), _of(runs, OURS, texts, phases), strict=True)
    return statistics.median(theirs.milliseconds / our.milliseconds for theirs, our in pairs)


def _of(runs: Sequence[Run], *key: Any) -> list[Run]:
    return [run for run in runs if run.key == key]


def _worse(runs: Sequence[Run], texts: str, phases: tuple[str, ...]) -> str | None:
    """Why a figure must not be told: accuracy was paid for it."""
    our, best = (_of(runs, contestant, texts, phases) for contestant in (OURS, BEST))
    accuracy, (low, _) = _accuracy(our), _interval(best)
    if accuracy >= low:
        return None
    return f"ours answers {accuracy:.1%} rightly, the best Trainer {_accuracy(best):.1%}, at least {low:.1%}"


def _accuracy(runs: Sequence[Run]) -> float:
    return sum(run.right for run in runs) / sum(run.unseen for run in runs)


def _interval(runs: Sequence[Run]) -> tuple[float, float]:
    """Wilson's (1927), over the unseen rows of all repetitions."""
    test = binomtest(sum(run.right for run in runs), sum(run.unseen for run in runs))
    low, high = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def _straightness(curve: Sequence[Mapping[str, float]]) -> float:
    """R² of the straight line through cost against rows."""
    rows, seconds = ([point[name] for point in curve] for name in ("rows", "seconds"))
    return statistics.correlation(rows, seconds) ** 2


def _lines(runs: Sequence[Run]) -> list[dict[str, Any]]:
    groups = {run.key: [one for one in runs if one.key == run.key] for run in runs}
    return [_line(*key, group) for key, group in sorted(groups.items(), key=lambda item: item[0][1:])]


def _line(contestant: str, texts: str, phases: tuple[str, ...], runs: Sequence[Run]) -> dict[str, Any]:
    low, high = _interval(runs)
    peaks = [run.cost.rss_mb for run in runs if run.cost.rss_mb is not None]
    return {
        "contestant": f"{contestant}, {texts}, {'-'.join(phases)}",
        "rows": runs[0].rows,
        "tokens_per_row": statistics.fmean(run.tokens / run.rows for run in runs),
        "cpu_ms_per_row": 1000 * statistics.median(run.cost.cpu / run.rows for run in runs),
        "wall_ms_per_row": 1000 * statistics.median(run.cost.wall / run.rows for run in runs),
        "peak_rss_mb": max(peaks, default=None),
        "accuracy": _accuracy(runs),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def _told(
    contestants: Sequence[Mapping[str, Any]],
    found: Found,
    figures: Mapping[str, float | None],
    withheld: Mapping[str, str],
) -> str:
    keys = [{"figure": name, "value": value} for name, value in figures.items()]
    tables = [contestants, found.sweeps, found.curve, *([found.gpu] if found.gpu else []), keys]
    reasons = [f"{name} is withheld: {reason}" for name, reason in withheld.items()]
    return "\n\n".join([*map(record.table, tables), *reasons])


if __name__ == "__main__":
    main()
