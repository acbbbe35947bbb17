"""Pictures of an evaluation as SVG text: the same input gives the same bytes.

Backgrounds are transparent and every colour is readable on white and on black; INK marks what a page may
replace by its own text colour.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colors, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from tasks.evaluation.figures.metrics import Interval
from tasks.evaluation.predictions import Array

INK = "#767676"  # contrast 4.5 on white, 4.6 on black
COLOURS = ("#3b7dd8", "#d9822b", "#3a9d5d", "#d1495b", "#8f6bd1")
STYLE: Mapping[str, Any] = {
    "svg.hashsalt": "regraft",  # ids would be random otherwise
    "svg.fonttype": "none",  # text stays text: searchable, and a page can recolour it
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
ABREAST = 4  # panels of a row where each layer has one
NUMBERED = 12  # classes up to which a cell has room for its count
POINTS = 1000  # test rows up to which a scatter stays light
SETTLED = 0.05  # share of rows from which on their accuracy is no whim of a few
SMOOTHING = 0.9  # weight of the past in the smoothed loss: a memory of about ten steps


@dataclass(frozen=True)
class Picture:
    """An SVG as a page shows it; `wide`: across the page."""

    title: str
    caption: str
    svg: str
    wide: bool = False


@dataclass
class Sheet:
    """A figure while it is drawn, and its SVG afterwards."""

    axes: Sequence[Axes]
    figure: Figure
    svg: str = field(default="")


def confusion_matrix(table: Array, labels: Sequence[str]) -> str:
    """Shares of each actual class, stronger where more; table (actual, predicted) counts."""
    return _shaded(table, labels, labels, xlabel="predicted", ylabel="actual")


def loads(table: Array) -> str:
    """Which experts read most in each layer, stronger where more; table (layers, experts) counts."""
    layers, experts = (list(map(str, range(count))) for count in table.shape)
    return _shaded(table, layers, experts, xlabel="expert", ylabel="layer")


def routes(tables: Sequence[Array], domains: Sequence[str]) -> str:
    """Which experts read each domain, stronger where more, a panel a layer; (domains, experts) counts."""
    experts = tables[0].shape[1]
    high, wide = -(-len(tables) // ABREAST), min(len(tables), ABREAST)
    width, height = 2 + wide * (0.3 + 0.5 * experts), high * (0.9 + 0.3 * len(domains))
    with _drawing(wide, width=width, height=height, rows=high) as sheet:
        for number, axes in enumerate(sheet.axes):
            if number >= len(tables):
                axes.axis("off")
                continue
            shares = _shade(axes, tables[number])
            for (row, column), share in np.ndenumerate(shares) if max(shares.shape) <= NUMBERED else ():
                axes.text(column + 0.5, row + 0.5, f"{share:.0%}", ha="center", va="center", fontsize=8)
            axes.set_title(f"layer {number}", fontsize=10)
            axes.set_xticks(np.arange(experts) + 0.5, list(map(str, range(experts))))
            axes.set_yticks(np.arange(len(domains)) + 0.5, domains if number % wide == 0 else [])
        sheet.figure.supxlabel("expert", fontsize=10)
    return sheet.svg


def _shaded(table: Array, rows: Sequence[str], columns: Sequence[str], **told: str) -> str:
    """Shares of each row of counts, (rows, columns)."""
    wide, high = (2.2 + min(0.7 * len(names), 8) for names in (columns, rows))
    with _drawing(1, width=wide + 0.8, height=high) as sheet:
        axes = sheet.axes[0]
        shares = _shade(axes, table)
        for (row, column), count in np.ndenumerate(table) if max(table.shape) <= NUMBERED else ():
            text = f"{count:,}\n{shares[row, column]:.0%}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center")
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=0 if len(columns) <= 4 else 90)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set(aspect="equal", **told)
    return sheet.svg


def _shade(axes: Axes, table: Array) -> Array:
    """Draws the shares of each row of counts, (rows, columns), the first row on top, and returns them."""
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    cells = np.empty((*table.shape, 4))
    cells[..., :3], cells[..., 3] = colors.to_rgb(COLOURS[0]), 0.6 * shares
    axes.pcolormesh(cells, edgecolors="none")
    axes.invert_yaxis()
    return np.asarray(shares)


def reliability_diagram(tables: Mapping[str, Mapping[str, Array]]) -> str:
    """Accuracy over confidence for each contestant's bins, the area of a point its rows; on the diagonal a
    confidence means what it says. Tables as `metrics.reliability` gives them."""
    with _drawing(1, width=5.2, height=4.4) as sheet:
        axes = sheet.axes[0]
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
        for (name, table), colour in zip(tables.items(), COLOURS, strict=False):
            axes.plot(table["confidence"], table["accuracy"], color=colour, linewidth=1.5, label=name)
            sizes = 8 + 150 * table["rows"] / table["rows"].sum()
            axes.scatter(table["confidence"], table["accuracy"], s=sizes, color=colour)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(loc="upper left")
    return sheet.svg


def coverage_curve(coverage: Array, accuracy: Array, chosen: tuple[float, float] | None) -> str:
    """Accuracy of the rows that are answered over their share, (points,) each; `chosen`: what was decided."""
    with _drawing(1, width=5.2, height=4.4) as sheet:
        axes = sheet.axes[0]
        axes.plot(coverage, accuracy, color=COLOURS[0], linewidth=2)
        if chosen:
            axes.plot(*chosen, color=COLOURS[1], marker="o", markersize=8, linestyle="", label="chosen")
            axes.legend(loc="lower left")
        axes.set(xlabel="share of rows answered", ylabel="accuracy", xlim=(0, 1.02))
        settled = accuracy[coverage >= SETTLED] if len(coverage) else np.ones(1)
        axes.set_ylim(max(0.0, float(settled.min()) - 0.1), 1.02)
    return sheet.svg


def contestants(figures: Mapping[str, Mapping[str, Interval]]) -> str:
    """One panel a metric, one dot with its interval a contestant, the last two in colour."""
    names = list(figures)
    metrics = list(next(iter(figures.values())))
    colours = [*[INK] * (len(names) - 2), COLOURS[1], COLOURS[0]][-len(names) :]
    with _drawing(len(metrics), width=2 + 2.5 * len(metrics), height=1.1 + 0.36 * len(names)) as sheet:
        for axes, metric in zip(sheet.axes, metrics, strict=True):
            for place, name in enumerate(names):
                found, colour = figures[name][metric], colours[place]
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
                axes.plot(found.value, place, color=colour, marker="o", markersize=6)
            axes.set_title(metric, color=INK, fontsize=10)
            axes.set_yticks(range(len(names)), names if axes is sheet.axes[0] else [""] * len(names))
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(axis="x", color=INK, alpha=0.25)
            axes.locator_params(axis="x", nbins=4)
    return sheet.svg


def class_bars(table: Mapping[str, Array], ranges: Mapping[str, Array], labels: Sequence[str]) -> str:
    """Precision, recall and F1 of each class, as `metrics.per_class` gives them, with the intervals of
    `metrics.class_ranges`."""
    with _drawing(1, width=6, height=1.2 + 0.62 * len(labels)) as sheet:
        axes, places = sheet.axes[0], np.arange(len(labels))
        for offset, (name, colour) in enumerate(zip(("precision", "recall", "f1"), COLOURS, strict=False)):
            at, value, (low, high) = places + 0.25 * (offset - 1), table[name], ranges[name]
            axes.barh(at, value, height=0.23, color=colour, alpha=0.7, label=name)
            axes.hlines(at, np.minimum(low, value), np.maximum(high, value), color=INK, linewidth=1.5)
        rows = [f"{label} ({count:,})" for label, count in zip(labels, table["rows"], strict=True)]
        axes.set_yticks(places, rows)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return sheet.svg


def scatter(actual: Array, predicted: Array) -> str:
    """Predicted over actual scores, (rows,) each, in one scale for both."""
    with _drawing(1, width=5.2, height=4.8) as sheet:
        axes = sheet.axes[0]
        ends = [float(min(actual.min(), predicted.min())), float(max(actual.max(), predicted.max()))]
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=":")
        axes.plot(actual, predicted, color=COLOURS[0], alpha=0.4, linestyle="", marker=".", markersize=5)
        axes.set(xlabel="actual", ylabel="predicted")
        axes.set_aspect("equal", adjustable="datalim")
    return sheet.svg


def learning_curve(losses: Array, phases: Sequence[str]) -> str:
    """Training loss over optimizer steps, as it was and smoothed within each phase.

    losses (steps,), phases the name of each step's phase.
    """
    with _drawing(1, width=7, height=3.4) as sheet:
        axes, steps = sheet.axes[0], np.arange(1, len(losses) + 1)
        axes.plot(steps, losses, color=COLOURS[0], alpha=0.3, linewidth=0.8)
        borders = [0, *(i for i in range(1, len(phases)) if phases[i] != phases[i - 1]), len(phases)]
        for start, end in pairwise(borders):
            axes.plot(steps[start:end], smooth(losses[start:end]), color=COLOURS[0], linewidth=2)
            axes.axvline(steps[start], color=INK, linewidth=0.8, linestyle=":")
            place = (steps[start], 1.01)
            axes.annotate(phases[start], place, xycoords=("data", "axes fraction"), color=INK)
        axes.set(xlabel="optimizer step", ylabel="training loss", xlim=(1, max(len(losses), 2)))
        axes.set_ylim(bottom=0)
    return sheet.svg


def smooth(values: Array) -> Array:
    """Exponential mean with its start corrected (Kingma & Ba 2015, section 3): (steps,) -> (steps,)."""
    past, smoothed = 0.0, np.empty(len(values))
    for number, value in enumerate(values):
        past = SMOOTHING * past + (1 - SMOOTHING) * value
        smoothed[number] = past / (1 - SMOOTHING ** (number + 1))
    return smoothed


@contextmanager
def _drawing(panels: int, *, width: float, height: float, rows: int = 1) -> Iterator[Sheet]:
    """A sheet of rows of panels side by side, inches; its svg is there when the block ends."""
    with style.context(["default", dict(STYLE)], after_reset=True):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        sheet = Sheet(list(figure.subplots(rows, panels, squeeze=False).flat), figure)
        yield sheet
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        text = stream.getvalue()
        sheet.svg = text[text.index("<svg") :]  # without the XML prologue: a page holds it as it is
