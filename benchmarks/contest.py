"""The turns of the contest: everybody from the same weights, on the same rows, one after the other."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from benchmarks import labelled, record, trainers
from benchmarks.finetuning import BEST, OURS, PHASES, SCHEDULE, TUTORIAL, Run, Size
from benchmarks.labelled import Portion
from benchmarks.trainers import Outcome
from tasks import params, references
from tasks.params import Phase

ROOT = Path(__file__).parents[1]
WARM = 32  # rows of the runs that nobody counts
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, operations a second


class Contest:
    """`folder` takes models and states; every run gets its own below it."""

    def __init__(self, folder: Path, size: Size) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        torch.set_num_threads(1)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.folder, self.size = folder, size
        self.texts = {name: labelled.read(name, checkpoint()) for name in labelled.VIEWS}
        self.starts = {name: self._start(name) for name in self.texts}

    def warm_up(self) -> None:
        """Libraries prepare much when they are first used."""
        portion = labelled.portions(self.texts["short"], WARM, 1, 1)[0]
        for run in (trainers.ours, trainers.best):
            run(self.starts["short"], portion, phases(["head", "full"]), self._fresh(), 0)

    def repetition(self, number: int) -> Iterator[Run]:
        for texts, rows in (("short", self.size.short), ("long", self.size.long)):
            portion = self._portion(texts, rows, number)
            if texts == "short":
                yield from self._schedule(portion, number)
            for name in ("top2", "full" if texts == "short" else "full-x4"):
                yield from self._phase(texts, portion, name, number)

    def sweep(self, number: int) -> dict[str, float]:
        """Heads alone with one rate after another, all on the same states."""
        turns = labelled.portions(self.texts["short"], self.size.sweep, 1, self.size.repetitions)
        portion = turns[number]
        folder = self._fresh()
        costs = []
        for run in range(self.size.runs):
            record.say(f"sweep {number + 1}, head {run + 1} of {self.size.runs}")
            chosen = [
                phase.model_copy(update={"learning_rate": 1e-4 * (run + 1)}) for phase in phases(["head"])
            ]
            outcome = trainers.ours(self.starts["short"], portion, chosen, folder, run)
            costs.append(outcome.cost.seconds)
        return {
            "rows": self.size.sweep,
            "one": costs[0],
            "all": sum(costs),
            "cost_over_one": sum(costs) / costs[0],
        }

    def curve(self) -> list[dict[str, float]]:
        """What head and top layers cost, against rows."""
        found = []
        for rows in self.size.curve:
            record.say(f"cost of {rows} rows")
            portion = labelled.portions(self.texts["short"], rows, 1, 1)[0]
            cost = trainers.ours(
                self.starts["short"], portion, phases(["head", "top2"]), self._fresh(), 0
            ).cost
            found.append({"rows": rows, "seconds": cost.seconds, "wall": cost.wall})
        return found

    def utilisation(self, runs: Sequence[Run]) -> list[dict[str, Any]] | None:
        """Examples a second and model FLOPs utilisation of full epochs; None without a GPU.

        6 operations a token and parameter beside the embeddings (Kaplan et al., 2020), of what the device
        could do in bfloat16; None for a device that PEAKS does not know.
        """
        if not torch.cuda.is_available():
            return None
        device = torch.cuda.get_device_name()
        peak = next((value for name, value in PEAKS.items() if name in device), None)
        return [self._used(run, device, peak) for run in runs if run.phases in (("full",), ("full-x4",))]

    def _used(self, run: Run, device: str, peak: float | None) -> dict[str, Any]:
        model = AutoModelForSequenceClassification.from_pretrained(self.starts[run.texts])
        parameters = model.num_parameters(exclude_embeddings=True)
        epochs = PHASES[run.phases[0]][1]
        operations = 6 * parameters * epochs * run.tokens / run.cost.wall
        return {
            "contestant": f"{run.contestant}, {run.texts}",
            "device": device,
            "examples_per_second": epochs * run.rows / run.cost.wall,
            "mfu": operations / peak if peak else None,
        }

    def _schedule(self, portion: Portion, number: int) -> Iterator[Run]:
        """The Trainer's first phase is also its contest of heads: it shares nothing with the next."""
        every = list(SCHEDULE)
        theirs = self._peer(BEST, "short", portion, every, number)
        yield self._run(BEST, "short", portion, ["head"], theirs["head"])
        yield self._run(BEST, "short", portion, every, theirs["full"])
        for names in (["head"], every):
            yield self._ours("short", portion, names, number)
        few = portion._replace(
            train=portion.train.first(self.size.tutorial),
            validation=portion.validation.first(max(1, self.size.tutorial // labelled.HELD_BACK)),
        )
        tutorial = self._peer(TUTORIAL, "short", few, every, number)
        yield self._run(TUTORIAL, "short", few, every, tutorial["full"])

    def _phase(self, texts: str, portion: Portion, name: str, number: int) -> Iterator[Run]:
        gpu = torch.cuda.is_available() and name != "top2"
        for contestant in (BEST, *([TUTORIAL] if gpu else [])):
            outcome = self._peer(contestant, texts, portion, [name], number)[name]
            yield self._run(contestant, texts, portion, [name], outcome)
        yield self._ours(texts, portion, [name], number)

    def _ours(self, texts: str, portion: Portion, names: Sequence[str], number: int) -> Run:
        record.say(f"{OURS}, {texts}, {'-'.join(names)}, {number + 1} of {self.size.repetitions}")
        outcome = trainers.ours(self.starts[texts], portion, phases(names), self._fresh(), number)
        return self._run(OURS, texts, portion, names, outcome)

    def _peer(
        self, contestant: str, texts: str, portion: Portion, names: Sequence[str], number: int
    ) -> dict[str, Outcome]:
        record.say(f"{contestant}, {texts}, {'-'.join(names)}, {number + 1} of {self.size.repetitions}")
        train = {BEST: trainers.best, TUTORIAL: trainers.tutorial}[contestant]
        return train(self.starts[texts], portion, phases(names), self._fresh(), number)

    def _run(
        self, contestant: str, texts: str, portion: Portion, names: Sequence[str], outcome: Outcome
    ) -> Run:
        train, unseen = portion.train, len(portion.unseen.targets)
        rows = len(train.targets)
        return Run(contestant, texts, tuple(names), rows, train.tokens, outcome.cost, outcome.right, unseen)

    def _portion(self, texts: str, rows: int, number: int) -> Portion:
        return labelled.portions(self.texts[texts], rows, self.size.unseen, self.size.repetitions)[number]

    def _start(self, texts: str) -> Path:
        """The checkpoint with a new head, and its tokenizer."""
        torch.manual_seed(0)
        folder = self._fresh()
        classes = self.texts[texts].classes
        AutoModelForSequenceClassification.from_pretrained(checkpoint(), num_labels=classes).save_pretrained(
            folder
        )
        AutoTokenizer.from_pretrained(checkpoint()).save_pretrained(folder)
        return folder

    def _fresh(self) -> Path:
        folder = self.folder / str(sum(1 for _ in self.folder.iterdir()))
        folder.mkdir()
        return folder


def phases(names: Sequence[str]) -> list[Phase]:
    keys = ("depth", "epochs", "learning_rate")
    return [Phase(name=name, **dict(zip(keys, PHASES[name], strict=True))) for name in names]


def checkpoint() -> Path:
    """What the project's own params name."""
    return references.locate(params.load(ROOT / "params.yaml").sources.checkpoint.path, root=ROOT)
