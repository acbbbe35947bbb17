"""`regraft convert` and `plan-weights`: a checkpoint in other names, and what becomes of every tensor."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.commands import figures
from flows.commands.inspection import opened
from tasks import files
from tasks.errors import InputError, did_you_mean
from tasks.params import LEVELS
from tasks.weights import transcribe
from tasks.weights.families import BORROWED, find_naming
from tasks.weights.mixture import Begin, Mixture
from tasks.weights.plan import Plan
from tasks.weights.rules import KEEP
from tasks.weights.transcribe import Transcription
from tasks.weights.width import Wanted

COMPUTED = ("parity", "similarity", "loss", "generation")  # levels that load the model
PRESERVES = {
    "exact": "computes exactly what the source does",
    "approximate": "approximates what the source computes: how nearly, an evaluation has to say",
    "no": "does not compute what the source did",
}

DIGITS = 12  # more than any width has


@dataclass(frozen=True)
class Wish:
    """What is to be otherwise than in the source, as a person types it; None: nothing is.

    layers: numbers with commas between them. width: one or "double". experts: how many copies; merged: models
    that bring them instead. top: how many read a token. begin, seed: of Mixture.
    """

    layers: str | None = None
    width: str | None = None
    experts: int | None = None
    merged: Sequence[str] = ()
    top: int | None = None
    begin: Begin | None = None
    seed: int | None = None

    @property
    def mixture(self) -> Mixture | None:
        """Raises InputError for what does not go together."""
        given = {"chosen": self.top, "begin": self.begin, "seed": self.seed}
        typed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.merged and (self.experts is not None or self.begin):
            raise InputError(
                "--experts and --init make experts of the source, --expert brings them: choose one"
            )
        if self.experts is None and not self.merged:
            if typed:
                raise InputError("--top-k, --init and --seed are for a mixture: say how many --experts")
            return None
        return Mixture(len(self.merged) if self.experts is None else self.experts, **typed)


def planned(
    reference: str, family: str, wish: Wish, *, reverse: bool, key: str | None, root: Path
) -> Transcription:
    mixture = wish.mixture
    if family == BORROWED:
        return _borrowed(reference, wish, reverse=reverse, key=key, root=root)
    return transcribe.planned(
        opened(reference, root, key),
        find_naming(family),
        reverse=reverse,
        layers=None if wish.layers is None else numbers(wish.layers),
        wanted=None if wish.width is None else _width(wish.width),
        experts=mixture,
        merged=[opened(model, root, key) for model in wish.merged],
    )


def _borrowed(reference: str, wish: Wish, *, reverse: bool, key: str | None, root: Path) -> Transcription:
    """By the table that transformers ships. Raises InputError for a wish, which needs one of ours."""
    from tasks.weights import borrowed  # imports torch

    if wish != Wish():
        raise InputError(
            f"--layers, --width and --experts need a table of ours: convert with --family {BORROWED} first, "
            "then the result with the family that it belongs to"
        )
    return borrowed.planned(opened(reference, root, key), reverse=reverse)


def _width(text: str) -> Wanted:
    """Raises InputError for anything but a number and "double"."""
    typed = text.strip()
    if typed == "double":
        return "double"
    if not (typed.isascii() and typed.isdecimal() and len(typed) < DIGITS):
        raise InputError(f"--width {text}: write double, or a number such as 384")
    return int(typed)


def numbers(text: str) -> tuple[int, ...]:
    """Raises InputError with everything between commas that is no number."""
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdecimal())]:
        raise InputError(
            f"--layers {text}: write numbers from 0 on, such as 0,2,4, not {', '.join(map(repr, wrong))}"
        )
    return tuple(map(int, parts))


def convert(
    made: Transcription,
    target: Path,
    *,
    load: bool,
    shard_size: int | None = None,
    verify: Sequence[str] = (),
    reference: Path | None = None,
) -> dict[str, str]:
    """Convert as planned, and prove it; returns level -> what was found.

    shard_size: the largest number of bytes of a file; None: all in one file.
    verify: levels of proof beside those that always run; reference: what transformers reads, to compare with.
    """
    prove = _prover(made, verify, reference, load=load)
    return transcribe.transcribe(made, target, prove=prove, shard_size=shard_size, levels=verify)


def levels(typed: Iterable[str]) -> tuple[str, ...]:
    """Levels of proof with commas between them. Raises InputError with all that are unknown."""
    names = [name.strip() for text in typed for name in text.split(",")]
    if unknown := [
        f"no level {name!r}; {did_you_mean(name, LEVELS)}" for name in names if name not in LEVELS
    ]:
        raise InputError("\n".join(f"--verify: {fault}" for fault in unknown))
    return tuple(names)


def _prover(
    made: Transcription, verify: Sequence[str], reference: Path | None, *, load: bool
) -> Callable[[Path], dict[str, str]] | None:
    """Raises InputError where what was asked for needs a model that is not loaded."""
    compared = made.whole is not None and made.plan.preserves == "exact" and not reference  # by _loaded
    computed = [one for one in COMPUTED if one in verify and not (compared and one == "parity")]
    if computed and (made.reverse or not load):
        option = "--reverse" if made.reverse else "--no-load"
        raise InputError(f"{', '.join(computed)} cannot be proven with {option}: transformers loads no model")
    if reference and not computed:
        raise InputError(f"--reference is for --verify {', '.join(COMPUTED)}: name at least one")
    if not load or not computed:
        return partial(_loaded, made) if load else None
    from tasks.weights import behaviour  # imports torch

    more = behaviour.prepare(computed, made.plan, made.architecture, reference=reference)
    return lambda directory: _loaded(made, directory) | more(directory)


def _loaded(made: Transcription, directory: Path) -> dict[str, str]:
    from tasks.weights import proof, routing  # import torch

    if made.reverse:
        return {"shapes": proof.fits(made.plan, made.theirs, made.architecture)}
    found = {"load": proof.loads(directory)}
    if made.whole and made.plan.preserves == "exact":
        found["parity"] = proof.preserved(made.whole.plan, made.whole.config, directory)
    if made.experts:
        found["experts"] = routing.recovered([(one.plan, one.config) for one in made.experts], directory)
    return found | _carried(made, directory)


def _carried(made: Transcription, directory: Path) -> dict[str, str]:
    """With the tokenizer the result is a checkpoint that the pipeline takes: that of the source, or else of
    the first expert that has one."""
    from tasks.weights import tokenizer  # imports transformers

    sources = dict.fromkeys(entry.file for move in made.plan.moves for entry in move.step.sources)
    said = next(filter(None, (tokenizer.carry(source, directory) for source in sources)), None)
    return {"tokenizer": said} if said else {}


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
