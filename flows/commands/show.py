"""What the command line prints: tables for people."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.commands.check import Check
from flows.commands.figures import size
from tasks.artifacts import SPLITS, Evaluation, PreparedText, Promotion

if TYPE_CHECKING:  # heavy, and shown by a command each
    from flows.commands.forecast import Source, StageForecast
    from flows.commands.housekeeping import Kind
    from flows.commands.status import Part
    from tasks.stages.drift import Drift

NAMES = {  # contestant -> what it is, in the order of the table
    "majority": "majority",
    "shares": "shares",
    "mean": "mean",
    "lookup": "lookup",
    "unigram": "unigram",
    "pretrained": "pretrained",
    "zero_shot": "zero-shot",
    "k_shot": "k-shot",
    "tfidf": "TF-IDF",
    "frozen": "frozen features",
    "head": "head only",
    "model": "unfrozen",
}


def results(root: Path, checkout: Path) -> None:
    """The results table, the verdict, and where to look."""
    console = Console()
    evaluation, promotion, text = Evaluation.load(root), Promotion.load(root), PreparedText.load(root)
    rows = ", ".join(f"{text.rows[split]:,} {split}" for split in SPLITS)
    table = Table(title=f"{promotion.model} (rows: {rows})", box=SIMPLE_HEAD)
    table.add_column("contestant")
    metrics = sorted(next(iter(evaluation.metrics.values())))
    for metric in metrics:
        table.add_column(metric.replace("_", " "), justify="right")
    for contestant in sorted(evaluation.metrics, key=[*NAMES, *evaluation.metrics].index):
        values = evaluation.metrics[contestant]
        table.add_row(NAMES.get(contestant, contestant), *(_interval(values[metric]) for metric in metrics))
    console.print(table)
    console.print(f"[bold]{promotion.outcome}[/bold]: {promotion.model} version {promotion.version}")
    for reason in promotion.reasons:
        console.print(f"  {reason}", highlight=False, soft_wrap=True)
    _where_to_look(console, root, checkout)


def _where_to_look(console: Console, root: Path, checkout: Path) -> None:
    for page in [*sorted((root / "reports").glob("*.html")), root / "reports" / "promotion.md"]:
        console.print(f"  {page}", highlight=False, soft_wrap=True)
    store = (checkout / ".regraft" / "mlflow.db").resolve()
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        console.print(f"  MLflow: {address}", highlight=False, soft_wrap=True)
    elif store.exists():
        uri = f'"sqlite:///{store}"' if " " in str(store) else f"sqlite:///{store}"
        console.print(f"  mlflow ui --backend-store-uri {uri}", highlight=False, soft_wrap=True)


def tracking(root: Path) -> None:
    """Say it where what stages told has not reached MLflow."""
    from tasks.tracking import spool

    if degraded := spool.told(root):
        Console().print(f"[bold red]{degraded}[/bold red]", highlight=False, soft_wrap=True)


def _interval(value: Mapping[str, Any]) -> str:
    low, high = (f"{value[end]:.3f}".removeprefix("0") for end in ("low", "high"))
    return f"{value['value']:.3f} [dim]{low}–{high}[/dim]"


def checks(found: Iterable[Check]) -> None:
    console = Console()
    for check in found:
        mark = "[green]ok  [/green]" if check.ok else "[red]FAIL[/red]"
        console.print(f"{mark} {check.name}: {check.finding}", highlight=False, soft_wrap=True)
        if not check.ok:
            console.print(f"       remedy: {check.remedy}", highlight=False)


def parts(found: "Iterable[Part]") -> None:
    console = Console()
    for part in found:
        console.print(f"[bold]{part.name}[/bold]")
        for line in part.lines or ("none yet",):
            style = "red" if part.fault else None
            console.print(f"  {line}", style=style, highlight=False, soft_wrap=True, markup=False)


def leftovers(kinds: "Iterable[Kind]", *, deleted: bool) -> bool:
    """Each kind as soon as it is known, and bytes in all; whether one could not be looked at or deleted."""
    console, total, fault = Console(), 0, False
    for kind in kinds:
        console.print(f"[bold]{kind.name}[/bold]")
        lines = [f"{size(one.size):>9}  {one.name}: {one.reason}" for one in kind.leftovers]
        for line in [*lines, *kind.told] or ["nothing"]:
            style = "red" if kind.fault and line in kind.told else None
            console.print(f"  {line}", style=style, highlight=False, soft_wrap=True, markup=False)
        total, fault = total + sum(one.size for one in kind.leftovers), fault or kind.fault
    end = "deleted: {} freed" if deleted else "{} in all; nothing was deleted: --yes deletes"
    console.print(end.format(size(total)), highlight=False)
    return fault


def forecast(stages: "Sequence[StageForecast]", sources: "Sequence[Source]") -> None:
    console = Console()
    table = Table(title="what would run")
    for column in ("stage", "state", "because", "holds now"):
        table.add_column(column)
    for stage in stages:
        table.add_row(stage.name, stage.state, stage.because, _size(stage.size))
    console.print(table)
    table = Table(title="what it reads")
    for column in ("source", "reference", "found", "size"):
        table.add_column(column)
    for source in sources:
        table.add_row(source.name, source.reference, source.found, _size(source.size))
    console.print(table)


def drift(found: "Drift", root: Path) -> None:
    """A line a measure, each beside what chance makes of as many rows."""
    console = Console()
    console.print(found.headline, highlight=False, soft_wrap=True)
    if found.measures:
        view = Table(box=SIMPLE_HEAD)
        view.add_column("")
        for column in ("value", "by chance", "p"):
            view.add_column(column, justify="right")
        view.add_column("", overflow="fold")
        for one in found.measures:
            figures = (f"{one.value:.4f}", f"{one.chance:.4f}", f"{one.p_value:.3f}")
            verdict = "[red]differs[/red]" if one.differs else "alike"
            view.add_row(one.name, *figures, f"{verdict}\n[dim]{escape(one.told)}[/dim]")
        console.print(view)
    for name, why in found.silent.items():
        console.print(f"  {name}: {why}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"  {root / 'reports' / 'drift.html'}", highlight=False, soft_wrap=True, markup=False)


def comparison(table: Sequence[Mapping[str, Any]]) -> None:
    """One column per run; below it its figures, and the params in which the runs differ."""
    console = Console()
    if not table:
        console.print("no finished run yet: `regraft run` makes one")
        return
    view = Table(title="runs, newest first", box=SIMPLE_HEAD)
    view.add_column("")
    for row in table:
        view.add_column(str(row["run"]), justify="right", overflow="fold")
    keys = [key for key in dict.fromkeys(key for row in table for key in row) if key != "run"]
    for key in sorted(keys, key=lambda key: key.startswith("test.")):
        values = [_cell(row.get(key)) for row in table]
        if key in ("started", "state") or key.startswith("test.") or len(set(values)) > 1:
            view.add_row(key, *values)
    console.print(view)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _size(count: int | None) -> str:
    return "" if count is None else size(count)
