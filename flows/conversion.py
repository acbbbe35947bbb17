"""`regraft convert` and `plan-weights`: a checkpoint in other names, and what becomes of every tensor."""

import json
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows import figures
from flows.inspection import opened
from tasks import files
from tasks.errors import InputError
from tasks.weights import transcribe
from tasks.weights.families import find_naming
from tasks.weights.plan import Plan
from tasks.weights.rules import KEEP
from tasks.weights.transcribe import Transcription

PRESERVES = {
    "exact": "computes exactly what the source does",
    "approximate": "computes nearly what the source does",
    "no": "does not compute what the source did",
}


def planned(
    reference: str, family: str, *, reverse: bool, key: str | None, layers: str | None, root: Path
) -> Transcription:
    """layers: numbers with commas between them, as a person types them; None: all."""
    taken = None if layers is None else numbers(layers)
    return transcribe.planned(
        opened(reference, root, key), find_naming(family), reverse=reverse, layers=taken
    )


def numbers(text: str) -> tuple[int, ...]:
    """Raises InputError with everything between commas that is no number."""
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdecimal())]:
        raise InputError(
            f"--layers {text}: write numbers from 0 on, such as 0,2,4, not {', '.join(map(repr, wrong))}"
        )
    return tuple(map(int, parts))


def convert(made: Transcription, target: Path, *, load: bool) -> dict[str, str]:
    """Convert as planned, and prove it; returns level -> what was found."""
    return transcribe.transcribe(made, target, prove=partial(_loaded, made) if load else None)


def _loaded(made: Transcription, directory: Path) -> dict[str, str]:
    from tasks.weights import proof  # imports torch

    if made.reverse:
        return {"shapes": proof.fits(made.plan, made.theirs, made.architecture)}
    found = {"load": proof.loads(directory)}
    if made.whole and made.plan.preserves == "exact":
        found["parity"] = proof.preserved(made.whole.plan, made.whole.config, directory)
    return found


def written(made: Transcription, path: Path) -> None:
    """The plan as JSON. Raises InputError where `path` exists."""
    if os.path.lexists(path):
        raise InputError(f"{path} exists: nothing is overwritten")
    rows = made.plan.rows()
    described = {"family": made.naming, "preserves": made.plan.preserves, "rows": rows}
    files.write_text(path, json.dumps(described, indent=1, ensure_ascii=False))


def show(made: Transcription, *, every: bool = False, console: Console | None = None) -> None:
    """The plan as a table: a line for each rule, or for each tensor, then what it comes to."""
    console = console or Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("action")
    table.add_column("tensor", overflow="fold", ratio=1)
    for name in ("tensors", "parameters"):
        table.add_column(name, justify="right")
    for line in _by_tensor(made.plan) if every else _by_rule(made.plan):
        action, source, target, why, count, parameters = line
        names = "\n→ ".join(dict.fromkeys(side for side in (source, target) if side))
        note = f"\n[dim]{escape(why)}[/dim]" if why else ""
        table.add_row(action, f"{escape(names)}{note}", f"{count:,}", f"{parameters:,}")
    console.print(table)
    for sentence in told(made):
        console.print(sentence, highlight=False)


Line = tuple[str, str, str, str, int, int]  # action, from, to, why, tensors, parameters


def _by_rule(plan: Plan) -> Iterator[Line]:
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for move in plan.moves:
        rule = move.rule
        why = move.reason or ("" if rule.op == KEEP else str(rule.op))
        key = (move.action, " + ".join(rule.sources), " + ".join(rule.targets), why)
        found.setdefault(key, []).append(math.prod(move.shape))
    for unused in plan.unused:
        key = ("dropped", " + ".join(unused.rule.sources), "", unused.rule.reason)
        found.setdefault(key, []).append(unused.source.size)
    yield from ((*key, len(sizes), sum(sizes)) for key, sizes in found.items())


def _by_tensor(plan: Plan) -> Iterator[Line]:
    for row in plan.rows():
        yield row["action"], row["source"] or "", row["target"] or "", row["reason"], 1, row["parameters"]


def told(made: Transcription) -> list[str]:
    """What the plan comes to, in sentences."""
    totals = made.plan.parameters()
    whole = sum(count for action, count in totals.items() if action != "dropped")
    parts = [
        f"{action} {figures.share(count, whole)}"
        for action, count in totals.items()
        if count and action != "dropped"
    ]
    return [
        f"{len(made.plan.moves):,} tensors, {whole:,} parameters: {', '.join(parts)}",
        f"{len(made.plan.unused):,} tensors of the source are not used",
        f"takes {figures.size(made.plan.disk)} of disk and {figures.size(made.plan.memory)} of memory",
        PRESERVES[made.plan.preserves],
    ]
