"""Pictures of a sweep as SVG text: what led where. The same results give the same bytes.

Backgrounds are transparent; INK and PAPER mark what a page may replace by its own colours.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tasks.sweeps.results import Result, descending

Array = NDArray[Any]

INK = "#767676"  # contrast 4.5 on white, 4.6 on black
PAPER = "#fdfdfd"  # behind a label that lines would cross
BLUE, ORANGE = "#3b7dd8", "#d9822b"  # told apart by every kind of colour blindness
MAP = "viridis"  # equal steps look equal, also in grey
STYLE: Mapping[str, Any] = {
    "svg.hashsalt": "regraft",  # ids would be random otherwise
    "svg.fonttype": "none",  # text stays text: searchable, and a page can recolour it
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.parse_math": False,  # a value may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
LISTED = 8  # different numbers up to which each has a place of its own; more stand on a scale
LONG = 22  # characters of a value that are shown
DECADE = 10.0  # highest number over the lowest from which the scale is logarithmic


@dataclass(frozen=True)
class Scale:
    """Where the values of one axis stand between 0 and 1: places (trials,), ticks place -> label."""

    places: Array
    ticks: Mapping[float, str]


@dataclass
class Sheet:
    """A figure while it is drawn, and its SVG afterwards."""

    axes: Axes
    figure: Figure
    svg: str = field(default="")


def trials(ranked: Sequence[Result], select: str) -> str:
    """`ranked` as `results.ranked` gives them, at least one, none failed: parallel coordinates where several
    things vary, else dots over the values of the only one."""
    draw = parallel if len(ranked[0].changes) > 1 else dots
    return draw(ranked, select)


def dots(ranked: Sequence[Result], select: str) -> str:
    """The figure of each trial over the value that it tried; the best is a star."""
    (key,) = ranked[0].changes
    places = scale([result.changes[key] for result in ranked])
    figures = np.array([result.figures[select] for result in ranked])
    with _drawing(width=7.0, height=3.6) as sheet:
        sheet.axes.plot(places.places[1:], figures[1:], "o", color=BLUE, alpha=0.8)
        sheet.axes.plot(places.places[:1], figures[:1], "*", color=ORANGE, markersize=14)
        sheet.axes.set_xticks(list(places.ticks), list(places.ticks.values()))
        sheet.axes.set(xlabel=short(key), ylabel=f"validation {select}", xlim=(-0.08, 1.08))
        sheet.axes.grid(axis="y", color=INK, alpha=0.25)
        sheet.axes.margins(y=0.15)
    return sheet.svg


def parallel(ranked: Sequence[Result], select: str) -> str:
    """A line a trial across an upright scale for each thing that varies, ending at its figure; the lighter
    the better, the best thick (Inselberg, 1985)."""
    keys = list(ranked[0].changes)
    scales = [scale([result.changes[key] for result in ranked]) for key in keys]
    last = _figures([result.figures[select] for result in ranked])
    merit = last.places if descending(select) else 1 - last.places
    places = np.stack([*(one.places for one in scales), last.places], axis=1)  # (trials, axes)
    with _drawing(width=max(7.0, 2.2 * places.shape[1]), height=4.2) as sheet:
        for row in reversed(range(len(ranked))):
            look = {"color": ORANGE, "linewidth": 3.0} if row == 0 else {"color": colormaps[MAP](merit[row])}
            sheet.axes.plot(places[row], **{"linewidth": 1.3, **look})
        for column, one in enumerate([*scales, last]):
            _upright(sheet.axes, column, one)
        sheet.axes.set_xticks(range(places.shape[1]), [*map(short, keys), f"validation {select}"])
        sheet.axes.set(yticks=[], ylim=(-0.08, 1.08), xlim=(-0.4, places.shape[1] - 0.4))
        sheet.axes.spines[["left", "bottom"]].set_visible(False)
        sheet.axes.tick_params(axis="x", length=0)
    return sheet.svg


def scale(values: Sequence[str]) -> Scale:
    """Numbers by size, evenly where they are few; everything else in the order in which it first occurs."""
    numbers = _numbers(values)
    if numbers is not None and len(set(numbers)) > LISTED:
        return _figures(numbers, logarithmic=min(numbers) > 0 and max(numbers) >= DECADE * min(numbers))
    order = list(dict.fromkeys(values))
    if numbers is not None:
        order.sort(key=float)
    steps = max(1, len(order) - 1)
    places = np.array([order.index(value) / steps for value in values])
    return Scale(places, {place / steps: _cut(value) for place, value in enumerate(order)})


def short(key: str) -> str:
    """A dotted key without the name of the section that most of them are in."""
    return key.removeprefix("finetuning.")


def _figures(numbers: Sequence[float], *, logarithmic: bool = False) -> Scale:
    values = np.log(numbers) if logarithmic else np.array(numbers)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return Scale(np.full(len(values), 0.5), {0.5: f"{numbers[0]:.4g}"})
    ends = {0.0: min(numbers), 1.0: max(numbers)}
    middle = float(np.exp((low + high) / 2)) if logarithmic else (low + high) / 2
    ticks = {place: f"{value:.4g}" for place, value in {**ends, 0.5: middle}.items()}
    return Scale((values - low) / (high - low), ticks)


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def _cut(value: str) -> str:
    return value if len(value) <= LONG else f"{value[: LONG - 1]}…"


def _upright(axes: Axes, column: int, one: Scale) -> None:
    axes.axvline(column, color=INK, linewidth=0.8)
    behind = {"boxstyle": "round,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.85}
    look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": behind}
    for place, label in one.ticks.items():
        axes.annotate(label, (column, place), (6, 0), zorder=5, **look)


@contextmanager
def _drawing(*, width: float, height: float) -> Iterator[Sheet]:
    """A sheet with one panel; inches."""
    with style.context(["default", dict(STYLE)], after_reset=True):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        sheet = Sheet(figure.subplots(), figure)
        yield sheet
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        text = stream.getvalue()
        sheet.svg = text[text.index("<svg") :]  # without the XML prologue: a page holds it as it is
