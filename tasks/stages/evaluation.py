"""evaluation: what the fine-tuned model is worth on test rows, against what needs less work."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as parquet
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from tasks import files
from tasks.artifacts import (
    SPLITS,
    ConvertedCheckpoint,
    EncodedDataset,
    Evaluation,
    PreparedText,
    TrainedModel,
)
from tasks.errors import ArtifactError, DataError
from tasks.evaluation import (
    baselines,
    judging,
    metrics,
    pictures,
    predict,
    predictions,
    report,
    rows,
    scores,
    sequences,
    verdict,
)
from tasks.evaluation.baselines import Baseline
from tasks.evaluation.exhibits import EXHIBITS
from tasks.evaluation.metrics import Interval, Metric
from tasks.evaluation.pairing import Comparison
from tasks.evaluation.pictures import Picture
from tasks.evaluation.predictions import HEAD, MODEL, Array, Predictions
from tasks.model import floors
from tasks.model.batches import sorted_batches
from tasks.params import EvaluationParams, Params
from tasks.stages import Track
from tasks.text.kinds import KINDS, compared
from tasks.training import device

ROWS = 64  # per forward pass; changes time and memory, not what is predicted
DESCRIPTIONS = {
    HEAD: "the new head trained, everything below it frozen",
    MODEL: "fine-tuned, phase by phase",
}


@dataclass(frozen=True)
class Split:
    """One split in memory, row by row; of a pair both texts in one."""

    rows: rows.Rows
    texts: Sequence[str]


@dataclass(frozen=True)
class Contest:
    """Who competes, by which metrics."""

    kind: str
    metrics: Mapping[str, Metric]
    baselines: Mapping[str, Baseline]
    classes: int  # outputs of the head


@dataclass(frozen=True)
class Frozen:
    """The model as it was before anything below the head learned; each of its forward passes is made once."""

    model: PreTrainedModel
    train: Split
    test: Split
    known: Path  # the training rows' features, if finetuning has left them

    @cached_property
    def train_features(self) -> predict.Matrix:
        if self.known.exists():
            return cast(predict.Matrix, np.load(self.known))
        return predict.features(
            self.model, self.train.rows.tokens, ids=self.train.rows.ids, batches=_batches(self.model)
        )

    @cached_property
    def test_answers(self) -> tuple[predict.Matrix, predict.Matrix]:
        """Logits (rows, classes) and features (rows, width)."""
        test = self.test.rows
        return predict.logits_and_features(
            self.model, test.tokens, ids=test.ids, batches=_batches(self.model)
        )

    def answers(self, kind: str) -> Array:
        """To the test rows."""
        if kind in predict.FROM_LOGITS:
            return predict.FROM_LOGITS[kind](self.test_answers[0])
        return _ask(self.model, self.test.rows, kind)


def run(params: Params, root: Path, track: Track) -> Evaluation:
    settings, kind = params.evaluation, params.sources.text.kind
    measured = judging.find(kind).chosen(settings.metrics)
    contestants = baselines.chosen(kind, settings.baselines)
    prepared, encoded, trained = PreparedText.load(root), EncodedDataset.load(root), TrainedModel.load(root)
    converted = ConvertedCheckpoint.load(root)
    _agree({"preparation": prepared, "encoding": encoded, "conversion": converted, "finetuning": trained})
    _belongs(trained, converted, encoded, kind)
    contest = Contest(kind, measured, contestants, len(encoded.labels) or 1)
    wording = _wording(trained) if kind in sequences.STARTS else None
    train, test = (_split(prepared, encoded, split, wording) for split in ("train", "test"))
    where = device.choose(params.finetuning.device)
    answers = _answers(contest, converted, trained, train, test, where)
    figures = {name: _figures(found, measured, encoded.labels, settings) for name, found in answers.items()}
    comparisons = _compare(answers, settings)
    digest = predictions.digest_rows(test.rows.ids, test.rows.actual)
    with files.replace_directory(Evaluation.folder(root)) as draft:
        predictions.write(draft / "predictions.parquet", list(answers.values()))
        _write_confusion(draft / "confusion.csv", answers[MODEL], encoded.labels)
        Evaluation.save(
            draft,
            model=trained.digest,
            test=digest,
            labels=encoded.labels,
            rows=len(test.rows.ids),
            metrics={c: {m: asdict(v) for m, v in found.items()} for c, found in figures.items()},
            comparisons={name: asdict(found) for name, found in comparisons.items()},
        )
    values = {name: {m: v.value for m, v in found.items()} for name, found in figures.items()}
    files.write_text(root / "reports" / "metrics.json", files.canonical_json(values))
    page = report.Facts(
        labels=encoded.labels,
        figures=figures,
        descriptions={name: found.description for name, found in contestants.items()} | DESCRIPTIONS,
        comparisons=comparisons,
        confidence=settings.confidence,
        answers=answers[MODEL],
        texts=dict(zip(test.rows.ids, test.texts, strict=True)),
        pictures=_pictures(answers, figures, encoded.labels, trained.path / "steps.csv"),
        sources=_sources(params),
        rows={split: encoded.rows[split] for split in SPLITS},
        subset=params.preparation.subset.model_dump(),
        test=digest,
    )
    files.write_text(root / "reports" / "evaluation.html", report.render(page))
    _tell(track, values, root)
    return Evaluation.load(root)


def _agree(records: Mapping[str, PreparedText | EncodedDataset | ConvertedCheckpoint | TrainedModel]) -> None:
    """Raises DataError where two stages do not mean the same by class 0, 1, 2, …"""
    wanted = records["preparation"].labels
    faults = [
        f"{stage} has {len(record.labels)} labels ({', '.join(record.labels)}), "
        f"preparation {len(wanted)} ({', '.join(wanted)})"
        for stage, record in records.items()
        if record.labels != wanted
    ]
    if faults:
        raise DataError("; ".join(faults) + ": run `dvc repro` to bring all stages to the same labels")


def _belongs(
    trained: TrainedModel, converted: ConvertedCheckpoint, encoded: EncodedDataset, kind: str
) -> None:
    """Raises ArtifactError for a model that was trained on other rows: they may be among these test rows."""
    if encoded.kind != kind:
        raise ArtifactError(f"{encoded.path} has rows of kind {encoded.kind}, not {kind}: run `dvc repro`")
    if (trained.data, trained.base) != (encoded.digest, converted.digest):
        other = "rows" if trained.data != encoded.digest else "weights"
        raise ArtifactError(f"{trained.path} was trained on other {other}: run `dvc repro finetuning`")


def _wording(trained: TrainedModel) -> sequences.Wording:
    """How the model's tokens are read; masked where its class is one that guesses."""
    directory = trained.path / "model"
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    (architecture,) = AutoConfig.from_pretrained(directory, local_files_only=True).architectures
    return predict.wording(tokenizer, masked=architecture.endswith("ForMaskedLM"))


def _split(
    prepared: PreparedText, encoded: EncodedDataset, split: str, wording: sequences.Wording | None
) -> Split:
    """Raises DataError where encoding and preparation differ in a row or what is true of it."""
    path = encoded.path / f"{split}.parquet"
    if wording is not None:
        return Split(*sequences.read(path, encoded.kind, wording))
    same = rows.READINGS[encoded.kind].same
    found, known = rows.read(path, encoded.kind), _known(prepared)
    stray = [
        id
        for id, actual in zip(found.ids, found.actual, strict=True)
        if id not in known or not same(actual, known[id]["answer"], encoded.labels)
    ]
    if stray:
        raise DataError(
            f"{path}: {len(stray):,} of {len(found.ids):,} rows are not preparation's, or have another label "
            f"(first: {stray[0]}): run `dvc repro encoding`"
        )
    return Split(found, [known[id]["text"] for id in found.ids])


def _known(prepared: PreparedText) -> dict[str, dict[str, Any]]:
    """Row id -> its text, both of a pair as one, and what preparation says is true of it."""
    kind = KINDS[prepared.kind]
    (answer,) = kind.answer
    table = parquet.read_table(prepared.path / "rows.parquet", columns=["id", *kind.compared, answer])
    columns = (table["id"].to_pylist(), compared(table, kind).to_list(), table[answer].to_pylist())
    return {id: {"text": text, "answer": told} for id, text, told in zip(*columns, strict=True)}


def _answers(
    contest: Contest,
    converted: ConvertedCheckpoint,
    trained: TrainedModel,
    train: Split,
    test: Split,
    where: str,
) -> dict[str, Predictions]:
    """Every contestant's predictions: baselines, the head alone (if a phase trained it alone), the model."""
    before = _load(converted.path / "model", contest, where)
    frozen = Frozen(before, train, test, trained.path / "frozen.npy")
    head = trained.path / "head.safetensors"
    alone = head.exists() and contest.kind not in sequences.STARTS
    if alone:
        floors.with_head(frozen.model, head)
    found = _baselines(contest, frozen)
    if alone:
        found[HEAD] = frozen.answers(contest.kind)
    asked = test.rows
    found[MODEL] = _ask(_load(trained.path / "model", contest, where), asked, contest.kind)
    return {
        name: Predictions(name, asked.ids, asked.actual, values, contest.kind)
        for name, values in found.items()
    }


def _ask(model: PreTrainedModel, asked: rows.Rows, kind: str) -> Array:
    size = predict.affordable(model, asked.tokens, ROWS) if kind in sequences.STARTS else ROWS
    return predict.answers(model, asked.tokens, kind=kind, ids=asked.ids, batches=_batches(model, size))


def _baselines(contest: Contest, frozen: Frozen) -> dict[str, Array]:
    seen, asked = frozen.train, frozen.test
    train = baselines.Inputs(seen.texts, lambda: frozen.train_features, seen.rows.answered)
    test = baselines.Inputs(
        asked.texts,
        lambda: frozen.test_answers[1],
        asked.rows.answered,
        lambda: frozen.answers(contest.kind),
    )
    language = contest.kind in sequences.STARTS
    classes = frozen.model.config.vocab_size if language else contest.classes
    actual = frozen.train.rows.actual
    return {
        name: baseline.answer(train, actual, test, classes) for name, baseline in contest.baselines.items()
    }


def _load(directory: Path, contest: Contest, where: str) -> PreTrainedModel:
    model = floors.load(directory, device=where)
    if contest.kind not in sequences.STARTS and model.config.num_labels != contest.classes:
        raise DataError(
            f"{directory}: the head has {model.config.num_labels} outputs, the data {contest.classes} "
            "labels: run `dvc repro conversion`"
        )
    return model


def _batches(model: PreTrainedModel, size: int = ROWS) -> predict.Batches:
    return partial(sorted_batches, batch_size=size, pad=model.config.pad_token_id or 0)


def _figures(
    found: Predictions, measured: Mapping[str, Metric], names: Sequence[str], settings: EvaluationParams
) -> dict[str, Interval]:
    actual, answer = judging.find(found.kind).view(found.actual, found.answer, names)
    values = scores.scores(actual, answer, measured)
    ranges = metrics.bootstrap(
        actual,
        answer,
        measured,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    return {name: Interval(values[name], *ranges[name]) for name in measured}


def _compare(answers: Mapping[str, Predictions], settings: EvaluationParams) -> dict[str, Comparison]:
    """The model against every other contestant."""
    against: Callable[[Predictions], Comparison] = partial(
        verdict.compare,
        answers[MODEL],
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return {name: against(other) for name, other in answers.items() if name != MODEL}


def _write_confusion(target: Path, answers: Predictions, labels: Sequence[str]) -> None:
    """For DVC's confusion template: one line a test row, or a label of it; none where nothing is a class."""
    pairs = EXHIBITS[answers.kind].pairs
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        writer.writerows(pairs(answers, labels) if pairs else ())


def _pictures(
    answers: Mapping[str, Predictions],
    figures: Mapping[str, Mapping[str, Interval]],
    labels: Sequence[str],
    steps: Path,
) -> list[Picture]:
    losses, phases = _losses(steps)
    return [
        Picture("Contestants", "Dots are test figures, bars their intervals.", pictures.contestants(figures)),
        Picture(
            "Learning curve",
            "Each optimizer step and its running mean.",
            pictures.learning_curve(losses, phases),
        ),
        *EXHIBITS[answers[MODEL].kind].pictures(answers, labels),
    ]


def _losses(steps: Path) -> tuple[Array, list[str]]:
    """Loss (steps,) and phase of every optimizer step. Raises ArtifactError where there is none."""
    with steps.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ArtifactError(f"{steps} has no steps: run `dvc repro -f finetuning`")
    return np.array([float(row["loss"]) for row in rows]), [row["phase"] for row in rows]


def _sources(params: Params) -> dict[str, str]:
    text, checkpoint = params.sources.text, params.sources.checkpoint
    return {
        "Data": text.path,
        "Licence of the data": text.licence,
        "Checkpoint": checkpoint.path,
        "Licence of the checkpoint": checkpoint.licence,
    }


def _tell(track: Track, values: Mapping[str, Mapping[str, float]], root: Path) -> None:
    named = {f"test.{c}.{m}": v for c, found in values.items() if c != MODEL for m, v in found.items()}
    track.metrics(named | {f"test.{m}": v for m, v in values[MODEL].items()})
    for path in ("reports/evaluation.html", "reports/metrics.json", "data/evaluation/confusion.csv"):
        track.file(root / path)
