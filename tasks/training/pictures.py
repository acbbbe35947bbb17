"""Pictures of a training as SVG text: which floor moved when, and how well it went. The same events give the
same bytes.

Phases stand side by side, each on a scale of its own: one of 150 steps shows as much as one of 1,500.
Backgrounds are transparent; INK marks what a page may replace by its own text colour.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from tasks.training.events import Change, Event, Finished, Measure
from tasks.training.loop import Step
from tasks.training.phases import NEW

Array = NDArray[Any]

INK = "#767676"  # contrast 4.5 on white, 4.6 on black
BLUE, ORANGE = "#3b7dd8", "#d9822b"  # told apart by every kind of colour blindness
MAP = "viridis"  # equal steps look equal, also in grey
HATCH = "////"
NARROWEST = 0.16  # share of the width that the shortest phase gets, where that many fit
DECADES = 100.0  # largest change over the smallest that has a colour of its own
SMOOTHING = 0.9  # weight of the past in the smoothed loss: a memory of about ten steps
STYLE: Mapping[str, Any] = {
    "svg.hashsalt": "regraft",  # ids would be random otherwise
    "svg.fonttype": "none",  # text stays text: searchable, and a page can recolour it
    "font.family": "sans-serif",
    "font.size": 10.0,
    "hatch.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Stretch:
    """One phase on the axis of all optimizer steps: (start, stop], `best` the step whose weights were kept.

    steps, losses, rates (steps,); told (changes,) the steps at which changes were told, moved
    (floors, changes) what they were, floors bottom to top; measured (epochs,), figures name -> (epochs,).
    frozen (floors,): nothing on the floor learned.
    """

    name: str
    start: int
    stop: int
    best: int
    steps: Array
    losses: Array
    rates: Array
    told: Array
    moved: Array
    measured: Array
    figures: Mapping[str, Array]
    frozen: Array


@dataclass
class Sheet:
    """A figure while it is drawn, panels (rows, phases), and its SVG afterwards."""

    panels: Array
    figure: Figure
    svg: str = field(default="")


def stretches(told: Sequence[Event]) -> list[Stretch]:
    """The phases that `told` says are finished, in their order."""
    found: list[Stretch] = []
    for end in (event for event in told if isinstance(event, Finished)):
        found.append(_stretch(told, end, found[-1].stop if found else 0))
    return found


def frozen(floors: Sequence[str], learning: Sequence[str]) -> Array:
    """(floors,) bool. The rows of new tokens are part of the lowest floor."""
    moving = {*learning, *([floors[0]] if NEW in learning else [])}
    return np.array([floor not in moving for floor in floors])


def _stretch(told: Sequence[Event], end: Finished, start: int) -> Stretch:
    steps = [event for event in told if isinstance(event, Step) and event.phase == end.name]
    changes = [event for event in told if isinstance(event, Change) and event.phase == end.name]
    measures = [event for event in told if isinstance(event, Measure) and event.phase == end.name]
    return Stretch(
        name=end.name,
        start=start,
        stop=start + end.steps,
        best=start + end.best,
        steps=np.array([start + step.number for step in steps]),
        losses=np.array([step.loss for step in steps]),
        rates=np.array([step.learning_rate for step in steps]),
        told=np.array([start + change.step for change in changes]),
        moved=np.array([list(change.floors.values()) for change in changes]).T,
        measured=np.array([start + measure.step for measure in measures]),
        figures={name: np.array([one.figures[name] for one in measures]) for name in end.figures},
        frozen=frozen(list(changes[0].floors), end.floors),
    )


def heat_map(phases: Sequence[Stretch], floors: Sequence[str]) -> str:
    """How far each floor stood from where it began after each told step, ||w - w0|| / ||w0||, in colours as
    `scale` says; hatched where it was frozen; on the right the model that was kept."""
    with _drawing(phases, [1], height=1.5 + 0.34 * len(floors)) as sheet:
        norm = LogNorm(*scale(np.concatenate([phase.moved for phase in phases], axis=1)))
        for axes, phase in zip(sheet.panels[0], phases, strict=True):
            mesh = _cells(axes, phase, norm)
            _hatch(axes, phase)
            axes.tick_params(axis="y", length=0)
        sheet.panels[0, 0].set_yticks(np.arange(len(floors)) + 0.5, floors)
        _label_kept(sheet.panels[0, -1], phases[-1])
        _explain(sheet, mesh)
    return sheet.svg


def curves(phases: Sequence[Stretch], *, select: str) -> str:
    """Loss, the validation figure by which epochs are chosen and the highest learning rate over steps.

    The training loss is drawn as it was and smoothed within each phase.
    """
    chosen = [] if select == "loss" else [select]
    with _drawing(phases, [3, *[2 for _ in chosen], 1.2], height=4.2 + 1.3 * len(chosen)) as sheet:
        for column, phase in enumerate(phases):
            top, *between, bottom = sheet.panels[:, column]
            top.plot(phase.steps, phase.losses, color=BLUE, alpha=0.3, linewidth=0.8)
            top.plot(phase.steps, smooth(phase.losses), color=BLUE, linewidth=2, label="training, smoothed")
            for axes, name in zip([top, *between], ["loss", *chosen], strict=True):
                _measured(axes, phase, name, best=name == select)
            bottom.plot(phase.steps, phase.rates, color=INK, linewidth=1.5)
        _label_rows(sheet, ["loss", *chosen, "learning rate"])
        sheet.panels[-1, 0].set_yscale("log")
        sheet.panels[-1, 0].minorticks_off()
        sheet.panels[-1, 0].yaxis.set_major_formatter("{x:g}")
        sheet.panels[-1, 0].set_ylim(bottom=min(phase.rates.max() for phase in phases) / 30)
        drawn = [axes.get_legend_handles_labels() for axes in sheet.panels[:, 0]]
        key = {label: handle for found in drawn for handle, label in zip(*found, strict=True)}
        sheet.figure.legend(key.values(), key.keys(), loc="outside upper left", ncols=len(key))
    return sheet.svg


def smooth(values: Array) -> Array:
    """Exponential mean with its start corrected (Kingma & Ba 2015, section 3): (steps,) -> (steps,)."""
    past, smoothed = 0.0, np.empty(len(values))
    for number, value in enumerate(values):
        past = SMOOTHING * past + (1 - SMOOTHING) * value
        smoothed[number] = past / (1 - SMOOTHING ** (number + 1))
    return smoothed


def percent(share: float) -> str:
    """Three digits, whatever the size: 273 %, 0.0603 %."""
    return f"{100 * share:.3g} %"


def scale(moved: Array) -> tuple[float, float]:
    """The two ends of the colours for changes (floors, told): two decades, up to the largest below the head.

    A head that began at random moves by its own length; with its changes at the end of the scale all layers
    would look alike. Where nothing but the head has moved, it sets the end itself.
    """
    highest = moved[:-1].max(initial=0.0) or moved.max(initial=0.0) or 1.0
    return float(highest) / DECADES, float(highest)


def _cells(axes: Axes, phase: Stretch, norm: LogNorm) -> QuadMesh:
    """A cell reaches from one told step to the next; what has not moved has no colour."""
    edges = np.array([phase.start, *phase.told])
    values = np.ma.masked_less_equal(phase.moved, 0)
    rows = np.arange(len(phase.moved) + 1)
    return axes.pcolormesh(edges, rows, values, norm=norm, cmap=MAP, edgecolors="face", linewidth=0.8)


def _hatch(axes: Axes, phase: Stretch) -> None:
    for still, run in groupby(range(len(phase.frozen)), key=lambda floor: bool(phase.frozen[floor])):
        rows = list(run)
        if still:
            place, width = (phase.start, rows[0]), phase.stop - phase.start
            axes.add_patch(
                Rectangle(place, width, len(rows), fill=False, hatch=HATCH, edgecolor=INK, linewidth=0)
            )


def _explain(sheet: Sheet, mesh: QuadMesh) -> None:
    """The bar of colours and the key."""
    bar = sheet.figure.colorbar(mesh, ax=list(sheet.panels[0]), aspect=24, pad=0.02, extend="both")
    bar.set_label("distance from the start, ‖w − w₀‖ / ‖w₀‖", color=INK)
    bar.ax.yaxis.set_major_formatter(lambda share, _: percent(share))
    bar.minorticks_off()
    bar.outline.set_visible(False)
    key = Patch(facecolor="none", edgecolor=INK, hatch=HATCH, linewidth=0, label="frozen")
    sheet.figure.legend(handles=[key], loc="outside upper left")


def _label_kept(axes: Axes, phase: Stretch) -> None:
    """The numbers of the weights that were kept, beside their floors."""
    kept = phase.moved[:, list(phase.told).index(phase.best)]
    for row, value in enumerate(kept):
        place = (1.04, row + 0.5)
        axes.annotate(percent(value), place, xycoords=("axes fraction", "data"), va="center")
    axes.annotate(
        "kept", (1.04, len(kept)), (0, 6), xycoords=("axes fraction", "data"), textcoords="offset points"
    )


def _measured(axes: Axes, phase: Stretch, name: str, *, best: bool) -> None:
    values = phase.figures[name]
    look: dict[str, Any] = {"color": ORANGE, "clip_on": False}  # the last epoch ends on the border
    axes.plot(phase.measured, values, linewidth=1.2, marker="o", markersize=4, label="validation", **look)
    if best:
        value = values[list(phase.measured).index(phase.best)]
        axes.plot(phase.best, value, marker="*", markersize=13, linestyle="", label="best epoch", **look)
        axes.annotate(f"{value:.3f}", (phase.best, value), (-5, 8), textcoords="offset points", ha="right")
        axes.margins(y=0.2)


def _label_rows(sheet: Sheet, names: Sequence[str]) -> None:
    for row, name in zip(sheet.panels, names, strict=True):
        row[0].set_ylabel(name)
        for axes in row:
            axes.grid(axis="y", color=INK, alpha=0.25)
    sheet.figure.align_ylabels()


@contextmanager
def _drawing(phases: Sequence[Stretch], heights: Sequence[float], *, height: float) -> Iterator[Sheet]:
    """A sheet with a column of panels for each phase, named above, its steps below; inches."""
    total = phases[-1].stop
    narrowest = min(NARROWEST, 1 / len(phases))
    widths = [max((phase.stop - phase.start) / total, narrowest) for phase in phases]
    with style.context(["default", dict(STYLE)], after_reset=True):  # whatever the user's matplotlibrc says
        spacing = ConstrainedLayoutEngine(w_pad=0.02, wspace=0.0)
        figure = Figure(figsize=(max(9.0, 2.5 + 1.1 * len(phases)), height), layout=spacing)
        FigureCanvasSVG(figure)
        panels = figure.subplots(
            len(heights), len(phases), squeeze=False, sharex="col", sharey="row",
            width_ratios=widths, height_ratios=heights,
        )  # fmt: skip
        for column, phase in enumerate(phases):
            _name_phase(panels[:, column], phase, wide=widths[column] > 0.4)
        figure.supxlabel("optimizer step", fontsize=10)
        sheet = Sheet(panels, figure)
        yield sheet
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        text = stream.getvalue()
        sheet.svg = text[text.index("<svg") :]  # without the XML prologue: a page holds it as it is


def _name_phase(column: Array, phase: Stretch, *, wide: bool) -> None:
    """Its name above, where it begins and ends below, its border at the left."""
    column[0].set_title(phase.name, color=INK, fontsize=10)
    ticks = np.linspace(phase.start, phase.stop, 5 if wide else 2).round()
    for axes in column:
        axes.set_xlim(phase.start, phase.stop)
    column[-1].set_xticks(ticks if phase.start == 0 else ticks[1:], labels=None)
    column[-1].xaxis.set_major_formatter("{x:,.0f}")
