"""`python -m benchmarks.evaluation [--quick]`: how often the gate is wrong, on simulated pairs of models.

A candidate and a champion answer 1,000 test rows; on a share of them, the discordance, one alone is right,
as chance and the true difference of their accuracies have it. The gate that promotion asks judges each pair,
three protected slices included, and so does one that promotes whatever has the higher accuracy. Then texts
are answered, by the way of `regraft predict` and by transformers' pipeline. Prints both and writes
benchmarks/results/evaluation.json; a quick run evaluation-quick.json, and the other only where no full run
has.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from benchmarks import prediction, record
from tasks.evaluation.gate import verdict
from tasks.evaluation.gate.checks import Evidence, Resampling
from tasks.evaluation.predictions import Array, Predictions
from tasks.params import GateParams

LIBRARIES = ("numpy", "scipy", "torch", "transformers")
TEXTS, REPETITIONS = {"short": 1024, "long": 256}, 3  # that are answered
FEW = {"short": 64, "long": 16}
SEED = 2024
ROWS = 1000
ACCURACY = 0.85  # of the champion
DISCORDANCES = (0.05, 0.10, 0.15, 0.20, 0.25)
DIFFERENCES = (0.0, 0.01, 0.02, 0.03)  # of true accuracies
POWER = (0.10, 0.03)  # discordance and difference of the figure `gate_power`
PROOFS = {"structure": "simulated"}
SLICES = (0.5, 0.25, 0.1)  # their shares of the rows
RESAMPLES = 100  # for intervals; the test that decides is exact


class Point(NamedTuple):
    """One point of the curve: of `pairs` simulated ones so many were promoted."""

    discordance: float
    difference: float
    pairs: int
    gate: int
    naive: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pairs: figures to try out")
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    options = parser.parse_args(arguments)
    pairs = 40 if options.quick else 2000
    points = record.alone(curve, pairs, threads=1)
    sizes, times = (FEW, 1) if options.quick else (TEXTS, REPETITIONS)
    turns = record.alone(prediction.measure, sizes, times, threads=1)
    figures = _figures(points) | prediction.figures(turns)
    lines = [_line(point) for point in points]
    targets = record.targets(options.into, "evaluation", quick=options.quick)
    for target in targets:
        record.write(
            target, figures, [*lines, *prediction.lines(turns)],
            libraries=LIBRARIES, quick=options.quick, rows=ROWS, seed=SEED,
        )  # fmt: skip
    told = [{"figure": name, "value": value} for name, value in figures.items()]
    print(
        record.table(lines), record.table(prediction.lines(turns)), record.table(told), "", *targets, sep="\n"
    )


def curve(pairs: int) -> list[Point]:
    """To be called in a process of its own, whose threads are pinned."""
    return [_point(share, apart, pairs) for share in DISCORDANCES for apart in DIFFERENCES]


def _point(discordance: float, difference: float, pairs: int) -> Point:
    record.say(f"discordance {discordance:g}, difference {difference:g}")
    generator = np.random.default_rng([SEED, round(1000 * discordance), round(1000 * difference)])
    judged = [_judge(*pair) for pair in _simulated(discordance, difference, pairs, generator)]
    gate, naive = (sum(promoted) for promoted in zip(*judged, strict=True))
    return Point(discordance, difference, pairs, gate, naive)


def _simulated(
    discordance: float, difference: float, pairs: int, generator: np.random.Generator
) -> Iterator[tuple[Evidence, bool]]:
    """Evidence, and whether the candidate's accuracy is higher."""
    wins = (discordance + difference) / 2
    both = ACCURACY - (discordance - wins)
    shares = np.cumsum([wins, discordance - wins, both])
    labels, ids = np.arange(ROWS) % 2, tuple(f"row {number}" for number in range(ROWS))
    for _ in range(pairs):
        case = np.searchsorted(shares, generator.random(ROWS), side="right")  # won, lost, both right, neither
        ours, theirs = np.isin(case, (0, 2)), np.isin(case, (1, 2))
        candidate, champion = (_answers(right, labels, ids) for right in (ours, theirs))
        slices = {f"{share:.0%} of the rows": generator.random(ROWS) < share for share in SLICES}
        found = Evidence(candidate=candidate, champion=champion, slices=slices, proofs=PROOFS)
        yield found, bool(ours.sum() > theirs.sum())


def _answers(right: Array, labels: Array, ids: tuple[str, ...]) -> Predictions:
    chosen = np.where(right, labels, 1 - labels)
    return Predictions("model", ids, labels, np.where(np.arange(2) == chosen[:, None], 0.9, 0.1))


def _judge(evidence: Evidence, higher: bool) -> tuple[bool, bool]:
    found = verdict.gate(
        evidence,
        GateParams(),
        must_beat=(),
        resampling=Resampling(alpha=0.05, resamples=RESAMPLES, seed=SEED),
    )
    return found.outcome == "promote", higher


def _figures(points: Sequence[Point]) -> dict[str, float]:
    """False promotions at the discordance with most of them."""
    equal = [point for point in points if point.difference == 0]
    (power,) = [point for point in points if (point.discordance, point.difference) == POWER]
    return {
        "gate_false_promotions": max(point.gate / point.pairs for point in equal),
        "gate_power": power.gate / power.pairs,
        "naive_false_promotions": max(point.naive / point.pairs for point in equal),
    }


def _line(point: Point) -> Mapping[str, Any]:
    low, high = binomtest(point.gate, point.pairs).proportion_ci(0.95, method="wilson")
    return {
        "contestant": f"discordance {point.discordance:g}, difference {point.difference:g}",
        "pairs": point.pairs,
        "gate": point.gate / point.pairs,
        "gate_low": float(low),
        "gate_high": float(high),
        "higher_is_better": point.naive / point.pairs,
    }


if __name__ == "__main__":
    main()
