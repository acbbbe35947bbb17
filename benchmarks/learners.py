"""Who learns: presets, baselines, and the same architecture from random weights, each through the stages.

What a run answered is kept below a scratch folder, under a digest of its params and of the code that learns,
so that a benchmark that was interrupted goes on where it was.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from benchmarks import record
from benchmarks.quality import BASELINES, CHANCE, HELD_BACK, PRESET, Run, Size
from benchmarks.trainers import Cost, Silence, measured
from tasks import files, params, references, stages
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, PreparedText, TrainedModel
from tasks.evaluation import baselines, predictions
from tasks.evaluation.predictions import Predictions
from tasks.params import Params
from tasks.presets import DECIDED, PRESETS
from tasks.stages import contest, upstream

ROOT = Path(__file__).parents[1]
CODE = ("model", "training", "evaluation", "stages")  # folders of tasks/ that decide what is answered
BEFORE = ("sources", "preparation", "vocabulary", "conversion", "encoding")
ANSWERS, ABOUT = "answers.parquet", "about.json"
KIND = "label"  # of the default rows


class Turn(NamedTuple):
    """One contestant, once. rate: of the random architecture's only phase; None: the preset's own."""

    strategy: str
    rows: int
    seed: int
    rate: float | None = None


@dataclass(frozen=True)
class Laboratory:
    """Where turns are taken and kept."""

    scratch: Path
    size: Size

    def choose(self, rows: int, seed: int) -> dict[float, float]:
        """Each rate that the random architecture may take, and the share of validation rows it has right."""
        found = self.take([Turn(CHANCE, rows, seed, rate) for rate in self.size.rates])
        return {rate: run.validation for rate, run in zip(self.size.rates, found, strict=True)}

    def block(self, rows: int, seed: int, rate: float) -> list[Run]:
        """Every contestant on `rows` with `seed`; baselines have no chance in them and take one turn."""
        without = BASELINES if seed == self.size.seeds[0] else ()
        turns = [Turn(name, rows, seed) for name in (*without, *PRESET) if name != CHANCE]
        return [*self.take([Turn(CHANCE, rows, seed, rate)]), *self.take(turns)]

    def take(self, turns: Sequence[Turn]) -> list[Run]:
        """Turns that share rows, seed and the weights they begin with; those already taken are read."""
        left = [turn for turn in turns if not self._folder(turn).exists()]
        if left:
            root = self._prepared(left[0])
            for turn in left:
                record.say(f"{turn.strategy}, {turn.rows:,} rows, seed {turn.seed}")
                self._keep(turn, root)
            shutil.rmtree(root)
        return [self._read(turn) for turn in turns]

    def _prepared(self, turn: Turn) -> Path:
        """A root with all that learning reads."""
        origin = "random" if turn.strategy == CHANCE else "pretrained"
        root = self.scratch / "roots" / f"{origin}-{turn.rows}-{turn.seed}"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        if turn.strategy == CHANCE:
            forget(_checkpoint(), root / "checkpoint", turn.seed)
        for stage in BEFORE:
            stages.run(stage, settings(turn, self.size), root, Silence())
        return root

    def _keep(self, turn: Turn, root: Path) -> None:
        cost = Cost()
        test = _split(root, "test")
        validation = None
        if turn.strategy in BASELINES:
            probabilities = _baseline(turn.strategy, root, cost)
        else:
            shutil.rmtree(root / ".regraft", ignore_errors=True)  # nobody profits from another's states
            with measured(cost):
                stages.run("finetuning", settings(turn, self.size), root, Silence())
            trained = TrainedModel.load(root)
            validation = trained.phases[-1]["figures"]["accuracy"]
            probabilities = _answer(trained, test)
        answers = Predictions(turn.strategy, test.rows.ids, test.rows.actual, probabilities)
        about = {"validation": validation, "cpu": cost.cpu, "wall": cost.wall, "rss_mb": cost.rss_mb}
        with files.replace_directory(self._folder(turn)) as draft:
            predictions.write(draft / ANSWERS, [answers])
            files.write_text(draft / ABOUT, files.canonical_json({**turn._asdict(), **about}))

    def _read(self, turn: Turn) -> Run:
        folder = self._folder(turn)
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return Run(**about, answers=predictions.read(folder / ANSWERS)[turn.strategy])

    def _folder(self, turn: Turn) -> Path:
        digest = files.digest_json([settings(turn, self.size).model_dump(mode="json"), _code(), *turn])
        name = f"{turn.strategy}-{turn.rows}-{turn.seed}-{digest.removeprefix('sha256:')[:12]}"
        return self.scratch / "runs" / name


def choose(scratch: Path, size: Size, rows: int, seed: int) -> dict[float, float]:
    """To be called in a process of its own, whose threads are pinned."""
    return _quiet(scratch, size).choose(rows, seed)


def block(scratch: Path, size: Size, rows: int, seed: int, rate: float) -> list[Run]:
    """To be called in a process of its own, whose threads are pinned."""
    return _quiet(scratch, size).block(rows, seed, rate)


def _quiet(scratch: Path, size: Size) -> Laboratory:
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return Laboratory(scratch, size)


def settings(turn: Turn, size: Size) -> Params:
    """The project's own params with `turn`'s rows, seed and preset; test rows are the same for all."""
    value = params.load(ROOT / "params.yaml").model_dump(mode="json")
    value["preparation"]["subset"] = {
        "train": turn.rows, "validation": max(1, turn.rows // HELD_BACK), "test": size.test,
    }  # fmt: skip
    proofs = ["content", "load"]  # not similarity: random weights tell no paraphrase from a stranger
    value["conversion"] |= {"seed": turn.seed, "verify": proofs}
    if turn.strategy == CHANCE:
        value["sources"]["checkpoint"]["path"] = "checkpoint"
    if turn.strategy in PRESET:
        value["finetuning"] |= _preset(turn) | {"seed": turn.seed, "device": "cpu"}
    return params.check(value, name="benchmarks.learners")


def _preset(turn: Turn) -> dict[str, Any]:
    values = params.FinetuningParams.model_validate(PRESETS[PRESET[turn.strategy]].values)
    chosen = values.model_dump(mode="json", include=set(DECIDED))
    if turn.rate is not None:
        chosen["phases"] = [phase | {"learning_rate": turn.rate} for phase in chosen["phases"]]
    return chosen


def forget(checkpoint: Path, target: Path, seed: int) -> None:
    """The same architecture and tokenizer, every weight drawn anew as its class draws them."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.from_pretrained(checkpoint))
    weights = shutil.ignore_patterns("*.safetensors*", "*.bin*")
    shutil.copytree(checkpoint, target, ignore=weights)
    model.save_pretrained(target)


def _baseline(name: str, root: Path, cost: Cost) -> Any:
    """(test rows, classes); the test rows' features are made before anything is counted."""
    converted = ConvertedCheckpoint.load(root)
    asked = _contest(converted.labels, [name])
    model = contest.load(converted.path / "model", asked)
    both = (_split(root, name) for name in ("train", "test"))
    frozen = contest.Frozen(model, *both, root / "no features are kept", root / "no sentences are read")
    if name == "frozen":
        _ = frozen.test_answers  # kept from here on
    with measured(cost):
        found = contest.answer_baselines(asked, frozen, contest.Stopwatch())
    return found[name].answer


def _answer(trained: TrainedModel, test: upstream.Split) -> Any:
    asked = _contest(trained.labels, [])
    return contest.ask(contest.load(trained.path / "model", asked), test.rows, asked).answer


def _contest(labels: Sequence[str], names: Sequence[str]) -> contest.Contest:
    return contest.Contest(KIND, baselines.chosen(KIND, names), labels, "cpu")


def _split(root: Path, name: str) -> upstream.Split:
    return upstream.read(PreparedText.load(root), EncodedDataset.load(root), name)


def _checkpoint() -> Path:
    return references.locate(params.load(ROOT / "params.yaml").sources.checkpoint.path, root=ROOT)


@cache
def _code() -> list[str]:
    paths = [path for folder in CODE for path in sorted((ROOT / "tasks" / folder).rglob("*.py"))]
    return [files.digest_file(path) for path in paths]
