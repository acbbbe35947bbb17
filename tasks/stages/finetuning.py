"""finetuning: converted checkpoint and encoded rows in, a trained classifier out, phase by phase."""

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tasks import environment, files
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, TrainedModel, Vocabulary
from tasks.errors import DataError
from tasks.evaluation import predict
from tasks.model import batches, floors
from tasks.params import FinetuningParams, Params, Phase
from tasks.progress import track as progress
from tasks.stages import Track
from tasks.training import device, loop, order, phases, resume
from tasks.training.loop import Step
from tasks.training.table import NewRows

HEAD, FROZEN = "head.safetensors", "frozen.npy"
FINISHED = "finished"  # marks a resume point whose training has ended well
PREDICTION_ROWS = 64  # rows per forward pass where nothing is learned


@dataclass(frozen=True)
class Rows:
    """One split in memory: ragged token ids, labels (rows,) int64 on the device."""

    input_ids: Sequence[Sequence[int]]
    labels: Tensor
    pad: int


@dataclass(frozen=True)
class Job:
    model: PreTrainedModel
    stack: Sequence[floors.Floor]
    train: Rows
    validation: Rows
    kept: Path  # folder of what the head alone, on an untouched body, leaves for evaluation
    alone: frozenset[str]  # the phases in which that is so
    new: NewRows | None  # of tokens that the checkpoint did not have: they learn in every phase


def run(params: Params, root: Path, track: Track) -> TrainedModel:
    converted, encoded = ConvertedCheckpoint.load(root), EncodedDataset.load(root)
    vocabulary = Vocabulary.load(root)
    _agree(converted, encoded)
    settings, where = params.finetuning, device.choose(params.finetuning.device)
    model = floors.load(converted.path / "model", device=where)
    point = _point(root, vocabulary, converted, encoded, settings)
    train, validation = (_rows(encoded, split, model) for split in ("train", "validation"))
    new, kept = _new_rows(vocabulary, model), point.parent / "kept"
    alone = frozenset() if new else _alone(settings)  # rows that learn are not an untouched body
    job = Job(model, floors.floors(model), train, validation, kept, alone, new)
    with FileLock(_prepared(point.parent).with_suffix(".lock")):  # two at once would share one resume point
        steps, records = _fine_tune(job, settings, point, track)
        _write(root, job, converted, encoded, steps, records)
    (point.parent / FINISHED).touch()
    track.file(TrainedModel.folder(root) / "steps.csv")
    return TrainedModel.load(root)


def _write(
    root: Path,
    job: Job,
    converted: ConvertedCheckpoint,
    encoded: EncodedDataset,
    steps: Sequence[Step],
    records: Sequence[Mapping[str, Any]],
) -> None:
    with files.replace_directory(TrainedModel.folder(root)) as draft:
        weights = _save(job, Vocabulary.load(root), draft)
        _write_steps(draft / "steps.csv", steps)
        TrainedModel.save(
            draft,
            base=converted.digest,
            data=encoded.digest,
            labels=converted.labels,
            weights=weights,
            phases=records,
        )


def _prepared(folder: Path) -> Path:
    """`folder`, made; the points of other trainings that are finished are removed.

    A finished point stays until then: what comes after the training may fail, and must not cost it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for finished in folder.parent.glob(f"*/{FINISHED}"):
        if finished.parent != folder:
            shutil.rmtree(finished.parent, ignore_errors=True)
    return folder


def _agree(converted: ConvertedCheckpoint, encoded: EncodedDataset) -> None:
    if encoded.kind != "label":
        raise DataError(
            f"rows of kind {encoded.kind!r} can be prepared and encoded, but not trained on yet: only texts "
            "with one label each (sources.text.kind: label)"
        )
    if converted.labels != encoded.labels:
        raise DataError(
            f"the head has {len(converted.labels)} labels {converted.labels}, the data {len(encoded.labels)} "
            f"{encoded.labels}: run `dvc repro conversion`"
        )


def _point(root: Path, *depends: Any) -> Path:
    """Where resume points live: outside DVC's outs, which are deleted before a stage runs, and under a key of
    all that the training depends on, so that another job's point is never taken for this one's."""
    parts = [d.digest if hasattr(d, "digest") else d.model_dump(mode="json") for d in depends]
    rooms = Path(__file__).parents[1]
    code = [Path(__file__), *sorted(rooms.glob("training/*.py")), *sorted(rooms.glob("model/*.py"))]
    parts += [torch.__version__, *map(files.digest_file, code)]
    key = files.digest_json(parts).removeprefix("sha256:")[:16]
    return environment.home(root) / ".regraft" / "resume" / key / "point.safetensors"


def _rows(encoded: EncodedDataset, split: str, model: PreTrainedModel) -> Rows:
    table = parquet.read_table(encoded.path / f"{split}.parquet")
    labels = torch.as_tensor(table["label"].to_numpy().astype(np.int64), device=model.device)
    pad = model.config.pad_token_id or 0  # masked, so that any id would do
    return Rows(table["input_ids"].to_pylist(), labels, pad)


def _new_rows(vocabulary: Vocabulary, model: PreTrainedModel) -> NewRows | None:
    if not vocabulary.fresh:
        return None
    rows = parquet.read_table(vocabulary.path / "alignment.parquet", columns=["id", "source_id"])
    ids = rows.filter(compute.is_null(rows["source_id"]))["id"].to_numpy().astype(np.int64)
    return NewRows(*floors.word_table(model), torch.as_tensor(np.sort(ids), device=model.device))


def _fine_tune(
    job: Job, settings: FinetuningParams, point: Path, track: Track
) -> tuple[list[Step], list[Mapping[str, Any]]]:
    planned = [_plan(job, settings, number, phase) for number, phase in enumerate(settings.phases)]
    steps: list[Step] = []
    records: list[Mapping[str, Any]] = []
    told = phases.Settings(
        settings.seed, settings.weight_decay, settings.maximum_gradient_norm, settings.save_every
    )
    events = phases.fine_tune(
        job.model, job.train.labels, planned, told, point=point, finished=lambda phase: _finished(job, phase)
    )
    for event in events:
        if isinstance(event, Step):
            steps.append(event)
            _tell_step(track, event, len(steps))
        else:
            records.append(event)
            track.metrics({f"validation.{k}": event[k] for k in ("accuracy", "loss")}, step=len(steps))
    return steps, records


def _plan(job: Job, settings: FinetuningParams, number: int, phase: Phase) -> phases.Planned:
    learning = floors.learning(job.stack, phase.depth)
    new = job.new if job.new and not any(job.new.name in floor.parameters for floor in learning) else None
    lengths = [len(row) for row in job.train.input_ids]
    epochs = (
        order.epoch_order(lengths, batch_size=settings.batch_size, seed=(settings.seed, number, epoch))
        for epoch in range(phase.epochs)
    )
    return phases.Planned(
        name=phase.name,
        stack=[(floor.name, floor.parameters, floor.modules) for floor in learning],
        forward=_head_only(job, phase.name) if len(learning) == 1 and not new else _whole(job),
        batches=[batch for epoch in epochs for batch in epoch],
        learning_rate=phase.learning_rate,
        layer_decay=phase.layer_decay,
        warmup=phase.warmup,
        rows=new,
    )


def _alone(settings: FinetuningParams) -> frozenset[str]:
    """The phases at the schedule's beginning before anything below the head learns."""
    return frozenset(phase.name for phase in takewhile(lambda phase: phase.depth == 0, settings.phases))


def _head_only(job: Job, phase: str) -> Callable[[], loop.Forward]:
    """Everything below the head is frozen: its output is computed once, not once an epoch."""

    def begin() -> loop.Forward:
        first, mean = _features(job.model, job.train, "frozen features")  # (rows, width) each
        if phase in job.alone:
            with files.replace_file(job.kept / FROZEN) as draft, draft.open("wb") as stream:
                np.save(stream, mean.cpu().numpy())
        return lambda rows: floors.head_logits(job.model, first[list(rows)])

    return begin


def _whole(job: Job) -> Callable[[], loop.Forward]:
    def forward(rows: Sequence[int]) -> Tensor:
        ids, mask = batches.pad_rows([job.train.input_ids[row] for row in rows], pad=job.train.pad)
        where = job.model.device
        return floors.head_logits(job.model, floors.first_token(job.model, ids.to(where), mask.to(where)))

    return lambda: forward


def _features(model: PreTrainedModel, rows: Rows, description: str) -> tuple[Tensor, Tensor]:
    """What the body makes of every row, without dropout or gradient: the last hidden state of the first token
    and the mean over all tokens, (rows, width) each."""
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    cut = batches.sorted_batches(rows.input_ids, batch_size=PREDICTION_ROWS, pad=rows.pad)
    total = -(-len(rows.input_ids) // PREDICTION_ROWS)
    with torch.no_grad():
        for places, ids, mask in progress(cut, total=total, description=description):
            ids, mask = ids.to(model.device), mask.to(model.device)
            hidden = floors.last_hidden(model, ids, mask)
            pairs = zip(predict.first(hidden, mask), predict.mean(hidden, mask), strict=True)
            parts |= dict(zip(places, pairs, strict=True))
    firsts, means = zip(*(parts[place] for place in range(len(parts))), strict=True)
    return torch.stack(firsts), torch.stack(means)


def _finished(job: Job, phase: phases.Planned) -> dict[str, float]:
    """Validation figures; a head that learned alone is put aside, to be judged on its own."""
    job.model.eval()
    if phase.name in job.alone:
        head = {name: value.detach().cpu() for name, value in phase.parameters.items()}
        with files.replace_file(job.kept / HEAD) as draft:
            resume.write_tensors(draft, head, {"format": "pt"})
    with torch.no_grad():
        first, _ = _features(job.model, job.validation, "validation")
        logits = floors.head_logits(job.model, first)
    accuracy = (logits.argmax(dim=-1) == job.validation.labels).float().mean().item()
    return {"accuracy": accuracy, "loss": functional.cross_entropy(logits, job.validation.labels).item()}


def _tell_step(track: Track, step: Step, number: int) -> None:
    values = {"loss": step.loss, "learning_rate": step.learning_rate, "gradient_norm": step.gradient_norm}
    track.metrics({f"train.{name}": value for name, value in values.items()}, step=number)


def _save(job: Job, vocabulary: Vocabulary, draft: Path) -> str:
    """Write a transformers directory that loads without this project; returns the digest of its weights."""
    target = draft / "model"
    shutil.copytree(vocabulary.path / "tokenizer", target)
    job.model.config.save_pretrained(target)
    tensors = {name: value.detach().cpu().contiguous() for name, value in job.model.state_dict().items()}
    resume.write_tensors(target / "model.safetensors", tensors, {"format": "pt"})
    if job.kept.exists():
        shutil.copytree(job.kept, draft, dirs_exist_ok=True)
    return files.digest_file(target / "model.safetensors")


def _write_steps(target: Path, steps: Sequence[Step]) -> None:
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["step", *asdict(steps[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": place, **asdict(step)} for place, step in enumerate(steps, start=1))
