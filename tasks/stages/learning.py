"""The job of a fine-tuning: what each phase learns from, on what it is computed, and how it is measured."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks import environment, files
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, Vocabulary
from tasks.errors import DataError, TrainingError
from tasks.model import adapters, floors, frozen, packed, reading, tail
from tasks.model.adapters import Adapter
from tasks.model.batches import Rows
from tasks.model.boundary import Cache
from tasks.model.frozen import MEAN, Forward, Frozen
from tasks.model.masked import Masked
from tasks.model.reading import Asked
from tasks.model.routers import Balance
from tasks.params import FinetuningParams, Phase
from tasks.training import device, objectives, order, phases, resume, reuse
from tasks.training.loop import Batches, Pace, Size, Work
from tasks.training.objectives import Objective
from tasks.training.ranks import ALONE, Ranks
from tasks.training.reuse import Reach
from tasks.training.table import NewRows

log = logging.getLogger(__name__)
HEAD, FROZEN = "head.safetensors", "frozen.npy"
FEW = 8  # validation rows at once where the head says something of many tokens
DRAWINGS = 10_000  # more than a phase has epochs: what is hidden differs in each


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
    balance: Balance | None = None  # of a mixture's experts

    @property
    def alone(self) -> frozenset[str]:
        """The phases at the schedule's beginning before anything below the head learns."""
        if self.new:  # rows that learn are not an untouched body
            return frozenset()
        heads = takewhile(lambda phase: phase.depth == 0 and not phase.floors, self.settings.phases)
        return frozenset(phase.name for phase in heads)


def prepare(
    root: Path,
    kept: Path,
    converted: ConvertedCheckpoint,
    encoded: EncodedDataset,
    settings: FinetuningParams,
    ranks: Ranks = ALONE,
    *,
    where: str | None = None,
) -> Job:
    """where: the device that was taken for it; None: whichever `finetuning.device` means."""
    objective = objectives.find(encoded.kind)
    objective.selected(settings.select)
    model = floors.load(converted.path / "model", device=where or device.choose(settings.device))
    device.demand_one(model)
    _adapt(model, settings)
    if settings.gradient_checkpointing:
        floors.checkpoint(model)
    vocabulary = Vocabulary.load(root)
    _demand_turns(settings, converted, vocabulary)
    train, validation = (
        _split(encoded, name, model, vocabulary, settings.seed) for name in ("train", "validation")
    )
    if tail.splits(model):
        tried = train.rows.batch(range(min(2, len(train.rows))), model.device)
        tail.check(model, tried)
        packed.check(model, tried)
    home, stack = environment.home(root) / ".regraft" / "states", floors.floors(model)
    return Job(
        model=model,
        stack=stack,
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
        balance=_balance(settings, model, stack),
    )


def planned(job: Job) -> list[phases.Planned]:
    return [plan(job, number, starts(job, number)) for number in range(len(job.settings.phases))]


def settings(job: Job) -> phases.Settings:
    settings = job.settings
    return phases.Settings(
        settings.seed,
        settings.optimizer,
        settings.weight_decay,
        settings.save_every,
        job.objective.selected(settings.select),
    )


def stack(stack: Sequence[floors.Floor]) -> phases.Stack:
    return [(floor.name, floor.parameters, floor.modules) for floor in stack]


def starts(job: Job, number: int) -> list[int]:
    """The layers whose incoming states are computed once when phase `number` begins, its own first; empty
    where computing them every epoch costs no more, or they would not fit."""
    return kept(job)[number]


def kept(job: Job) -> list[list[int]]:
    """Of every phase."""
    splits = [rows for rows in (job.train.rows, job.validation.rows) if isinstance(rows, Rows)]
    cache = job.settings.cache
    return reuse.kept(
        reaches(job),
        len(job.stack) - 2,
        lambda start: sum(job.frozen.size(rows, start) for rows in splits),
        dtype=cache.dtype,
        maximum=cache.maximum_bytes,
    )


def reaches(job: Job) -> list[Reach]:
    return [_reach(job, phase) for phase in job.settings.phases]


def plan(job: Job, number: int, starts: Sequence[int]) -> phases.Planned:
    """starts: see `_starts`."""
    phase = job.settings.phases[number]
    learning = floors.learning(job.stack, phase.depth, phase.floors, phase.only)
    new = job.new if job.new and not any(job.new.name in floor.parameters for floor in learning) else None
    weights = cache(job.frozen.digests)  # of what learns not in this phase they tell once and for all
    forward = partial(_forward, job, phase.name, starts, weights=weights)
    validate = cache(lambda: forward(job.validation, "validation"))

    def measure() -> Mapping[str, float]:
        job.model.eval()
        return figures(job, validate(), job.validation.asked, "validation")

    return phases.Planned(
        name=phase.name,
        stack=stack(learning),
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


def figures(job: Job, forward: Forward, asked: Asked, about: str) -> dict[str, float]:
    single = asked.rows.first or asked.rows.mean
    size, every = frozen.BATCH if single else FEW, job.ranks.every
    found = frozen.answers(forward, asked.rows, description=about, size=size, every=every)
    sums = [job.objective.sums(logits, asked.targets(places)) for places, logits in found]
    return job.objective.figures(_total(job.ranks, sums))


def agree(converted: ConvertedCheckpoint, encoded: EncodedDataset) -> None:
    if converted.labels != encoded.labels:
        raise DataError(
            f"the head has {len(converted.labels)} labels {converted.labels}, the data {len(encoded.labels)} "
            f"{encoded.labels}: run `dvc repro conversion`"
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
    if not objective.softened and (settings.label_smoothing or settings.focal_gamma):
        raise DataError(
            "finetuning.label_smoothing and focal_gamma change a choice of one among many, and rows of this "
            "kind ask for none: set both to 0"
        )
    if settings.class_weights == "balanced":
        if objective.balance is None:
            raise DataError("finetuning.class_weights: rows of this kind have no classes: set it to none")
        weights = objective.balance(train.asked.targets(range(len(train.rows))), classes)
    return objectives.Settings(weights, settings.label_smoothing, settings.focal_gamma)


def _balance(
    settings: FinetuningParams, model: PreTrainedModel, stack: Sequence[floors.Floor]
) -> Balance | None:
    """Raises TrainingError for a weight of what nothing is learned of, and for routers that learn nothing
    else: the weights of the experts that read a token add up to 1, so that one alone has none to learn."""
    weight, learned = settings.router_aux_loss_coef, set[str]()
    for phase in settings.phases:
        for floor in floors.learning(stack, phase.depth, phase.floors, phase.only):
            learned |= floor.parameters.keys()
    if not any(floor.alone["router"].keys() & learned for floor in stack):
        if weight is not None:
            raise TrainingError(
                f"finetuning.router_aux_loss_coef: no phase lets a router of {type(model).__name__} learn: "
                "set it to null"
            )
        return None
    alone = [phase.name for phase in settings.phases if phase.only == "router"]
    if alone and model.config.num_experts_per_tok == 1:
        raise TrainingError(
            f"phase {alone[0]}: one expert reads a token, at weight 1 whatever its router says, which would "
            "learn nothing of the rows: convert with --top-k 2"
        )
    weight = model.config.router_aux_loss_coef if weight is None else weight
    return Balance(model, weight) if weight else None


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


def _demand_turns(settings: FinetuningParams, converted: ConvertedCheckpoint, vocabulary: Vocabulary) -> None:
    """Raises TrainingError where something drawn at random would stay as it was drawn."""
    only = [phase.name for phase in settings.phases if phase.only]
    if only and vocabulary.fresh:
        raise TrainingError(
            f"phase {only[0]}: the embeddings of new tokens learn in every phase, and its `only` lets "
            "nothing else learn: leave `only` out, or vocabulary.add_tokens"
        )
    if len(only) == len(settings.phases) and converted.fresh:
        raise TrainingError(
            f"{', '.join(converted.fresh)} would stay as drawn at random, as every phase has an `only`: give "
            "the head a phase of its own"
        )


def _new_rows(vocabulary: Vocabulary, model: PreTrainedModel) -> NewRows | None:
    if not vocabulary.fresh:
        return None
    rows = parquet.read_table(vocabulary.path / "alignment.parquet", columns=["id", "source_id"])
    ids = rows.filter(compute.is_null(rows["source_id"]))["id"].to_numpy().astype(np.int64)
    return NewRows(*floors.word_table(model), torch.as_tensor(np.sort(ids), device=model.device))


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
    work = Work(forward, asked.targets, job.objective, losses, named, parts, size)
    if job.balance is None:
        return work
    balance, lengths = job.balance, job.train.rows.lengths
    beside = lambda places: balance.loss([lengths[place] for place in places])  # noqa: E731
    return replace(work, forward=balance.heard(forward), beside=beside)


def _size(job: Job, starts: Sequence[int]) -> Size:
    """The head alone, over kept states, is computed without padding, and so is what lies end to end."""
    if packed.known(job.model) or (starts and starts[0] == len(job.stack) - 2):
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
