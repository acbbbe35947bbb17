"""finetuning: converted checkpoint and encoded rows in, a trained model out, phase by phase."""

import csv
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib import metadata
from itertools import accumulate, chain, pairwise, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from tasks import environment, files
from tasks import params as parameters
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, TrainedModel, Vocabulary
from tasks.errors import DataError, TrainingError
from tasks.model import adapters, drift, floors, frozen, packed, reading, tail
from tasks.model.adapters import Adapter
from tasks.model.batches import Ragged, Rows
from tasks.model.boundary import Cache
from tasks.model.drift import States
from tasks.model.frozen import MEAN, Forward, Frozen
from tasks.model.masked import Masked
from tasks.model.reading import Asked
from tasks.params import FinetuningParams, Params, Phase
from tasks.stages import Track
from tasks.training import device, objectives, order, phases, processes, report, resume, reuse
from tasks.training import probe as probing
from tasks.training.events import Change, Event, Finished, Measure
from tasks.training.loop import Batches, Pace, Size, Step, Work
from tasks.training.meter import Meter
from tasks.training.objectives import Objective
from tasks.training.probe import STEPS, Seconds, Tokens
from tasks.training.ranks import ALONE, Ranks
from tasks.training.reuse import Reach
from tasks.training.table import NewRows

log = logging.getLogger(__name__)
TELLING = (
    "pictures",
    "report",
    "forecast",
    "cautions",
    "meter",
    "energy",
    "probe",
    "drift",
)  # modules without a say in what is learned
HEAD, FROZEN = "head.safetensors", "frozen.npy"
PAGE, TIMINGS = "finetuning.html", "finetuning-timings.json"
GENERAL = Path(__file__).parents[1] / "english.txt"  # what nothing is trained on here
DRIFT = "drift.json"
FEW = 8  # validation rows at once where the head says something of many tokens
DRAWINGS = 10_000  # more than a phase has epochs: what is hidden differs in each
OTHERS = "tasks.rank"  # the module that the other processes of a training run
FINISHED = "finished"  # marks a resume point whose training has ended well


@dataclass(frozen=True)
class Split:
    """One split in memory: what the model is asked, and the digest of what is in it."""

    asked: Asked
    digest: str

    @property
    def rows(self) -> Rows | Masked:
        return self.asked.rows


@dataclass(frozen=True)
class Job:
    model: PreTrainedModel
    stack: Sequence[floors.Floor]
    train: Split
    validation: Split
    objective: Objective
    losses: objectives.Settings
    settings: FinetuningParams
    frozen: Frozen
    kept: Path  # folder of what the head alone, on an untouched body, leaves for evaluation
    new: NewRows | None  # of tokens that the checkpoint did not have: they learn in every phase
    ranks: Ranks = ALONE

    @property
    def alone(self) -> frozenset[str]:
        """The phases at the schedule's beginning before anything below the head learns."""
        if self.new:  # rows that learn are not an untouched body
            return frozenset()
        heads = takewhile(lambda phase: phase.depth == 0 and not phase.floors, self.settings.phases)
        return frozenset(phase.name for phase in heads)


def run(params: Params, root: Path, track: Track) -> TrainedModel:
    settings = params.finetuning
    device.demand_enough(device.choose(settings.device), settings.processes)
    converted, encoded = ConvertedCheckpoint.load(root), EncodedDataset.load(root)
    _agree(converted, encoded)
    point = _point(root, Vocabulary.load(root), converted, encoded, settings)
    job = _job(root, point.parent / "kept", converted, encoded, settings)
    with FileLock(_prepared(point.parent).with_suffix(".lock")):  # two at once would share one resume point
        general = _general(job, Vocabulary.load(root), encoded)
        before = _knowledge(job, general)
        with _together(job, params, root) as ranks:
            told = _fine_tune(replace(job, ranks=ranks), point, track)
        drifted = _drift(before, _knowledge(job, general))
        facts = _facts(job, converted, encoded, told, drifted)  # before an adapter is merged
        _write(root, job, converted, encoded, told, drifted)
    files.write_text(root / "reports" / PAGE, report.render(facts))
    took = Meter(point.parent / TIMINGS).found
    files.write_text(root / "reports" / TIMINGS, files.canonical_json(took))
    (point.parent / FINISHED).touch()
    track.metrics(drifted.figures())
    for name, figures in took.items():
        track.metrics({f"phase.{name}.{figure}": value for figure, value in figures.items()})
    for path in [root / "reports" / PAGE, *(TrainedModel.folder(root) / name for name in TABLES)]:
        track.file(path)
    return TrainedModel.load(root)


def assist(params: Params, root: Path, ranks: Ranks) -> None:
    """What every process but the first does: the same training, of which it tells and keeps nothing."""
    converted, encoded, settings = (
        ConvertedCheckpoint.load(root),
        EncodedDataset.load(root),
        params.finetuning,
    )
    point = _point(root, Vocabulary.load(root), converted, encoded, settings)
    job = _job(root, point.parent / "kept", converted, encoded, settings, ranks)
    for _ in _events(job, _planned(job), point):
        pass


def _together(job: Job, params: Params, root: Path) -> AbstractContextManager[Ranks]:
    return processes.together(
        params.finetuning.processes,
        module=OTHERS,
        task={"params": parameters.dump(params), "root": str(root.resolve())},
        device=job.model.device.type,
    )


def probe(params: Params, root: Path) -> list[Seconds]:
    """About how long each phase takes, at most: a few of its steps are made, and nothing of that stays.

    Raises ArtifactError where conversion or encoding has not run.
    """
    converted, encoded = ConvertedCheckpoint.load(root), EncodedDataset.load(root)
    _agree(converted, encoded)
    with TemporaryDirectory() as scratch:
        job = _job(root, Path(scratch) / "kept", converted, encoded, params.finetuning)
        cache = replace(job.frozen.cache, home=Path(scratch) / "states")
        job = replace(job, frozen=replace(job.frozen, cache=cache))
        return [_probed(job, number, Path(scratch)) for number in range(len(params.finetuning.phases))]


def _probed(job: Job, number: int, scratch: Path) -> Seconds:
    starts = _starts(job, number)
    planned = _plan(job, number, starts)
    train, validation = (sum(split.rows.lengths) for split in (job.train, job.validation))
    passing = reuse.passing(_kept(job), _reaches(job))[number]
    tokens = Tokens(
        frozen=train + validation if passing else 0,
        steps=sum(job.train.rows.size(batch)[0] for epoch in planned.epochs for batch in epoch),
        validation=validation * len(planned.epochs),
    )
    few = [list(batch) for batch in chain.from_iterable(planned.epochs)][:STEPS]
    if starts:  # of these rows alone what stands still is computed
        places = list(chain.from_iterable(few))
        job = replace(job, train=Split(job.train.asked.only(places), f"probe of phase {number}"))
        ends = list(accumulate(map(len, few), initial=0))
        few = [list(range(*span)) for span in pairwise(ends)]
        planned = _plan(job, number, starts)
    planned = replace(planned, epochs=[few])
    return tokens.at(probing.measure(job.model, _stack(job.stack), planned, _settings(job), scratch=scratch))


def _job(
    root: Path,
    kept: Path,
    converted: ConvertedCheckpoint,
    encoded: EncodedDataset,
    settings: FinetuningParams,
    ranks: Ranks = ALONE,
) -> Job:
    objective = objectives.find(encoded.kind)
    objective.selected(settings.select)
    where = device.of_rank(device.choose(settings.device), ranks.rank)
    model = floors.load(converted.path / "model", device=where)
    device.demand_one(model)
    _adapt(model, settings)
    if settings.gradient_checkpointing:
        floors.checkpoint(model)
    vocabulary = Vocabulary.load(root)
    train, validation = (
        _split(encoded, name, model, vocabulary, settings.seed) for name in ("train", "validation")
    )
    if tail.splits(model):
        tried = train.rows.batch(range(min(2, len(train.rows))), model.device)
        tail.check(model, tried)
        packed.check(model, tried)
    home = environment.home(root) / ".regraft" / "states"
    return Job(
        model=model,
        stack=floors.floors(model),
        train=train,
        validation=validation,
        objective=objective,
        losses=_losses(settings, objective, train, len(encoded.labels)),
        settings=settings,
        frozen=Frozen(
            model,
            Cache(home, settings.cache.dtype, settings.cache.maximum_bytes),
            adapter=settings.adapter.model_dump() if settings.adapter else {},
        ),
        kept=kept,
        new=_new_rows(vocabulary, model),
        ranks=ranks,
    )


def _adapt(model: PreTrainedModel, settings: FinetuningParams) -> None:
    """Put the adapter into the layers of the deepest phase: below them the stock model stands still."""
    if settings.adapter is None:
        return
    stack = floors.floors(model)
    lowest = min(floors.lowest(stack, phase.depth) for phase in settings.phases)
    layers = range(max(0, lowest), len(stack) - 2)
    adapters.inject(model, Adapter(**settings.adapter.model_dump()), layers, seed=settings.seed)


def _losses(
    settings: FinetuningParams, objective: Objective, train: Split, classes: int
) -> objectives.Settings:
    weights = None
    if settings.class_weights == "balanced":
        if objective.balance is None:
            raise DataError("finetuning.class_weights: rows of this kind have no classes: set it to none")
        weights = objective.balance(train.asked.targets(range(len(train.rows))), classes)
    return objectives.Settings(weights, settings.label_smoothing, settings.focal_gamma)


def _general(job: Job, vocabulary: Vocabulary, encoded: EncodedDataset) -> Asked | Rows:
    """Rows of a general text; a language model is asked for their words, an encoder-decoder for what follows
    the first half of each."""
    model = job.model
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.path / "tokenizer", local_files_only=True)
    passages = drift.passages(GENERAL.read_text(encoding="utf-8"))
    ids = tokenizer(passages, truncation=True, max_length=encoded.max_length)["input_ids"]
    if objectives.PERPLEXITY not in job.objective.names:
        return Rows(Ragged.of(ids), None, model.config.pad_token_id or 0)
    if tail.splits(model):
        return reading.ask(pa.table({"input_ids": ids}), "text", model, special=vocabulary.special)
    halves = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in ids]
    table = pa.table(dict(zip(("input_ids", "target_ids"), zip(*halves, strict=True), strict=True)))
    return reading.ask(table, "prefix-remainder", model, special=vocabulary.special)


@dataclass(frozen=True)
class Knowledge:
    """What a model makes of a general text. loss: in nats a token, of language models."""

    states: States
    loss: float | None


def _knowledge(job: Job, general: Asked | Rows) -> Knowledge:
    if isinstance(general, Rows):
        return Knowledge(drift.states(job.model, general), None)
    rows = general.rows
    found = drift.states(job.model, rows.rows if isinstance(rows, Masked) else rows)
    return Knowledge(found, _figures(job, job.frozen.whole(rows), general, "general text")["loss"])


def _drift(before: Knowledge, after: Knowledge) -> report.Drift:
    floors = {name: asdict(one) for name, one in drift.likeness(before.states, after.states).items()}
    losses = {"before": before.loss, "after": after.loss}
    return report.Drift(floors, {when: loss for when, loss in losses.items() if loss is not None})


def _write(
    root: Path,
    job: Job,
    converted: ConvertedCheckpoint,
    encoded: EncodedDataset,
    told: Sequence[Event],
    drifted: report.Drift,
) -> None:
    with files.replace_directory(TrainedModel.folder(root)) as draft:
        _merge(job, converted, draft)
        weights = _save(job, converted, Vocabulary.load(root), draft)
        for name, table in TABLES.items():
            _write_table(draft / name, table(told))
        files.write_text(draft / DRIFT, files.canonical_json(asdict(drifted)))
        TrainedModel.save(
            draft,
            base=converted.digest,
            data=encoded.digest,
            labels=converted.labels,
            weights=weights,
            phases=[asdict(event) for event in told if isinstance(event, Finished)],
        )


def _merge(job: Job, converted: ConvertedCheckpoint, draft: Path) -> None:
    """Keep the adapter for itself, then make it part of the model, whose class is stock again."""
    if job.settings.adapter is None:
        return
    adapters.save(
        job.model,
        Adapter(**job.settings.adapter.model_dump()),
        draft / "adapter",
        base=files.digest_file(converted.path / "model" / "model.safetensors"),
        whole=[job.new.name] if job.new else [],
    )
    rows = job.validation.rows
    moved = adapters.merge(job.model, rows.batch(range(min(8, len(rows))), job.model.device))
    log.info("the adapter is merged: logits differ by %.1g of the largest", moved)


def _facts(
    job: Job,
    converted: ConvertedCheckpoint,
    encoded: EncodedDataset,
    told: Sequence[Event],
    drifted: report.Drift,
) -> report.Facts:
    settings = job.settings
    return report.Facts(
        told=told,
        floors=[floor.name for floor in job.stack],
        plans=[_asked(job, number) for number in range(len(settings.phases))],
        select=job.objective.selected(settings.select),
        rows={"train": len(job.train.rows), "validation": len(job.validation.rows)},
        settings={
            "Optimizer": f"{settings.optimizer}, weight decay {settings.weight_decay:g}",
            "Rows a batch": str(settings.batch_size),
            "Processes": str(settings.processes),
            "Precision": settings.precision,
            "Seed": str(settings.seed),
        },
        sources={
            "Base checkpoint": f"{converted.architecture} ({converted.family}), {converted.digest}",
            "Digest of its source": converted.source,
            "Digest of the encoded rows": encoded.digest,
        },
        adapter=settings.adapter.kind if settings.adapter else None,
        drift=drifted,
    )


def _asked(job: Job, number: int) -> report.Plan:
    phase, starts = job.settings.phases[number], _starts(job, number)
    return report.Plan(
        whole=[floor.name for floor in floors.learning(job.stack, phase.depth)],
        parts=phase.floors,
        learning_rate=phase.learning_rate,
        layer_decay=phase.layer_decay,
        reused=starts[0] if starts else None,
    )


def _prepared(folder: Path) -> Path:
    """`folder`, made; the points of other trainings that are finished are removed, unless they go on now.

    A finished point stays until then: what comes after the training may fail, and must not cost it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for finished in folder.parent.glob(f"*/{FINISHED}"):
        other = finished.parent
        with suppress(Timeout), FileLock(other.with_suffix(".lock"), timeout=0):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _agree(converted: ConvertedCheckpoint, encoded: EncodedDataset) -> None:
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
    code = [path for path in code if path.stem not in TELLING]  # what only tells
    parts += [
        torch.__version__,
        *map(metadata.version, ("peft", "transformers")),
        *map(files.digest_file, code),
    ]
    key = files.digest_json(parts).removeprefix("sha256:")[:16]
    return environment.home(root) / ".regraft" / "resume" / key / "point.safetensors"


def _split(
    encoded: EncodedDataset, name: str, model: PreTrainedModel, vocabulary: Vocabulary, seed: int
) -> Split:
    """Raises DataError where there is nothing to learn from."""
    path = encoded.path / f"{name}.parquet"
    asked = reading.ask(parquet.read_table(path), encoded.kind, model, special=vocabulary.special, seed=seed)
    if asked.silent:
        log.warning(
            "%s: %d rows were cut before their first token to be told and teach nothing (first: %s): raise "
            "encoding.max_length", path, len(asked.silent), asked.silent[0],
        )  # fmt: skip
    if not len(asked.rows):
        raise DataError(f"{path} holds no rows: look at preparation.subset and preparation.fractions")
    return Split(asked, files.digest_file(path))


def _new_rows(vocabulary: Vocabulary, model: PreTrainedModel) -> NewRows | None:
    if not vocabulary.fresh:
        return None
    rows = parquet.read_table(vocabulary.path / "alignment.parquet", columns=["id", "source_id"])
    ids = rows.filter(compute.is_null(rows["source_id"]))["id"].to_numpy().astype(np.int64)
    return NewRows(*floors.word_table(model), torch.as_tensor(np.sort(ids), device=model.device))


def _fine_tune(job: Job, point: Path, track: Track) -> list[Event]:
    meter = Meter(point.parent / TIMINGS)
    told: list[Event] = []
    steps = 0
    planned = [meter.around(phase) for phase in _planned(job)]
    for event in meter.follow(_events(job, planned, point)):
        told.append(event)
        steps += isinstance(event, Step)
        _tell(track, event, steps)
    return told


def _planned(job: Job) -> list[phases.Planned]:
    return [_plan(job, number, _starts(job, number)) for number in range(len(job.settings.phases))]


def _events(job: Job, planned: Sequence[phases.Planned], point: Path) -> Iterator[Event]:
    stack = _stack(job.stack)
    return phases.fine_tune(job.model, stack, planned, _settings(job), point=point, ranks=job.ranks)


def _settings(job: Job) -> phases.Settings:
    settings = job.settings
    return phases.Settings(
        settings.seed,
        settings.optimizer,
        settings.weight_decay,
        settings.save_every,
        job.objective.selected(settings.select),
    )


def _stack(stack: Sequence[floors.Floor]) -> phases.Stack:
    return [(floor.name, floor.parameters, floor.modules) for floor in stack]


def _plan(job: Job, number: int, starts: Sequence[int]) -> phases.Planned:
    """starts: see `_starts`."""
    phase = job.settings.phases[number]
    learning = floors.learning(job.stack, phase.depth, phase.floors)
    new = job.new if job.new and not any(job.new.name in floor.parameters for floor in learning) else None
    weights = cache(job.frozen.digests)  # of what learns not in this phase they tell once and for all
    forward = partial(_forward, job, phase.name, starts, weights=weights)
    validate = cache(lambda: forward(job.validation, "validation"))

    def measure() -> Mapping[str, float]:
        job.model.eval()
        return _figures(job, validate(), job.validation.asked, "validation")

    return phases.Planned(
        name=phase.name,
        stack=_stack(learning),
        work=lambda: _work(job, forward(job.train, "frozen layers"), _size(job, starts)),
        measure=measure,
        epochs=_epochs(job, number, phase),
        learning_rate=phase.learning_rate,
        layer_decay=phase.layer_decay,
        pace=Pace(phase.schedule, phase.warmup, job.settings.maximum_gradient_norm),
        early_stopping=phase.early_stopping,
        rows=new,
        complete=lambda: _keep_head(job) if phase.name in job.alone and job.ranks.first else None,
    )


def _figures(job: Job, forward: Forward, asked: Asked, about: str) -> dict[str, float]:
    size, every = frozen.BATCH if asked.rows.first else FEW, job.ranks.every
    found = frozen.answers(forward, asked.rows, description=about, size=size, every=every)
    sums = [job.objective.sums(logits, asked.targets(places)) for places, logits in found]
    return job.objective.figures(_total(job.ranks, sums))


def _total(ranks: Ranks, sums: Sequence[Tensor]) -> Tensor:
    """Of (k,) float64 each, from all processes; of few rows some have none."""
    own = torch.stack(list(sums)).sum(dim=0).tolist() if sums else []
    return torch.tensor([held for held in ranks.gather(own) if held], dtype=torch.float64).sum(dim=0)


def _epochs(job: Job, number: int, phase: Phase) -> list[Batches]:
    """The batches of each epoch; the last epoch is cut where `steps` end."""
    lengths, size, seed = job.train.rows.lengths, job.settings.batch_size, job.settings.seed
    epochs: list[Batches] = []
    steps = 0
    while len(epochs) < phase.epochs if phase.steps is None else steps < phase.steps:
        batches = order.epoch_order(
            lengths, batch_size=size, seed=(seed, number, len(epochs)), batch_tokens=phase.batch_tokens
        )
        if isinstance(job.train.rows, Masked):
            drawing = len(lengths) * (number * DRAWINGS + len(epochs) + 1)
            batches = [[drawing + place for place in batch] for batch in batches]
        epochs.append(batches if phase.steps is None else batches[: phase.steps - steps])
        steps += len(epochs[-1])
    return epochs


def _work(job: Job, forward: Forward, size: Size) -> Work:
    asked = job.train.asked
    named = lambda place: asked.ids[place % len(asked.ids)]  # noqa: E731
    forward = device.computed_in(job.settings.precision, forward, job.model.device.type)
    losses, parts = job.losses, job.settings.accumulation
    return Work(forward, asked.targets, job.objective, losses, named, parts, size)


def _size(job: Job, starts: Sequence[int]) -> Size:
    """The head alone, over kept states, is computed without padding."""
    if starts and starts[0] == len(job.stack) - 2:
        return lambda places: (job.train.rows.size(places)[0],) * 2
    return job.train.rows.size


def _forward(
    job: Job,
    phase: str,
    starts: Sequence[int],
    split: Split,
    about: str,
    weights: Callable[[], Sequence[str]],
) -> Forward:
    """Logits of places in `split`: what stands still in the phase is computed once, where that pays."""
    if not starts or isinstance(split.rows, Masked):
        return job.frozen.whole(split.rows)
    alone = split is job.train and phase in job.alone
    names = [*map(job.frozen.name, starts), *([MEAN] if alone else [])]
    kept = job.frozen.gather(split.rows, split.digest, names, about=about, weights=weights())
    if alone and job.ranks.first:
        with files.replace_file(job.kept / FROZEN) as draft, draft.open("wb") as stream:
            np.save(stream, frozen.pooled(kept[MEAN]))
    return job.frozen.above(kept[names[0]], starts[0], split.rows)


def _starts(job: Job, number: int) -> list[int]:
    """The layers whose incoming states are computed once when phase `number` begins, its own first; empty
    where computing them every epoch costs no more, or they would not fit."""
    return _kept(job)[number]


def _kept(job: Job) -> list[list[int]]:
    """Of every phase."""
    splits = [rows for rows in (job.train.rows, job.validation.rows) if isinstance(rows, Rows)]
    cache = job.settings.cache
    return reuse.kept(
        _reaches(job),
        len(job.stack) - 2,
        lambda start: sum(job.frozen.size(rows, start) for rows in splits),
        dtype=cache.dtype,
        maximum=cache.maximum_bytes,
    )


def _reaches(job: Job) -> list[Reach]:
    return [_reach(job, phase) for phase in job.settings.phases]


def _reach(job: Job, phase: Phase) -> Reach:
    start = floors.lowest(job.stack, phase.depth)
    hidden = isinstance(job.train.rows, Masked) or not tail.splits(job.model)
    bottom = start <= 0 or phase.floors or job.new or hidden
    rows, size = len(job.train.rows), job.settings.batch_size
    passes = reuse.passes(phase.epochs, phase.steps, batch_size=size, rows=rows)
    return Reach(None if bottom else start, passes)


def _keep_head(job: Job) -> None:
    """A head that has learned alone is put aside, to be judged on its own."""
    head = {name: value.detach().cpu() for name, value in job.stack[-1].parameters.items()}
    with files.replace_file(job.kept / HEAD) as draft:
        resume.write_tensors(draft, head, {"format": "pt"})


def _tell(track: Track, event: Event, step: int) -> None:
    if isinstance(event, Step):
        values = {
            "loss": event.loss,
            "learning_rate": event.learning_rate,
            "gradient_norm": event.gradient_norm,
        }
        track.metrics({f"train.{name}": value for name, value in values.items()}, step=step)
    elif isinstance(event, Measure):
        track.metrics({f"validation.{name}": value for name, value in event.figures.items()}, step=step)
    elif isinstance(event, Change):
        track.metrics({f"change.{floor}": value for floor, value in event.floors.items()}, step=step)


def _save(job: Job, converted: ConvertedCheckpoint, vocabulary: Vocabulary, draft: Path) -> str:
    """Write a transformers directory that loads without this project; returns the digest of its weights."""
    target = draft / "model"
    shutil.copytree(vocabulary.path / "tokenizer", target)
    shutil.copyfile(converted.path / "model" / "config.json", target / "config.json")
    state, tied = job.model.state_dict(), job.model.all_tied_weights_keys
    tensors = {name: v.detach().cpu().contiguous() for name, v in state.items() if name not in tied}
    resume.write_tensors(target / "model.safetensors", tensors, {"format": "pt"})
    if job.alone and not (job.kept / HEAD).exists():
        raise TrainingError(f"{job.kept / HEAD} is gone: remove {job.kept.parent} and train again")
    if job.kept.exists():
        shutil.copytree(job.kept, draft, dirs_exist_ok=True)
    return files.digest_file(target / "model.safetensors")


def _steps(told: Sequence[Event]) -> list[dict[str, Any]]:
    steps = [event for event in told if isinstance(event, Step)]
    return [{"step": place, **asdict(step)} for place, step in enumerate(steps, start=1)]


def _measures(told: Sequence[Event]) -> list[dict[str, Any]]:
    found = [event for event in told if isinstance(event, Measure)]
    return [{"phase": one.phase, "step": one.step, **one.figures} for one in found]


def _changes(told: Sequence[Event]) -> list[dict[str, Any]]:
    found = [event for event in told if isinstance(event, Change)]
    return [{"phase": one.phase, "step": one.step, **one.floors} for one in found]


def _write_table(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


TABLES = {"steps.csv": _steps, "validation.csv": _measures, "changes.csv": _changes}
