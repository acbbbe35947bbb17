"""The two tables of README, from the contestants of quality.json: what to paste, and what a test compares."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality import NAMES

Line = Mapping[str, Any]


def cost(contestants: Sequence[Line]) -> str:
    """Quality and cost with the most rows."""
    rows = max(line["rows"] for line in contestants)
    header = [f"{rows:,} rows", "accuracy", "95 % interval", "single seeds", "processor seconds"]
    return table(header, [_cost(line) for line in contestants if line["rows"] == rows])


def sizes(contestants: Sequence[Line]) -> str:
    """Accuracy by number of rows."""
    rows = sorted({line["rows"] for line in contestants})
    found = {(line["contestant"], line["rows"]): _share(line["accuracy"]) for line in contestants}
    return table(
        ["accuracy", *(f"{count:,} rows" for count in rows)],
        [
            [label, *(found.get((name, count), "") for count in rows)]
            for name, label in NAMES.items()
            if any((name, count) in found for count in rows)
        ],
    )


def _cost(line: Line) -> list[str]:
    least, most = _share(line["accuracy_least"]), _share(line["accuracy_most"])
    return [
        NAMES[line["contestant"]],
        _share(line["accuracy"]),
        f"{_share(line['accuracy_low'])}–{_share(line['accuracy_high'])}",
        least if least == most else f"{least}–{most}",
        f"{line['cpu_seconds']:,.0f}" if line["cpu_seconds"] >= 1 else "< 1",
    ]


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
