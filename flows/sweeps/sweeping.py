"""`regraft sweep` at the terminal: what would be tried, what came of it, and what to do with the winner."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.commands import forecast as forecasts
from flows.sweeps import axes, search
from tasks import params as parameters
from tasks.artifacts import Evaluation
from tasks.sweeps.pictures import short
from tasks.sweeps.results import Result

if TYPE_CHECKING:
    from flows.sweeps.sweep import Swept


def check(root: Path, presets: str | None, assignments: Sequence[str], trials: int | None) -> axes.Space:
    """What is to be tried. Raises ParamsError or InputError before anything is started."""
    space = axes.space(parameters.load(root / "params.yaml"), presets, assignments)
    search.proposals(space, trials, 1)
    return space


def forecast(root: Path, presets: str | None, assignments: Sequence[str], trials: int | None) -> None:
    """Print the trials, or the ranges of a search, and the stages that would run. Runs nothing."""
    console, space = Console(), check(root, presets, assignments, trials)
    some = space.grid() if trials is None else search.proposals(space, trials, 1).next()
    changed = forecasts.touched(root, some[0].params, [trial.params for trial in some])
    now = forecasts.stages(root, space.base, some[0].params)
    places = [stage.name for stage in now]
    shared = places[: places.index("finetuning")]
    once = [stage.name for stage in now if stage.name in shared and stage.state != forecasts.UNCHANGED]
    console.print(f"once, for all trials: {', '.join(once)}", highlight=False, soft_wrap=True)
    if trials is not None:
        _ranges(console, space, trials)
        return
    table = Table(title=f"{len(some)} trials", box=SIMPLE_HEAD)
    for column in ("trial", *(short(axis.key) for axis in space.varying), "runs"):
        table.add_column(column, overflow="fold")
    for trial, stages in zip(some, changed, strict=True):
        again = [*(stage for stage in stages if stage in shared), "finetuning"]
        table.add_row(trial.name, *trial.changes.values(), ", ".join(again))
    console.print(table)
    console.print("then evaluation of the best; what DVC's cache holds is not run again", highlight=False)


def _ranges(console: Console, space: axes.Space, trials: int) -> None:
    console.print(f"{trials} trials proposed by optuna, each runs finetuning", highlight=False)
    for axis in space.varying:
        console.print(f"  {axis.key}: {axis.told}", highlight=False, soft_wrap=True)


def carry_out(
    root: Path,
    presets: str | None,
    assignments: Sequence[str],
    trials: int | None,
    *,
    jobs: int,
    promote: bool,
) -> int:
    """Run the sweep and print what came of it; returns the exit code."""
    from flows.sweeps.sweep import sweep

    logging.getLogger("dvc").setLevel(logging.WARNING)
    swept = sweep(tuple(assignments), presets, trials, jobs, root)
    show(swept, root)
    failed = any(result.failure for result in swept.results)
    if not promote or swept.winner is None or swept.root is None:
        return int(failed)
    from tasks.stages import promotion

    record = promotion.promote_by_hand(swept.winner.params, swept.root, force=False, reason="")
    for line in (f"{record.outcome}: {record.model} version {record.version}", *record.reasons):
        Console().print(line, highlight=False, soft_wrap=True)
    return int(failed) or (0 if record.outcome == "promote" else 3)


def show(swept: "Swept", root: Path) -> None:
    """The trials, best first; the winner's test figures; the failures; what to do next."""
    console = Console()
    console.print(_table(swept.results, swept.select))
    for result in swept.results:
        if result.failure:
            console.print(f"[red]failed[/red] {result.trial}: ", end="")
            console.print(result.failure, highlight=False, markup=False, soft_wrap=True)
    console.print(f"  {root / 'reports' / 'sweep.html'}", highlight=False, soft_wrap=True)
    if swept.winner is None or swept.root is None:
        return
    evaluation = Evaluation.load(swept.root)
    console.print(f"the best, on {evaluation.rows:,} test rows that no trial has seen:", highlight=False)
    for name, value in sorted(evaluation.metrics["model"].items()):
        told = f"{value['value']:.3f} [dim]{value['low']:.3f}–{value['high']:.3f}[/dim]"
        console.print(f"  {name.replace('_', ' ')} {told}", highlight=False)
    console.print("to make it the project's own:", highlight=False)
    console.print(f"  {swept.winner.command}", highlight=False, markup=False, soft_wrap=True)
    console.print("to ask the gate for it:", highlight=False)
    command = shlex.join(["regraft", "promote", "--root", str(swept.root)])
    console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def _table(results: Sequence[Result], select: str) -> Table:
    figures = list(next((result.figures for result in results if not result.failure), {}))
    title = f"{len(results)} trials, best first by validation {select}"
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("trial", *map(short, results[0].changes)):
        table.add_column(column, overflow="fold")
    for column in (*figures, "seconds"):
        table.add_column(column, justify="right")
    for result in results:
        told = [f"{result.figures[name]:.4f}" for name in figures if not result.failure]
        seconds = f"{result.seconds:.1f}{' (from cache)' * result.cached}"
        row = ["failed"] if result.failure else [*told, seconds]
        table.add_row(result.trial, *result.changes.values(), *row)
    return table
