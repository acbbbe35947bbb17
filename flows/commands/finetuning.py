"""The fine-tuning part of `regraft plan`: what each phase takes, from headers and manifests alone."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.commands import figures
from tasks import environment, references
from tasks.artifacts import MANIFEST, ConvertedCheckpoint, EncodedDataset, Vocabulary
from tasks.errors import ArtifactError, InputError
from tasks.params import Params
from tasks.training.cautions import cautions
from tasks.training.forecast import Lengths, Outline, PhaseForecast, Schedule, Tensor, forecast
from tasks.weights import anatomy, words
from tasks.weights.formats import Checkpoint, open_checkpoint
from tasks.weights.formats.entries import FLOATING

if TYPE_CHECKING:
    from tasks.training.probe import Seconds  # with torch, which a plan without a probe does without

SIZES = {  # keys of config.json: of BERT and Llama, DistilBERT, GPT-2, T5
    "width": ("hidden_size", "dim", "n_embd", "d_model"),
    "inner": ("intermediate_size", "hidden_dim", "n_inner", "d_ff"),
    "heads": ("num_attention_heads", "n_heads", "n_head", "num_heads"),
}
LANGUAGE = ("MaskedLM", "CausalLM", "LMHeadModel", "ConditionalGeneration")  # how such classes' names end
HIDDEN = 0.15  # of the tokens that a masked language model is given (Devlin et al., 2019)
READS: Mapping[str, Callable[[pa.Table], Any]] = {  # kind -> positions that the head reads, of each row
    "tags": lambda rows: compute.list_value_length(rows["places"]),
    "answer": lambda rows: compute.list_value_length(rows["input_ids"]),
    "text": lambda rows: compute.subtract(compute.list_value_length(rows["input_ids"]), 1),
    "completion": lambda rows: compute.list_value_length(rows["target_ids"]),
    "translation": lambda rows: compute.list_value_length(rows["target_ids"]),
    "prefix-remainder": lambda rows: compute.list_value_length(rows["target_ids"]),
    "chat": lambda rows: compute.subtract(
        compute.list_value_length(rows["input_ids"]), compute.max_element_wise(rows["prompt_length"], 1)
    ),
}
UNKNOWN = "unknown until {} has run"
TIME = "time: "


@dataclass(frozen=True)
class Outlook:
    """notes: what the figures rest on, and what is not known yet. outline: None where no model is here."""

    outline: Outline | None
    phases: Sequence[PhaseForecast]
    cautions: Sequence[str]
    notes: Sequence[str]
    seconds: "Sequence[Seconds]" = ()


def outlook(root: Path, now: Params, wanted: Params, *, probe: bool = False) -> Outlook:
    """What fine-tuning would take if the params became `wanted`, as far as it can be known without a run.

    probe: a few steps of each phase are really made, on what conversion and encoding have left.
    """
    outline, about = _outline(root, now, wanted)
    lengths, rows = _lengths(root)
    if outline is None:
        return Outlook(None, (), (), (about,))
    drawn = _drawn(root) if now.sources.checkpoint == wanted.sources.checkpoint else ()
    schedule = Schedule(outline, lengths, wanted.finetuning, fresh=_fresh(root), drawn=drawn)
    place = environment.home(root) / ".regraft" / "states"
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    seconds, time = _seconds(root, now, wanted) if probe else ((), "")
    notes = tuple(filter(None, (about, rows, time)))
    told = cautions(schedule, free=free, mean=wanted.conversion.pooling == "mean")
    return Outlook(outline, forecast(schedule), told, notes, seconds)


def _seconds(root: Path, now: Params, wanted: Params) -> "tuple[Sequence[Seconds], str]":
    if now.sources.checkpoint != wanted.sources.checkpoint:
        return (), TIME + UNKNOWN.format("conversion")
    for record in (ConvertedCheckpoint, EncodedDataset, Vocabulary):
        if not (record.folder(root) / MANIFEST).exists():
            return (), TIME + UNKNOWN.format(record.stage)
    from tasks.stages import finetuning  # with torch, which nothing else here needs

    return finetuning.probe(
        wanted, root
    ), f"{TIME}from a few steps of each phase, on this machine as busy as it is"


def _outline(root: Path, now: Params, wanted: Params) -> tuple[Outline | None, str]:
    """That of the converted checkpoint, else of the checkpoint as it came, whose head is yet to be made."""
    converted = ConvertedCheckpoint.folder(root) / "model"
    reference = wanted.sources.checkpoint
    try:
        if converted.exists() and now.sources.checkpoint == reference:
            return outlined(open_checkpoint(converted), head=True), "model: data/conversion as it is now"
        if references.is_remote(reference.path, root=root):
            return None, UNKNOWN.format("conversion") + f": {reference.path} is not on this disk yet"
        found = outlined(open_checkpoint(references.locate(reference.path, root=root)), head=False)
        return found, f"model: {reference.path}; its new head is " + UNKNOWN.format("conversion")
    except InputError as error:
        return None, UNKNOWN.format("conversion") + f": {error}"


def outlined(checkpoint: Checkpoint, *, head: bool) -> Outline:
    """The floors by the tensors' names. head: whether what stands above the layers will be used.

    Raises InputError where the config does not tell the sizes.
    """
    found: dict[str, dict[str, Tensor]] = {"embeddings": {}}
    places = anatomy.places(checkpoint.entries)
    stacks = list(dict.fromkeys((p.prefix, p.number) for p in places if p.floor == words.LAYER))
    for place in places:
        if place.entry.dtype in FLOATING:
            floor = _floor(place, stacks)
            found.setdefault(floor, {})[place.entry.name] = Tensor(place.entry.shape, place.part)
    above, config = found.pop("head", {}), dict(checkpoint.config)
    if config.get("model_type") == "gpt2":  # null stands for this, as in transformers
        config["n_inner"] = config.get("n_inner") or 4 * _first(config, SIZES["width"])
    sizes = {name: _first(config, keys) for name, keys in SIZES.items()}
    chosen = 0
    if any(entry.part == "router" for entry in places):
        chosen = _first(config, ("num_experts_per_tok",))
        sizes["inner"] *= chosen
    architecture = str((checkpoint.config.get("architectures") or [""])[0])
    language, masked = architecture.endswith(LANGUAGE), head and architecture.endswith("MaskedLM")
    return Outline(
        {**found, "head": above if head else {}},
        **sizes,
        shared=head and not above,
        words=_first(config, ("vocab_size",)) if head and language else 0,
        told=HIDDEN if masked else 1.0,
        chosen=chosen,
        whole=config.get("model_type") == "t5" or masked,
    )


def _floor(place: anatomy.Place, stacks: Sequence[tuple[str, int | None]]) -> str:
    """What closes a stack of layers stands on the floor of its last one, as in tasks/model/floors.py."""
    if place.floor == words.EMBEDDINGS:
        return "embeddings"
    if place.floor == words.LAYER:
        return f"layer {stacks.index((place.prefix, place.number))}"
    below = [
        layer
        for layer, (prefix, _) in enumerate(stacks)
        if place.floor == words.NORM and place.entry.name.startswith(f"{prefix.rpartition('.')[0]}.")
    ]
    return f"layer {below[-1]}" if below else "head"


def _first(config: Mapping[str, object], keys: Sequence[str]) -> int:
    for key in keys:
        if isinstance(value := config.get(key), int):
            return value
    raise InputError(f"config.json tells none of {', '.join(keys)}")


def _lengths(root: Path) -> tuple[Lengths | None, str]:
    try:
        encoded = EncodedDataset.load(root)
    except ArtifactError:
        return None, "rows: " + UNKNOWN.format("encoding")
    tables = [parquet.read_table(encoded.path / f"{split}.parquet") for split in ("train", "validation")]
    train, validation = map(_tokens, tables)
    read = READS.get(encoded.kind)
    counts = [sum(max(0, count) for count in read(table).to_pylist()) for table in tables] if read else None
    rows = f"{len(train):,} rows of train, {len(validation):,} of validation"
    lengths = Lengths(train, validation, (counts[0], counts[1]) if counts else None)
    return lengths, f"rows: data/encoding as it is now, {rows}"


def _tokens(rows: pa.Table) -> list[int]:
    """Of each row, of what is to be told too."""
    found = [
        compute.list_value_length(rows[n]) for n in ("input_ids", "target_ids") if n in rows.schema.names
    ]
    tokens: list[int] = (found[0] if len(found) == 1 else compute.add(*found)).to_pylist()
    return tokens


def _fresh(root: Path) -> int:
    try:
        return Vocabulary.load(root).fresh
    except ArtifactError:
        return 0


def _drawn(root: Path) -> Sequence[str]:
    try:
        return ConvertedCheckpoint.load(root).fresh
    except ArtifactError:
        return ()


def _time(found: Outlook) -> list[str]:
    """Of each phase; why it is not known stands in the notes where somebody has asked."""
    if found.seconds:
        return [figures.duration(one.all) for one in found.seconds]
    asked = any(note.startswith(TIME) for note in found.notes)
    return ["?" if asked else "unknown: --probe" for _ in found.phases]


def show(found: Outlook) -> None:
    """A column for each phase, then what the figures rest on, then what is hardly meant."""
    console = Console()
    if found.outline is not None:
        table = Table(title="fine-tuning", box=SIMPLE_HEAD)
        table.add_column("")
        for phase in found.phases:
            table.add_column(phase.name, justify="right")
        for name, cells in _rows(found.outline, found.phases):
            table.add_row(name, *cells)
        table.add_row("time, about", *_time(found))
        console.print(table)
    for note in found.notes:
        console.print(
            f"  {note}" if found.outline else f"fine-tuning: {note}", highlight=False, soft_wrap=True
        )
    for sentence in found.cautions:
        console.print(f"[yellow]caution[/yellow]: {sentence}", highlight=False, soft_wrap=True)


def _rows(outline: Outline, phases: Sequence[PhaseForecast]) -> list[tuple[str, list[str]]]:
    memory = [phase.memory or {} for phase in phases]
    kinds = dict.fromkeys(kind for one in memory for kind in one)
    return [
        ("what learns", [_learning(phase) for phase in phases]),
        ("trainable", [_trainable(outline, phase) for phase in phases]),
        ("of all", [_share(outline, phase.parameters) for phase in phases]),
        ("steps, at most", ["?" if phase.steps is None else f"{phase.steps:,}" for phase in phases]),
        ("rates", [_rates(phase.rates) for phase in phases]),
        ("computed once", [_once(phase.start, outline.layers) for phase in phases]),
        ("kept on disk", [_size(phase.states) for phase in phases]),
        ("memory, about", [_size(sum(one.values()) if one else None) for one in memory]),
        *((f"  {kind}", [_size(one.get(kind)) for one in memory]) for kind in kinds),
    ]


def _trainable(outline: Outline, phase: PhaseForecast) -> str:
    unknown = "head" in phase.floors and not outline.floors["head"]
    return figures.human(phase.parameters) + (" + head" if unknown else "")


def _share(outline: Outline, count: int) -> str:
    return figures.share(count, outline.parameters) if outline.floors["head"] or outline.shared else "?"


def _size(count: int | None) -> str:
    return "?" if count is None else figures.size(count) if count else "–"


def _learning(phase: PhaseForecast) -> str:
    floors = phase.floors
    numbers = tuple(int(floor.removeprefix("layer ")) for floor in floors if floor.startswith("layer "))
    layers = [f"layers {figures.ranges(numbers)}"] if numbers else []
    ends = [[name] if name in floors else [] for name in ("embeddings", "head")]
    return ", ".join([*ends[0], *layers, *ends[1]]) + (f": {phase.only}" if phase.only else "")


def _rates(rates: tuple[float, float]) -> str:
    lowest, highest = (f"{rate:.2g}" for rate in rates)
    return highest if lowest == highest else f"{lowest} to {highest}"


def _once(start: int | None, layers: int) -> str:
    return "nothing" if start is None else "the body" if start == layers else f"below layer {start}"
