"""`python -m benchmarks.preparation [--quick]`: how well and how fast texts are deduplicated and split.

Prints the contestants and writes benchmarks/results/preparation.json; a quick run preparation-quick.json, and
the other only where no full run has. Everything runs in fresh processes; the contest in one thread each, the
stage as it is used, with two workers.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import record

if TYPE_CHECKING:
    from benchmarks.splitting import Outcome

LIBRARIES = ("rensa", "datasketch", "xxhash", "polars", "numpy", "scipy", "pyarrow", "scikit-learn")


class Size(NamedTuple):
    rows: int  # of the contest, and of the splits
    repetitions: int  # of the contest
    curve: tuple[int, ...]  # rows of the stage's tables


FULL = Size(50_000, 5, (10_000, 100_000, 1_000_000))
QUICK = Size(4_000, 1, (10_000, 30_000))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preparation", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small tables, within a minute: figures to try out, not to quote"
    )
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    from benchmarks import duplicates, scale, splitting  # late: every worker imports this module again

    contestants = record.alone(duplicates.contest, size.rows, size.repetitions, threads=1)
    outcomes = record.alone(splitting.compare, size.rows)
    stages = scale.curve(size.curve)
    figures = _figures(contestants, outcomes, stages)
    targets = record.targets(options.into, "preparation", quick=options.quick)
    for target in targets:
        record.write(
            target,
            figures,
            contestants,
            libraries=LIBRARIES,
            quick=options.quick,
            sizes=size._asdict(),
            stages=stages,
        )
    print(_told(contestants, outcomes, stages, figures))
    print("", *targets, sep="\n")


def _figures(
    contestants: Sequence[Mapping[str, Any]],
    outcomes: Mapping[str, "Outcome"],
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Against datasketch the faster of its two ways counts; of the stage the largest table."""
    by_name = {line["contestant"]: line for line in contestants}
    regraft, sklearn, largest = outcomes["regraft"], outcomes["sklearn"], stages[-1]
    fastest = min(by_name["datasketch"]["times_ours"], by_name["datasketch, our shingles"]["times_ours"])
    return {
        **{name: by_name["regraft"][name] for name in ("recall", "recall_near", "precision")},
        "speedup_vs_datasketch": fastest,
        "speedup_vs_datasketch_own_shingles": by_name["datasketch"]["times_ours"],
        "speedup_vs_datasketch_tutorial": by_name["datasketch, tutorial"]["times_ours"],
        "leaked_test_rows": regraft.leaked,
        "leaked_test_rows_sklearn": sklearn.leaked,
        "moved_rows": regraft.moved,
        "moved_rows_sklearn": sklearn.moved,
        "gone_rows": regraft.gone,
        "gone_rows_sklearn": sklearn.gone,
        "rows_per_second": largest["rows_per_second"],
        "peak_rss_mb": largest["peak_rss_mb"],
        **{f"rows_per_second_{_short(line['rows'])}": line["rows_per_second"] for line in stages},
        **{f"peak_rss_mb_{_short(line['rows'])}": line["peak_rss_mb"] for line in stages},
        **{
            f"rows_per_second_{_identifier(step)}": largest["rows"] / seconds
            for step, seconds in largest["steps"].items()
        },
    }


def _short(rows: int) -> str:
    return f"{rows // 1_000_000}m" if rows >= 1_000_000 else f"{rows // 1000}k"


def _identifier(step: str) -> str:
    return step.partition(",")[0].partition(" (")[0].replace(" ", "_")


def _told(
    contestants: Sequence[Mapping[str, Any]],
    outcomes: Mapping[str, "Outcome"],
    stages: Sequence[Mapping[str, Any]],
    figures: Mapping[str, float],
) -> str:
    splits = [{"split by": name, **outcome._asdict()} for name, outcome in outcomes.items()]
    sizes = [{name: value for name, value in line.items() if name != "steps"} for line in stages]
    steps = [{"step": name, "seconds": value} for name, value in stages[-1]["steps"].items()]
    keys = [{"figure": name, "value": value} for name, value in figures.items()]
    return "\n\n".join(map(record.table, (contestants, splits, sizes, steps, keys)))


if __name__ == "__main__":
    main()
