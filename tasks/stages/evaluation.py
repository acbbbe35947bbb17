"""evaluation: what the fine-tuned model is worth on test rows, against what needs less work."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as parquet
from transformers import PreTrainedModel

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
from tasks.evaluation import baselines, metrics, pictures, predict, predictions, report, scores, verdict
from tasks.evaluation.metrics import Interval
from tasks.evaluation.predictions import Labels, Predictions, Probabilities
from tasks.model import floors
from tasks.model.batches import sorted_batches
from tasks.params import EvaluationParams, Params
from tasks.stages import Track
from tasks.text.kinds import KINDS, compared
from tasks.training import device

ROWS = 64  # per forward pass; changes time and memory, not what is predicted
MODEL, HEAD = "model", "head"
DESCRIPTIONS = {
    HEAD: "the new head trained, everything below it frozen",
    MODEL: "fine-tuned: head first, then unfrozen",
}


@dataclass(frozen=True)
class Split:
    """One split in memory, row by row: ids, tokens as predict takes them, labels (rows,) int64, texts (both
    of a pair in one)."""

    ids: tuple[str, ...]
    tokens: predict.Tokens
    labels: Labels
    texts: Sequence[str]


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
            self.model, self.train.tokens, ids=self.train.ids, batches=_batches(self.model)
        )

    @cached_property
    def test_answers(self) -> tuple[predict.Matrix, predict.Matrix]:
        """Logits (rows, classes) and features (rows, width)."""
        return predict.logits_and_features(
            self.model, self.test.tokens, ids=self.test.ids, batches=_batches(self.model)
        )


def run(params: Params, root: Path, track: Track) -> Evaluation:
    settings = params.evaluation
    metrics.known(settings.metrics)
    baselines.known(settings.baselines)
    prepared, encoded, trained = PreparedText.load(root), EncodedDataset.load(root), TrainedModel.load(root)
    converted = ConvertedCheckpoint.load(root)
    _agree({"preparation": prepared, "encoding": encoded, "conversion": converted, "finetuning": trained})
    _belongs(trained, converted, encoded)
    train, test = (_split(prepared, encoded, split) for split in ("train", "test"))
    where = device.choose(params.finetuning.device)
    answers = _answers(settings, converted, trained, train, test, where)
    figures = {name: _figures(found, settings) for name, found in answers.items()}
    comparisons = _compare(answers, settings)
    digest = predictions.digest_rows(test.ids, test.labels)
    with files.replace_directory(Evaluation.folder(root)) as draft:
        predictions.write(draft / "predictions.parquet", answers.values())
        _write_confusion(draft / "confusion.csv", answers[MODEL], encoded.labels)
        Evaluation.save(
            draft,
            model=trained.digest,
            test=digest,
            labels=encoded.labels,
            rows=len(test.ids),
            metrics={c: {m: asdict(v) for m, v in found.items()} for c, found in figures.items()},
            comparisons={name: asdict(found) for name, found in comparisons.items()},
        )
    values = {name: {m: v.value for m, v in found.items()} for name, found in figures.items()}
    files.write_text(root / "reports" / "metrics.json", files.canonical_json(values))
    page = report.Facts(
        labels=encoded.labels,
        figures=figures,
        descriptions=_descriptions(),
        comparisons=comparisons,
        confidence=settings.confidence,
        answers=answers[MODEL],
        texts=dict(zip(test.ids, test.texts, strict=True)),
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


def _belongs(trained: TrainedModel, converted: ConvertedCheckpoint, encoded: EncodedDataset) -> None:
    """Raises ArtifactError for a model that was trained on other rows: they may be among these test rows."""
    if (trained.data, trained.base) != (encoded.digest, converted.digest):
        other = "rows" if trained.data != encoded.digest else "weights"
        raise ArtifactError(f"{trained.path} was trained on other {other}: run `dvc repro finetuning`")


def _split(prepared: PreparedText, encoded: EncodedDataset, split: str) -> Split:
    """Raises DataError where encoding and preparation differ in a row or its label."""
    path = encoded.path / f"{split}.parquet"
    table = parquet.read_table(path)
    known = _known(prepared)
    ids, labels = table["id"].to_pylist(), table["label"].to_numpy().astype(np.int64)
    if not ids:
        raise DataError(f"{path} has no rows: enlarge preparation.fractions or preparation.subset")
    named = [encoded.labels[label] for label in labels]
    stray = [i for i, name in zip(ids, named, strict=True) if i not in known or known[i]["label"] != name]
    if stray:
        raise DataError(
            f"{path}: {len(stray):,} of {len(ids):,} rows are not preparation's, or have another label "
            f"(first: {stray[0]}): run `dvc repro encoding`"
        )
    names = [name for name in ("input_ids", "token_type_ids") if name in table.column_names]
    tokens = {name: table[name].to_pylist() for name in names}
    return Split(tuple(ids), tokens, labels, [known[i]["text"] for i in ids])


def _known(prepared: PreparedText) -> dict[str, dict[str, str]]:
    """Row id -> its text, both of a pair as one, and its label."""
    kind = KINDS[prepared.kind]
    rows = parquet.read_table(prepared.path / "rows.parquet", columns=["id", *kind.compared, "label"])
    texts = compared(rows, kind).to_list()
    columns = (rows["id"].to_pylist(), texts, rows["label"].to_pylist())
    return {id: {"text": text, "label": label} for id, text, label in zip(*columns, strict=True)}


def _answers(
    settings: EvaluationParams,
    converted: ConvertedCheckpoint,
    trained: TrainedModel,
    train: Split,
    test: Split,
    where: str,
) -> dict[str, Predictions]:
    """Every contestant's predictions: baselines, the head alone (if a phase trained it alone), the model."""
    classes = len(trained.labels)
    frozen = Frozen(_load(converted.path / "model", classes, where), train, test, trained.path / "frozen.npy")
    head = trained.path / "head.safetensors"
    if head.exists():
        floors.with_head(frozen.model, head)
    found = _baselines(settings.baselines, frozen, classes)
    if head.exists():
        found[HEAD] = predict.softmax(frozen.test_answers[0])
    model = _load(trained.path / "model", classes, where)
    final = predict.logits(model, test.tokens, ids=test.ids, batches=_batches(model))
    found[MODEL] = predict.softmax(final)
    return {name: Predictions(name, test.ids, test.labels, values) for name, values in found.items()}


def _baselines(names: Sequence[str], frozen: Frozen, classes: int) -> dict[str, Probabilities]:
    train = baselines.Inputs(frozen.train.texts, lambda: frozen.train_features)
    test = baselines.Inputs(frozen.test.texts, lambda: frozen.test_answers[1])
    labels = frozen.train.labels
    return {name: baselines.BASELINES[name].answer(train, labels, test, classes) for name in names}


def _load(directory: Path, classes: int, where: str) -> PreTrainedModel:
    model = floors.load(directory, device=where)
    if model.config.num_labels != classes:
        raise DataError(
            f"{directory}: the head has {model.config.num_labels} outputs, the data {classes} labels: "
            "run `dvc repro conversion`"
        )
    return model


def _batches(model: PreTrainedModel) -> predict.Batches:
    return partial(sorted_batches, batch_size=ROWS, pad=model.config.pad_token_id or 0)


def _figures(found: Predictions, settings: EvaluationParams) -> dict[str, Interval]:
    values = scores.scores(found.labels, found.probabilities, settings.metrics)
    ranges = metrics.bootstrap(
        found.labels,
        found.probabilities,
        settings.metrics,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    return {name: Interval(values[name], *ranges[name]) for name in settings.metrics}


def _compare(answers: Mapping[str, Predictions], settings: EvaluationParams) -> dict[str, verdict.Comparison]:
    """The model against every other contestant."""
    against: Callable[[Predictions], verdict.Comparison] = partial(
        verdict.compare,
        answers[MODEL],
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return {name: against(other) for name, other in answers.items() if name != MODEL}


def _write_confusion(target: Path, answers: Predictions, labels: Sequence[str]) -> None:
    """One line a test row, for DVC's confusion template."""
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        pairs = zip(answers.labels, answers.chosen, strict=True)
        writer.writerows((labels[actual], labels[predicted]) for actual, predicted in pairs)


def _pictures(
    answers: Mapping[str, Predictions],
    figures: Mapping[str, Mapping[str, Interval]],
    labels: Sequence[str],
    steps: Path,
) -> list[report.Picture]:
    model = answers[MODEL]
    table = metrics.confusion(model.labels, model.chosen, len(labels))
    by_class = metrics.per_class(model.labels, model.chosen, len(labels))
    own = [answers[name] for name in (MODEL, HEAD) if name in answers]
    trust = {a.contestant: metrics.reliability(a.labels, a.probabilities) for a in own}
    losses, phases = _losses(steps)
    return [
        report.Picture(
            "Contestants", "Dots are test figures, bars their intervals.", pictures.contestants(figures)
        ),
        report.Picture(
            "Learning curve",
            "Each optimizer step and its running mean.",
            pictures.learning_curve(losses, phases),
        ),
        report.Picture(
            "Classes", "In brackets the test rows of a class.", pictures.class_bars(by_class, labels)
        ),
        report.Picture(
            "Confusion",
            "Test rows of the fine-tuned model; shares are of the actual class.",
            pictures.confusion_matrix(table, labels),
        ),
        report.Picture(
            "Reliability",
            "Below the dotted line the model is surer than it is right.",
            pictures.reliability_diagram(trust),
        ),
    ]


def _losses(steps: Path) -> tuple[metrics.Array, list[str]]:
    """Loss (steps,) and phase of every optimizer step. Raises ArtifactError where there is none."""
    with steps.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ArtifactError(f"{steps} has no steps: run `dvc repro -f finetuning`")
    return np.array([float(row["loss"]) for row in rows]), [row["phase"] for row in rows]


def _descriptions() -> dict[str, str]:
    return {name: baseline.description for name, baseline in baselines.BASELINES.items()} | DESCRIPTIONS


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
