"""evaluation's contestants: who answers the test rows, with what; the model answers validation rows too."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from transformers import AutoTokenizer, PreTrainedModel

from tasks.errors import DataError
from tasks.evaluation import baselines, calibration, k_shot
from tasks.evaluation.asking import continuing, predict, rows, sequences
from tasks.evaluation.asking.continuing import Writer
from tasks.evaluation.baselines import Baseline
from tasks.evaluation.predictions import HEAD, MODEL, Array, Predictions
from tasks.model import floors, routers
from tasks.model.batches import suited
from tasks.stages.prompting import Prompting
from tasks.stages.upstream import Entered, Split

ROWS = 64  # per forward pass; changes time and memory, not what is predicted
Result = TypeVar("Result")


@dataclass(frozen=True)
class Contest:
    """Who competes, and where it is computed."""

    kind: str
    baselines: Mapping[str, Baseline]
    labels: Sequence[str]
    device: str
    writer: Writer | None = None  # of answers that are written
    prompting: Prompting | None = None  # where a model is asked in words

    @property
    def classes(self) -> int:
        """Outputs of the head."""
        return len(self.labels) or 1


@dataclass(frozen=True)
class Said:
    """Answers as `predictions.FORMS` says, and the logits (rows, classes) float32 that they come from, of
    kinds that have them."""

    answer: Array
    logits: predict.Matrix | None = None


@dataclass(frozen=True)
class Answers:
    """test: of each contestant, the model last. validation: the model's, where something is chosen by them.
    seconds: what each took; a forward pass that several need counts for the first. reads: which experts of
    the model read the test rows. prompting: among what k_shot chose, where it competes."""

    test: Mapping[str, Predictions]
    validation: Predictions | None
    seconds: Mapping[str, float]
    reads: routers.Reads
    prompting: k_shot.Found | None = None


@dataclass(frozen=True)
class Frozen:
    """The model as it was before anything below the head learned; each of its forward passes is made once."""

    model: PreTrainedModel
    train: Split
    test: Split
    known: Path  # the training rows' features, if finetuning has left them
    tokenizer: Path  # a directory of transformers

    @cached_property
    def train_features(self) -> predict.Matrix:
        if self.known.exists():
            return cast(predict.Matrix, np.load(self.known))
        return predict.features(
            self.model, self.train.rows.tokens, ids=self.train.rows.ids, batches=batches(self.model)
        )

    @cached_property
    def test_answers(self) -> tuple[predict.Matrix, predict.Matrix]:
        """Logits (rows, classes) and features (rows, width)."""
        test = self.test.rows
        return predict.logits_and_features(self.model, test.tokens, ids=test.ids, batches=batches(self.model))

    def embed(self, sentences: Sequence[str]) -> predict.Matrix:
        """Features (sentences, width), made as those of the rows are."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer, local_files_only=True)
        given = {"input_ids": tokenizer(list(sentences))["input_ids"]}
        return predict.features(self.model, given, ids=sentences, batches=batches(self.model))

    def answers(self, contest: Contest) -> Said:
        """To the test rows."""
        if contest.kind in predict.FROM_LOGITS:
            return _from_logits(self.test_answers[0], contest.kind)
        return ask(self.model, self.test.rows, contest)


@dataclass
class Stopwatch:
    """Seconds that each contestant took to answer."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str, work: Callable[[], Result]) -> Result:
        begun = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - begun
        return result


def hold(contest: Contest, entered: Entered, splits: Mapping[str, Split]) -> Answers:
    """Every contestant's answers: baselines, the head alone (if a phase trained it alone), the model."""
    watch, trained = Stopwatch(), entered.trained
    before = load(entered.converted.path / "model", contest)
    frozen = Frozen(
        before, splits["train"], splits["test"], trained.path / "frozen.npy", trained.path / "model"
    )
    head = trained.path / "head.safetensors"
    alone = head.exists() and contest.kind not in sequences.STARTS
    if alone:
        floors.with_head(frozen.model, head)
    found = answer_baselines(contest, frozen, watch)
    if alone:
        found[HEAD] = watch.time(HEAD, lambda: frozen.answers(contest))
    model, asked = load(trained.path / "model", contest), splits["test"].rows
    reads = routers.Reads(model, len(asked.ids))
    found[MODEL] = watch.time(MODEL, lambda: ask(model, asked, contest, reads))
    test = {name: _predictions(name, asked, said, contest.kind) for name, said in found.items()}
    prompting = contest.prompting.found if contest.prompting else None
    return Answers(test, _validated(model, splits, contest), watch.seconds, reads, prompting)


def answer_baselines(contest: Contest, frozen: Frozen, watch: Stopwatch) -> dict[str, Said]:
    seen, asked = frozen.train, frozen.test
    train = baselines.Inputs(
        seen.texts,
        lambda: frozen.train_features,
        seen.rows.answered,
        labels=contest.labels,
        embed=frozen.embed,
    )
    test = baselines.Inputs(
        asked.texts,
        lambda: frozen.test_answers[1],
        asked.rows.answered,
        lambda: frozen.answers(contest).answer,
        prompted=contest.prompting.answers if contest.prompting else None,
    )
    language = contest.kind in sequences.STARTS
    classes = frozen.model.config.vocab_size if language else contest.classes
    actual = frozen.train.rows.actual
    return {
        name: Said(watch.time(name, partial(baseline.answer, train, actual, test, classes)))
        for name, baseline in contest.baselines.items()
    }


def ask(
    model: PreTrainedModel, asked: rows.Rows, contest: Contest, reads: routers.Reads | None = None
) -> Said:
    """reads: takes down which experts read the rows."""
    kind = contest.kind
    size = predict.affordable(model, asked.tokens, ROWS) if kind in sequences.STARTS else ROWS
    cut = reads.heard(batches(model, size)) if reads else batches(model, size)
    if kind in predict.FROM_LOGITS:
        return _from_logits(predict.logits(model, asked.tokens, ids=asked.ids, batches=cut), kind)
    if kind == "answer":
        return Said(predict.spans(model, asked.tokens, asked.sources, ids=asked.ids, batches=cut))
    if contest.writer:
        return Said(continuing.translations(model, asked.tokens, writer=contest.writer, batches=cut))
    return Said(predict.answers(model, asked.tokens, kind=kind, ids=asked.ids, batches=cut))


def load(directory: Path, contest: Contest) -> PreTrainedModel:
    model = floors.load(directory, device=contest.device)
    if contest.kind in ("tags", *predict.FROM_LOGITS) and model.config.num_labels != contest.classes:
        raise DataError(
            f"{directory}: the head has {model.config.num_labels} outputs, the data {contest.classes} "
            "labels: run `dvc repro conversion`"
        )
    return model


def batches(model: PreTrainedModel, size: int = ROWS) -> predict.Batches:
    return suited(model, size)


def _predictions(name: str, asked: rows.Rows, said: Said, kind: str) -> Predictions:
    return Predictions(name, asked.ids, asked.actual, said.answer, kind, said.logits)


def _validated(model: PreTrainedModel, splits: Mapping[str, Split], contest: Contest) -> Predictions | None:
    if contest.kind not in calibration.LINKS:
        return None
    asked = splits["validation"].rows
    return _predictions(MODEL, asked, ask(model, asked, contest), contest.kind)


def _from_logits(scores: predict.Matrix, kind: str) -> Said:
    return Said(predict.FROM_LOGITS[kind](scores), scores)
