"""Who fine-tunes: this project, transformers' Trainer at its best, and the Trainer as its tutorial has it.

All begin with the same weights and take the same phases, rates, batch size, optimizer and clipping; all look
at the same validation rows after every epoch. Loading the model is not counted. Ours keeps resume points and
tells how far weights have moved; the Trainers keep and tell nothing.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.labelled import LONGEST, Part, Portion
from tasks import files
from tasks.model import floors, frozen
from tasks.model.batches import Ragged, Rows
from tasks.model.boundary import Cache
from tasks.model.frozen import Frozen
from tasks.model.reading import Asked
from tasks.params import FinetuningParams, Phase
from tasks.stages import finetuning, learning
from tasks.training import device, objectives

POOL = 50  # batches sorted together, as transformers does from 6,400 rows on
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Processor and wall seconds, and the most memory held meanwhile, in MB (None: the system tells none)."""

    cpu: float = 0.0
    wall: float = 0.0
    rss_mb: float | None = None

    @property
    def seconds(self) -> float:
        """What counts: the processor's, where nothing else computes."""
        return self.wall if torch.cuda.is_available() else self.cpu


@dataclass(frozen=True)
class Outcome:
    """What came of the phases up to one: all they cost, and how many unseen rows are answered rightly."""

    cost: Cost
    right: int


@contextmanager
def measured(cost: Cost) -> Iterator[None]:
    """Add what happens inside to `cost`."""
    gc.collect()
    _forget_peak()
    _wait()
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    _wait()
    cost.cpu += time.process_time() - cpu
    cost.wall += time.perf_counter() - wall
    peak = _peak()
    cost.rss_mb = None if peak is None else max(peak, cost.rss_mb or 0.0)


def ours(start: Path, portion: Portion, phases: Sequence[Phase], folder: Path, seed: int) -> Outcome:
    """The stage's own way, from the model on; states are kept below `folder`, or found there."""
    model = floors.load(start, device=device.choose("auto"))
    job = _job(model, portion, FinetuningParams(phases=tuple(phases), seed=seed), folder)
    cost = Cost()
    with measured(cost):
        finetuning._fine_tune(job, job.kept / "point.safetensors", Silence())
    return Outcome(cost, _right(model, portion.unseen))


def best(
    start: Path, portion: Portion, phases: Sequence[Phase], folder: Path, seed: int
) -> dict[str, Outcome]:
    """Dynamic padding, rows grouped by length, a fused optimizer. Phase -> outcome."""
    return _trained(start, portion, phases, folder, seed, padding="longest", strategy="group_by_length")


def tutorial(
    start: Path, portion: Portion, phases: Sequence[Phase], folder: Path, seed: int
) -> dict[str, Outcome]:
    """As run_glue.py has it: every row padded to 128, in a random order. Phase -> outcome."""
    return _trained(start, portion, phases, folder, seed, padding="max_length", strategy="random")


def _job(model: Any, portion: Portion, settings: FinetuningParams, folder: Path) -> learning.Job:
    return learning.Job(
        model=model,
        stack=floors.floors(model),
        train=_split(portion.train, model),
        validation=_split(portion.validation, model),
        objective=objectives.find("label"),
        losses=objectives.Settings(),
        settings=settings,
        frozen=Frozen(model, Cache(folder / "states", settings.cache.dtype, settings.cache.maximum_bytes)),
        kept=folder / f"kept-{settings.seed}",
        new=None,
    )


def _split(part: Part, model: Any) -> learning.Split:
    rows = Rows(Ragged.of(part.input_ids), None, model.config.pad_token_id)
    targets = torch.as_tensor(part.targets, device=model.device)
    names = list(map(str, range(len(rows))))
    return learning.Split(Asked(rows, lambda places: targets[places], names), files.digest_json(part))


class Silence:
    """Tracks nothing."""

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None: ...

    def file(self, path: Path, folder: str = "") -> None: ...


def _trained(
    start: Path, portion: Portion, phases: Sequence[Phase], folder: Path, seed: int, **ways: Any
) -> dict[str, Outcome]:
    model = floors.load(start, device=device.choose("auto"))
    cost, found = Cost(), {}
    for phase in phases:
        _let_learn(model, phase)
        trainer = _trainer(model, start, portion, phase, folder, seed, **ways)
        with measured(cost):
            trainer.train()
        found[phase.name] = Outcome(Cost(cost.cpu, cost.wall, cost.rss_mb), _right(model, portion.unseen))
    return found


def _let_learn(model: Any, phase: Phase) -> None:
    model.requires_grad_(False)
    for floor in floors.learning(floors.floors(model), phase.depth):
        for value in floor.parameters.values():
            value.requires_grad_(True)


class Grouped(Sampler[int]):
    """transformers' order by length, in pools as large as it takes for large tables."""

    def __init__(self, lengths: list[int], size: int) -> None:
        self.lengths, self.size = lengths, size

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(get_length_grouped_indices(self.lengths, self.size, mega_batch_mult=POOL))


class GroupedTrainer(Trainer):
    """transformers sorts only a quarter of a small table together, which would count against it here."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return Grouped([len(row["input_ids"]) for row in self.train_dataset], self.args.train_batch_size)


def _trainer(
    model: Any,
    start: Path,
    portion: Portion,
    phase: Phase,
    folder: Path,
    seed: int,
    *,
    padding: str,
    strategy: str,
) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(start)
    trainer = GroupedTrainer(
        model,
        _arguments(phase, folder, seed, strategy),
        data_collator=DataCollatorWithPadding(tokenizer, padding=padding, max_length=LONGEST),
        train_dataset=_examples(portion.train),
        eval_dataset=_examples(portion.validation),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(phase: Phase, folder: Path, seed: int, strategy: str) -> TrainingArguments:
    """What FinetuningParams says by default, in transformers' words."""
    settings, is_gpu = FinetuningParams(phases=(phase,)), torch.cuda.is_available()
    return TrainingArguments(
        str(folder / "trainer"),
        num_train_epochs=phase.epochs,
        learning_rate=phase.learning_rate,
        lr_scheduler_type=phase.schedule,
        warmup_steps=phase.warmup,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=frozen.BATCH,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.maximum_gradient_norm,
        optim="adamw_torch_fused",
        train_sampling_strategy=strategy,
        bf16=is_gpu and strategy == "group_by_length",
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=is_gpu,
        seed=seed,
    )


def _examples(part: Part) -> list[dict[str, Any]]:
    pairs = zip(part.input_ids, part.targets, strict=True)
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "label": target} for ids, target in pairs]


def _right(model: Any, part: Part) -> int:
    model.eval()
    rows = Rows(Ragged.of(part.input_ids), None, model.config.pad_token_id)
    forward: Callable[[Sequence[int]], torch.Tensor] = Frozen(model, Cache(Path(), "none", 0)).whole(rows)
    answers = frozen.answers(forward, rows, description="unseen rows")
    targets = torch.as_tensor(part.targets)
    return sum(int((logits.argmax(dim=-1).cpu() == targets[places]).sum()) for places, logits in answers)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> None:
    """Linux alone can: from here on it notes the peak anew. What others have given back is no part of it."""
    if RESET.exists():
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back:
            give_back(0)
        RESET.write_text("5", encoding="ascii")


def _peak() -> float | None:
    if not RESET.exists():
        return None
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
