"""`python -m benchmarks.quality [--quick]`: what each way to fine-tune is worth, and when.

On the project's own data, through its own stages, every preset learns from 250, 1,000 and 4,000 rows with
three seeds and answers the same test rows; so do the baselines, and so does the same architecture from random
weights, fully trained for as many epochs at the best of several rates (on validation rows). Processor seconds
of learning stand beside accuracy. Prints the contestants, writes benchmarks/results/quality.json and
reports/quality.html; a quick run quality-quick.json, and quality.json only where no full run has. Finished
runs are kept in --scratch: an interrupted benchmark goes on where it was.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import intervals, record
from benchmarks.intervals import Gain, Table
from tasks import files
from tasks.evaluation.figures import metrics
from tasks.evaluation.predictions import Predictions

REPOSITORY = Path(__file__).parents[1]
LIBRARIES = ("torch", "transformers", "peft", "scikit-learn", "numpy")
BASELINES = ("majority", "tfidf", "frozen")
CHANCE = "random"
PRESET = {  # contestant -> preset
    "head": "feature-extraction",
    "freeze_early": "freeze-early",
    "gradual": "gradual",
    "full": "full",
    "lora": "lora",
    CHANCE: "full",
}
NAMES = {
    "majority": "majority",
    "tfidf": "TF-IDF + logistic regression",
    "frozen": "frozen features + logistic regression",
    "head": "head only",
    "freeze_early": "freeze-early",
    "gradual": "gradual",
    "full": "full",
    "lora": "LoRA",
    CHANCE: "the same from random weights",
}
TO_BEAT = ("tfidf", "frozen")
MUST_BEAT = ("gradual", "full")  # one of these, both of those
HELD_BACK = 5  # a validation row for so many that are learned from


class Size(NamedTuple):
    rows: tuple[int, ...]  # to learn from
    seeds: tuple[int, ...]
    test: int
    rates: tuple[float, ...]  # that the random architecture may choose from


FULL = Size((250, 1000, 4000), (1, 2, 3), 2400, (3e-5, 1e-4, 3e-4, 1e-3))
QUICK = Size((30,), (1,), 60, (3e-4,))


@dataclass(frozen=True, eq=False)
class Run:
    """One contestant's answers to the test rows, and what learning them cost in seconds and MB.

    validation: accuracy of the epoch that was kept; None for what looks at no validation row.
    """

    strategy: str
    rows: int
    seed: int
    rate: float | None
    validation: float | None
    cpu: float
    wall: float
    rss_mb: float | None
    answers: Predictions


class Versus(NamedTuple):
    """A paired difference of two contestants that learned from as many rows."""

    ours: str
    theirs: str
    rows: int
    gain: Gain


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows, one seed: figures to try out")
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    parser.add_argument("--scratch", type=Path, help="where finished runs are kept (default: .regraft)")
    parser.add_argument("--rows", type=int, nargs="+", help="only these numbers of rows")
    parser.add_argument("--seeds", type=int, help="only so many")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side, one thread each")
    options = parser.parse_args(arguments)
    from benchmarks import quality_page, quality_tables

    name = "quality-quick" if options.quick else "quality"
    size = QUICK if options.quick else FULL
    size = size._replace(rows=tuple(options.rows or size.rows), seeds=size.seeds[: options.seeds])
    scratch = options.scratch or REPOSITORY / ".regraft" / name
    runs, rates = measure(scratch.resolve(), size, options.workers)
    groups, against = grouped(runs), compared(runs, size)
    contestants, quoted = lines(groups), figures(groups, against, size)
    for target in (targets := record.targets(options.into, "quality", quick=options.quick)):
        record.write(
            target,
            quoted,
            contestants,
            libraries=LIBRARIES,
            quick=options.quick,
            sizes=size._asdict(),
            random_rates={f"{rate:g}": accuracy for rate, accuracy in rates.items()},
            comparisons=[_flat(one) for one in against],
        )
    if not options.quick:
        page = quality_page.render(contestants, against, rates, size._asdict())
        files.write_text(REPOSITORY / "reports" / "quality.html", page)
    print(told(contestants, against, quoted))
    print("", quality_tables.cost(contestants), "", quality_tables.sizes(contestants), sep="\n")
    print("", *targets, sep="\n")


def measure(scratch: Path, size: Size, workers: int) -> tuple[list[Run], dict[float, float]]:
    """All runs, and what each rate of the random architecture was worth on validation rows.

    The rate is chosen once, with a middling number of rows and the first seed. Seeds come one after the
    other, so that what an interruption leaves is a whole table of fewer seeds.
    """
    from benchmarks import learners

    with record.spread(workers) as pool:
        middling = size.rows[len(size.rows) // 2]
        rates = pool.submit(learners.choose, scratch, size, middling, size.seeds[0]).result()
        best = max(rates, key=lambda rate: rates[rate])
        turns = [(rows, seed) for seed, rows in product(size.seeds, size.rows)]
        blocks = [pool.submit(learners.block, scratch, size, *turn, best) for turn in turns]
        return [run for one in blocks for run in one.result()], rates


def grouped(runs: Sequence[Run]) -> dict[tuple[str, int], list[Run]]:
    """(contestant, rows) -> its runs by seed; contestants in the order of the table."""
    order = list(NAMES)
    keys = sorted({(run.strategy, run.rows) for run in runs}, key=lambda key: (key[1], order.index(key[0])))
    return {key: [run for run in runs if (run.strategy, run.rows) == key] for key in keys}


def right(runs: Sequence[Run]) -> Table:
    """Which test rows each seed has right: (seeds, rows) of truth values.

    Raises ValueError where the runs did not answer the same rows.
    """
    first = runs[0].answers
    for run in runs:
        if run.answers.ids != first.ids:
            raise ValueError(f"{run.strategy}, {run.rows} rows, seed {run.seed} answered other test rows")
    return np.stack([run.answers.correct for run in runs])


def compared(runs: Sequence[Run], size: Size) -> list[Versus]:
    """Transfer gains first: full over random; then every preset over what needs less work."""
    groups = grouped(runs)
    presets = [name for name in PRESET if name != CHANCE]
    pairs = [("full", CHANCE), *product(presets, TO_BEAT)]
    return [
        Versus(ours, theirs, rows, intervals.gain(right(groups[ours, rows]), right(groups[theirs, rows])))
        for ours, theirs in pairs
        for rows in size.rows
    ]


def figures(
    groups: Mapping[tuple[str, int], Sequence[Run]], against: Sequence[Versus], size: Size
) -> dict[str, float]:
    """Gains and p values are those of the most rows."""
    found = {(one.ours, one.theirs): one.gain for one in against if one.rows == max(size.rows)}
    transfer = found["full", CHANCE]
    values = {
        "transfer_gain": transfer.value,
        "transfer_gain_low": transfer.low,
        "transfer_gain_high": transfer.high,
    }
    values |= {
        f"beats_{rival}_p": intervals.either(*(found[ours, rival] for ours in MUST_BEAT)) for rival in TO_BEAT
    }
    return values | {
        f"accuracy_{name}_{rows}": float(right(runs).mean()) for (name, rows), runs in groups.items()
    }


def lines(groups: Mapping[tuple[str, int], Sequence[Run]]) -> list[dict[str, Any]]:
    return [_line(name, rows, runs) for (name, rows), runs in groups.items()]


def _line(name: str, rows: int, runs: Sequence[Run]) -> dict[str, Any]:
    found = intervals.estimate(right(runs))
    peaks = [run.rss_mb for run in runs if run.rss_mb is not None]
    return {
        "contestant": name,
        "rows": rows,
        "seeds": len(runs),
        "accuracy": found.value,
        "accuracy_low": found.low,
        "accuracy_high": found.high,
        "accuracy_least": found.least,
        "accuracy_most": found.most,
        "macro_f1": statistics.fmean(metrics.macro_f1(r.answers.actual, r.answers.answer) for r in runs),
        "cpu_seconds": statistics.median(run.cpu for run in runs),
        "peak_rss_mb": max(peaks, default=None),
    }


def _flat(one: Versus) -> dict[str, Any]:
    return {"contestant": one.ours, "against": one.theirs, "rows": one.rows, **one.gain._asdict()}


def told(
    contestants: Sequence[Mapping[str, Any]], against: Sequence[Versus], quoted: Mapping[str, float]
) -> str:
    keys = [{"figure": name, "value": value} for name, value in quoted.items()]
    return "\n\n".join(map(record.table, ([_flat(one) for one in against], contestants, keys)))


if __name__ == "__main__":
    main()
