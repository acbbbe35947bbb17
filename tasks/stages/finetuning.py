"""finetuning: converted checkpoint and encoded rows in, a trained model out, phase by phase."""

import csv
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import accumulate, chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from transformers import AutoTokenizer
from transformers.core_model_loading import revert_weight_conversion

from tasks import environment, files
from tasks import params as parameters
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, TrainedModel, Vocabulary
from tasks.errors import TrainingError
from tasks.model import adapters, drift, floors, reading, tail
from tasks.model.adapters import Adapter
from tasks.model.batches import Ragged, Rows
from tasks.model.drift import States
from tasks.model.masked import Masked
from tasks.model.reading import Asked
from tasks.params import Params
from tasks.stages import Track, learning
from tasks.stages.learning import HEAD, Job, Split
from tasks.training import device, objectives, phases, processes, report, resume, reuse
from tasks.training import probe as probing
from tasks.training.events import Change, Event, Measure
from tasks.training.loop import Step
from tasks.training.meter import Meter
from tasks.training.probe import STEPS, Seconds, Tokens
from tasks.training.ranks import Ranks

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
PAGE, TIMINGS = "finetuning.html", "finetuning-timings.json"
GENERAL = Path(__file__).parents[1] / "english.txt"  # what nothing is trained on here
DRIFT, HEAT_MAP = "drift.json", "changes.svg"
OTHERS = "tasks.rank"  # the module that the other processes of a training run
FINISHED = "finished"  # marks a resume point whose training has ended well


def run(params: Params, root: Path, track: Track) -> TrainedModel:
    settings = params.finetuning
    with device.taken(settings.device, settings.processes) as devices:
        return _run(params, root, track, devices)


def _run(params: Params, root: Path, track: Track, devices: Sequence[str]) -> TrainedModel:
    settings = params.finetuning
    converted, encoded = ConvertedCheckpoint.load(root), EncodedDataset.load(root)
    learning.agree(converted, encoded)
    point = _point(root, Vocabulary.load(root), converted, encoded, settings)
    job = learning.prepare(root, point.parent / "kept", converted, encoded, settings, where=devices[0])
    with FileLock(_prepared(point.parent).with_suffix(".lock")):  # two at once would share one resume point
        general = _general(job, Vocabulary.load(root), encoded)
        before = _knowledge(job, general)
        with _together(devices, params, root) as ranks:
            told = _fine_tune(replace(job, ranks=ranks), point, track)
        drifted = _drift(before, _knowledge(job, general))
        facts = _facts(job, converted, encoded, told, drifted)  # before an adapter is merged
        _write(root, job, converted, encoded, facts, drifted)
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


def assist(params: Params, root: Path, ranks: Ranks, where: str) -> None:
    """What every process but the first does, on the device `where`: the same training, of which it tells and
    keeps nothing."""
    converted, encoded, settings = (
        ConvertedCheckpoint.load(root),
        EncodedDataset.load(root),
        params.finetuning,
    )
    point = _point(root, Vocabulary.load(root), converted, encoded, settings)
    job = learning.prepare(root, point.parent / "kept", converted, encoded, settings, ranks, where=where)
    for _ in _events(job, learning.planned(job), point):
        pass


def _together(devices: Sequence[str], params: Params, root: Path) -> AbstractContextManager[Ranks]:
    return processes.together(
        devices, module=OTHERS, task={"params": parameters.dump(params), "root": str(root.resolve())}
    )


def probe(params: Params, root: Path) -> list[Seconds]:
    """About how long each phase takes, at most: a few of its steps are made, and nothing of that stays.

    Raises ArtifactError where conversion or encoding has not run.
    """
    converted, encoded = ConvertedCheckpoint.load(root), EncodedDataset.load(root)
    learning.agree(converted, encoded)
    settings = params.finetuning
    with (
        device.taken(settings.device, patience=device.PATIENCE) as (where,),
        TemporaryDirectory() as scratch,
    ):
        job = learning.prepare(root, Path(scratch) / "kept", converted, encoded, settings, where=where)
        cache = replace(job.frozen.cache, home=Path(scratch) / "states")
        job = replace(job, frozen=replace(job.frozen, cache=cache))
        return [_probed(job, number, Path(scratch)) for number in range(len(settings.phases))]


def _probed(job: Job, number: int, scratch: Path) -> Seconds:
    starts = learning.starts(job, number)
    planned = learning.plan(job, number, starts)
    train, validation = (sum(split.rows.lengths) for split in (job.train, job.validation))
    passing = reuse.passing(learning.kept(job), learning.reaches(job))[number]
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
        planned = learning.plan(job, number, starts)
    planned = replace(planned, epochs=[few])
    return tokens.at(
        probing.measure(
            job.model, learning.stack(job.stack), planned, learning.settings(job), scratch=scratch
        )
    )


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
    return Knowledge(found, learning.figures(job, job.frozen.whole(rows), general, "general text")["loss"])


def _drift(before: Knowledge, after: Knowledge) -> report.Drift:
    floors = {name: asdict(one) for name, one in drift.likeness(before.states, after.states).items()}
    losses = {"before": before.loss, "after": after.loss}
    return report.Drift(floors, {when: loss for when, loss in losses.items() if loss is not None})


def _write(
    root: Path,
    job: Job,
    converted: ConvertedCheckpoint,
    encoded: EncodedDataset,
    facts: report.Facts,
    drifted: report.Drift,
) -> None:
    with files.replace_directory(TrainedModel.folder(root)) as draft:
        _merge(job, converted, draft)
        weights = _save(job, converted, Vocabulary.load(root), draft)
        for name, table in TABLES.items():
            _write_table(draft / name, table(facts.told))
        files.write_text(draft / DRIFT, files.canonical_json(asdict(drifted)))
        files.write_text(draft / HEAT_MAP, report.heat_map(facts))
        TrainedModel.save(
            draft,
            base=converted.digest,
            data=encoded.digest,
            labels=converted.labels,
            weights=weights,
            phases=[asdict(event) for event in facts.finished],
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
    phase, starts = job.settings.phases[number], learning.starts(job, number)
    return report.Plan(
        whole=[floor.name for floor in floors.learning(job.stack, phase.depth, only=phase.only)],
        parts=phase.floors,
        only=phase.only,
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


def _point(root: Path, *depends: Any) -> Path:
    """Where resume points live: outside DVC's outs, which are deleted before a stage runs, and under a key of
    all that the training depends on, so that another job's point is never taken for this one's."""
    parts = [d.digest if hasattr(d, "digest") else d.model_dump(mode="json") for d in depends]
    rooms = Path(__file__).parents[1]
    code = [
        Path(__file__),
        Path(learning.__file__),
        rooms / "params.py",
        rooms / "architectures.py",
        *sorted(rooms.glob("training/*.py")),
        *sorted(rooms.glob("model/*.py")),
    ]
    code = [path for path in code if path.stem not in TELLING]  # what only tells
    parts += [
        torch.__version__,
        *map(metadata.version, ("peft", "transformers")),
        *map(files.digest_file, code),
    ]
    key = files.digest_json(parts).removeprefix("sha256:")[:16]
    return environment.home(root) / ".regraft" / "resume" / key / "point.safetensors"


def _fine_tune(job: Job, point: Path, track: Track) -> list[Event]:
    meter = Meter(point.parent / TIMINGS)
    told: list[Event] = []
    steps = 0
    planned = [meter.around(phase) for phase in learning.planned(job)]
    for event in meter.follow(_events(job, planned, point)):
        told.append(event)
        steps += isinstance(event, Step)
        _tell(track, event, steps)
    return told


def _events(job: Job, planned: Sequence[phases.Planned], point: Path) -> Iterator[Event]:
    stack = learning.stack(job.stack)
    return phases.fine_tune(job.model, stack, planned, learning.settings(job), point=point, ranks=job.ranks)


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
    named = revert_weight_conversion(job.model, tensors)  # as save_pretrained does: each expert by itself
    resume.write_tensors(target / "model.safetensors", named, {"format": "pt"})
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
