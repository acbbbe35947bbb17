"""What benchmarks.quality found as one page of HTML, the transfer gain first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.quality import CHANCE, NAMES, Versus
from tasks import pages
from tasks.evaluation import pictures
from tasks.evaluation.gate.checks import p_text

Line = Mapping[str, Any]


def render(
    contestants: Sequence[Line],
    against: Sequence[Versus],
    rates: Mapping[float, float],
    size: Mapping[str, Any],
) -> str:
    """The page; its figures are those of quality.json."""
    gains = [one for one in against if one.theirs == CHANCE]
    return pages.render(
        Path(__file__).with_suffix(".jinja"),
        headline=[sentence(one) for one in reversed(gains)],
        contestants=contestants,
        names=NAMES,
        against=[one for one in against if one.theirs != CHANCE],
        rates=rates,
        size=size,
        picture=Markup(curves(contestants).replace(pictures.INK, "currentColor")),
        p_text=p_text,
    )


def sentence(one: Versus) -> str:
    """A transfer gain in words."""
    found = one.gain
    return (
        f"With {one.rows:,} rows, pretrained weights answer {100 * found.value:+.1f} points more test rows "
        f"rightly than random ones (95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}, "
        f"{p_text(found.p_value)} in every seed)."
    )


def curves(contestants: Sequence[Line]) -> str:
    """Accuracy over training rows, a line with its intervals a contestant, as SVG."""
    names = list(dict.fromkeys(line["contestant"] for line in contestants))
    with pictures._drawing(1, width=8, height=4.6) as sheet:
        axes = sheet.axes[0]
        for place, name in enumerate(names):
            own = [line for line in contestants if line["contestant"] == name]
            rows, values = ([line[key] for line in own] for key in ("rows", "accuracy"))
            errors = [
                [line["accuracy"] - line["accuracy_low"] for line in own],
                [line["accuracy_high"] - line["accuracy"] for line in own],
            ]
            colour = pictures.COLOURS[place % len(pictures.COLOURS)]
            shift = 1 + 0.02 * (place - len(names) / 2)  # so that intervals do not hide one another
            axes.errorbar(
                [shift * count for count in rows], values, errors, color=colour, label=NAMES[name],
                linestyle="-" if place < len(pictures.COLOURS) else "--", marker="o", markersize=4,
            )  # fmt: skip
        axes.set_xscale("log")
        every = sorted({line["rows"] for line in contestants})
        axes.set_xticks(every, [f"{count:,}" for count in every])
        axes.minorticks_off()
        axes.set(xlabel="rows to learn from", ylabel="test accuracy")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return sheet.svg
