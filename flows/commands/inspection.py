"""`regraft inspect`: a checkpoint as a picture of its floors, as a table of its values, or as JSON."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.commands import figures
from tasks import files, progress, references
from tasks.weights import anatomy, words
from tasks.weights.anatomy import Floor, Module, Place, Summary, Tensor
from tasks.weights.formats import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from tasks.weights.measures import Measures

WIDEST = 100  # columns; a wider picture is not easier to read
COLOURS = {
    "embeddings": "cyan", "attention": "magenta", "feed-forward": "green", "norm": "yellow",
    "state space": "magenta", "convolution": "green", "pooler": "blue", "head": "blue",
}  # fmt: skip
EIGHTHS = " ▏▎▍▌▋▊▉"
FIGURES = 18  # columns that parameters and their share take beside a bar


def opened(reference: str, root: Path, key: str | None = None) -> Checkpoint:
    """The checkpoint that a path or a reference, as in params.yaml, names; a file is a checkpoint too.

    key: of the dict of tensors in a PyTorch file that holds several.
    """
    path = root / Path(reference).expanduser()
    return open_checkpoint(path if path.is_file() else references.locate(reference, root=root), key)


def measured(checkpoint: Checkpoint) -> "dict[str, Measures]":
    """Name -> what the values of a tensor come to; reads them all, with a bar to watch."""
    from tasks.weights.measures import measure, pieces

    read = ((name, piece) for name, entry in checkpoint.entries.items() for piece in pieces(entry))
    total = sum(entry.size for entry in checkpoint.entries.values())
    watched = progress.track(read, total=total, description="reading values", size=lambda pair: pair[1].size)
    found = {name: measure(piece for _, piece in group) for name, group in groupby(watched, itemgetter(0))}
    return {name: found[name] if name in found else measure(()) for name in checkpoint.entries}


def as_json(reference: str, checkpoint: Checkpoint, values: "Mapping[str, Measures]") -> str:
    """All that `show` shows, for scripts; values that are not finite are null."""
    return files.canonical_json(
        {
            "reference": reference,
            **asdict(anatomy.summary(checkpoint)),
            "floors": [_floor_fields(floor) for floor in anatomy.floors(checkpoint.entries)],
            "tensors": [_tensor_fields(place, values) for place in anatomy.places(checkpoint.entries)],
        }
    )


def _floor_fields(floor: Floor) -> dict[str, Any]:
    parts = [{**asdict(part), "parameters": part.parameters} for part in floor.parts]
    return {**asdict(floor), "parts": parts, "parameters": floor.parameters}


def _tensor_fields(place: Place, values: "Mapping[str, Measures]") -> dict[str, Any]:
    entry, found = place.entry, values.get(place.entry.name)
    fields = {"name": entry.name, "shape": entry.shape, "dtype": entry.dtype, "bytes": entry.nbytes}
    where = {"floor": place.floor, "layer": place.number, "part": place.part}
    if found is None:
        return {**fields, **where}
    moments = {name: _finite(getattr(found, name)) for name in ("mean", "deviation", "minimum", "maximum")}
    return {**fields, **where, **moments, "zeros": found.zeros, "not_finite": found.not_finite}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def show(
    reference: str,
    checkpoint: Checkpoint,
    values: "Mapping[str, Measures]",
    *,
    console: Console | None = None,
) -> None:
    """The header and the floors, top down from the input; the table of values where there are any."""
    console = console or Console()
    width = min(console.width, WIDEST)
    summary, floors = anatomy.summary(checkpoint), anatomy.floors(checkpoint.entries)
    console.print(_header(reference, summary))
    console.print()
    for number, floor in enumerate(floors):
        if number:
            console.print(Text(("▼" if floor.kind != words.OTHER else "").center(width), style="dim"))
        console.print(_box(floor, summary, _name_width(floors, width), width))
    if values:
        console.print(_table(checkpoint, values, width))
        console.print(_total(values))


def _header(reference: str, summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _facts(reference, summary):
        table.add_row(name, Text(value, style="bold" if name == "checkpoint" else ""))
    return table


def _facts(reference: str, summary: Summary) -> Iterator[tuple[str, str]]:
    yield "checkpoint", reference
    if model := " · ".join(filter(None, (summary.model, summary.architecture))):
        yield "model", model
    stored = f"{summary.files} file{'s' if summary.files > 1 else ''}"
    yield "format", f"{summary.format} · {stored} · {figures.size(summary.bytes)}"
    yield "tensors", f"{summary.tensors:,}"
    yield "parameters", f"{figures.human(summary.parameters)} ({summary.parameters:,})"
    yield "dtypes", " · ".join(f"{dtype} {figures.human(count)}" for dtype, count in summary.dtypes.items())
    for names in summary.tied:
        yield "tied", " = ".join(names)
    if summary.headless:
        yield "tied", "the head, which is not stored, is the embeddings' table (tie_word_embeddings)"


def _box(floor: Floor, summary: Summary, names: int, width: int) -> Panel:
    """A floor: its bar, then for each part of a layer its own, then the tensors."""
    usual = next(iter(summary.dtypes), "")
    table = Table.grid(padding=(0, 1))
    table.add_column(width=names, overflow="fold")
    table.add_column(width=(room := width - names - 5), overflow="fold")
    tensors = sum(module.count * len(module.tensors) for part in floor.parts for module in part.modules)
    times = f"{floor.count} × " if floor.kind == words.LAYER else ""
    lengths = {part.kind: floor.count * part.parameters for part in floor.parts}
    count = Text(f"{times}{tensors} tensor{'s' if tensors > 1 else ''}", style="dim")
    table.add_row(count, _bar(lengths, summary.parameters, room))
    for part in floor.parts:
        if floor.kind == words.LAYER:
            own = {part.kind: lengths[part.kind]}
            table.add_row(Text(part.kind, style=_colour(part.kind)), _bar(own, summary.parameters, room))
        for module in part.modules:
            table.add_row(*_line(module, usual, names, room))
    return Panel(table, title=_title(floor), title_align="left", width=width, border_style="dim")


def _title(floor: Floor) -> Text:
    where = f"{floor.prefix}{'.' if floor.prefix and floor.numbers else ''}{figures.ranges(floor.numbers)}"
    if floor.kind == words.OTHER:
        where = "names that no list knows"
    name = f"{floor.count} × layer" if floor.kind == words.LAYER else floor.kind
    return Text.assemble((name, f"bold not dim {_colour(floor.kind)}"), f" · {where}" if where else "")


def _colour(kind: str) -> str:
    return COLOURS.get(kind, "default")  # of the terminal, dark or light


def _bar(lengths: Mapping[str, int], whole: int, room: int) -> Text:
    """Parameters as blocks, a colour for each part, beside their number and share of the whole."""
    longest, total, text, done = max(1, room - FIGURES), sum(lengths.values()), Text(), 0
    for kind, length in lengths.items():
        done += length
        text.append("█" * (longest * done // max(1, whole) - len(text)), style=_colour(kind))
    begun = longest * 8 * total // max(1, whole) % 8
    if begun or (total and not text):
        text.append(EIGHTHS[max(1, begun)], style=_colour([*lengths][-1]))
    text.append(" " * (longest - len(text)))
    return text.append(f"{figures.human(total):>9} {figures.share(total, whole):>8}", style="bold")


def _line(module: Module, usual: str, names: int, room: int) -> tuple[Text, Text]:
    """A module's name and its tensors, on one line where there is room."""
    alone = not module.name and len(module.tensors) == 1
    shapes = [_shape(tensor, usual, named=not alone) for tensor in module.tensors]
    line = Text(" · ").join(shapes)
    return _folded(_name(module), names), line if len(line) <= room else Text("\n").join(shapes)


def _folded(name: str, room: int) -> Text:
    """A name that is too long goes on in a second line, from its last dot."""
    before, dot, last = name.rpartition(".")
    return Text(f"  {name}" if len(name) + 2 <= room or not dot else f"  {before}.\n    {last}")


def _name(module: Module) -> str:
    alone = not module.name and len(module.tensors) == 1
    times = f"{module.count} × " if module.count > 1 else ""
    return times + (module.tensors[0].word if alone else module.name)


def _shape(tensor: Tensor, usual: str, *, named: bool) -> Text:
    """A tensor's word, shape, and whatever of it is unlike the others."""
    text = Text.assemble((f"{tensor.word} " if named else "", "dim"), _sizes(tensor.shape))
    if tensor.dtype != usual:
        text.append(f" {tensor.dtype}", style="yellow")
    return text.append(f" = {tensor.tied}", style="dim") if tensor.tied else text


def _sizes(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def _name_width(floors: tuple[Floor, ...], width: int) -> int:
    """Columns for names: what the longest takes, but at most half."""
    modules = (module for floor in floors for part in floor.parts for module in part.modules)
    longest = max((len(_name(module)) for module in modules), default=0)
    return max(16, min(width // 2, longest + 2))


def _table(checkpoint: Checkpoint, values: "Mapping[str, Measures]", width: int) -> Table:
    """A row a tensor, under a heading for each layer; a narrow one has shape and dtype below the name."""
    wide, faulty = width >= WIDEST, any(found.not_finite for found in values.values())
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, width=width)
    table.add_column("tensor", overflow="fold", ratio=1)
    if wide:
        table.add_column("shape", justify="right", style="dim")
        table.add_column("dtype", style="dim")
    for name in ("mean", "std", "min", "max", "zeros", *(["not finite"] if faulty else [])):
        table.add_column(name, justify="right")
    for heading, places in groupby(anatomy.places(checkpoint.entries), _heading):
        table.add_row(Text(heading, style="bold"))
        for place in places:
            cells = _cells(values[place.entry.name], faulty=faulty)
            table.add_row(*_described(place, wide=wide), *cells)
    return table


def _heading(place: Place) -> str:
    if place.floor == words.LAYER:
        return f"{place.prefix}{'.' if place.prefix else ''}{place.number}"
    return f"{place.floor} · {place.prefix}" if place.prefix else place.floor


def _described(place: Place, *, wide: bool) -> list[Text]:
    sizes, dtype = _sizes(place.entry.shape), place.entry.dtype
    if wide:
        return [Text(f"  {place.name}"), Text(sizes), Text(dtype)]
    return [Text.assemble(f"  {place.name}", (f"\n    {sizes} {dtype}", "dim"))]


def _cells(found: "Measures", *, faulty: bool) -> list[Text]:
    moments = (found.mean, found.deviation, found.minimum, found.maximum)
    cells = [Text(figures.figure(value)) for value in moments]
    cells.append(Text(figures.share(found.zeros, found.size) if found.zeros else ""))
    if faulty:
        cells.append(Text(f"{found.not_finite:,}" if found.not_finite else "", style="bold red"))
    return cells


def _total(values: "Mapping[str, Measures]") -> Text:
    faulty = [name for name, found in values.items() if found.not_finite]
    if not faulty:
        return Text("every value is finite", style="green")
    count = sum(values[name].not_finite for name in faulty)
    many = f"{len(faulty)} tensors" if len(faulty) > 1 else faulty[0]
    return Text(f"{count:,} values in {many} are not finite", style="bold red")
