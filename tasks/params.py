"""params.yaml: one section per stage, every key explained, unknown keys refused. The only owner of yaml."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks.errors import ParamsError, did_you_mean

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
RowKind = Literal[
    "label", "labels", "score", "pair", "text", "completion", "chat", "translation", "prefix-remainder",
    "tags", "answer", "preference", "rating",
]  # fmt: skip

# The validation figure by which the best epoch of a phase is kept, unless one is named.
SELECTED: Mapping[str, str] = {
    "label": "accuracy", "pair": "accuracy", "labels": "micro_f1", "score": "r2", "tags": "accuracy",
    "answer": "loss", "text": "loss", "completion": "loss", "chat": "loss", "translation": "loss",
    "prefix-remainder": "loss",
}  # fmt: skip
LOWER_IS_BETTER = ("loss", "perplexity")

LEVELS = ("content", "inverse", "digests", "load", "parity", "similarity", "loss", "generation")  # of proof
DEFAULT_LEVELS = ("content", "load", "parity", "similarity")


SCHEMA = 1  # of params.yaml; a file says `schema: N` only where it is not this one
FORMER: Mapping[str, str] = {  # keys of former versions, and what they are called today
    "sources.text.text": "sources.text.columns.text",
    "sources.text.label": "sources.text.columns.label",
    "preparation.maximum_quarantine": "preparation.max_quarantine_fraction",
    "promotion.must_beat": "promotion.gate.must_beat",
}


def _known_levels(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    faults = [f"no level {name!r}; {did_you_mean(name, known)}" for name in names if name not in known]
    if faults:
        raise ValueError("; ".join(faults))
    return names


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextSource(Section):
    """Where the rows come from: CSV, TSV, JSON lines, Parquet (plain, .gz or .zst), a folder of text files
    per label, a directory that `datasets` saved, a Hub dataset, or one of these inside a package."""

    path: str = Field(description="path, Hub dataset name, or package:NAME==VERSION/path/inside/the/package")
    kind: RowKind = Field("label", description="what a row is")
    columns: dict[str, str] = Field(
        {}, description="column of the table for each name of the kind, where they differ"
    )
    id: str | None = Field(None, description="column of ids; null makes them from each row's content")
    split: str | None = Field(
        None, description="column of fixed splits (train, validation, test); null: none"
    )
    keep: tuple[str, ...] = Field(
        (), description="columns that come along with each row, so that evaluation.slices may name them"
    )
    separator: str | None = Field(None, description="between the labels of one cell, for kind labels")
    encoding: str = Field("utf-8", description="how the file's bytes become text; auto looks once a file")
    undecodable: Literal["quarantine", "replace"] = Field(
        "quarantine", description="rows with bytes of no character: set aside, or keep with U+FFFD for each"
    )
    maximum_row: Count = Field(2**24, description="bytes of a row beyond which it is set aside")
    maximum_bytes: Count = Field(2**36, description="bytes that a compressed file may unpack to")
    revision: str = Field("main", description="Hub branch, tag or commit; ignored for files")
    licence: str = Field("not stated", description="carried into reports")

    @field_validator("keep")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise ValueError(f"{twice[0]!r} is named twice: name each column once")
        return names


class Reference(Section):
    """Texts that training must not have seen: an evaluation kept elsewhere."""

    path: str = Field(description="like sources.text.path")
    revision: str = Field("main", description="Hub branch, tag or commit; ignored for files")
    text: str = Field("text", description="column that holds the text")


class CheckpointSource(Section):
    """A pretrained checkpoint: a Hub model id, a directory, or one inside an installed package."""

    path: str = Field(description="Hub id, directory, or package:NAME==VERSION/path/inside/the/package")
    revision: str = Field("main", description="Hub branch, tag or commit; ignored for directories")
    licence: str = Field("not stated", description="carried into reports")


class SourcesParams(Section):
    text: TextSource
    evaluations: tuple[Reference, ...] = Field(
        (), description="evaluations kept elsewhere: rows found in them leave train"
    )
    checkpoint: CheckpointSource


class Subset(Section):
    """At most this many rows of each split, chosen by hash; null takes all."""

    train: Annotated[Count | None, Field(description="rows to learn from")] = None
    validation: Annotated[Count | None, Field(description="rows by which something is chosen")] = None
    test: Annotated[Count | None, Field(description="rows that judge")] = None


class Fractions(Section):
    """Share of duplicate clusters that goes to validation and to test; the rest trains."""

    validation: Annotated[float, Field(gt=0, lt=1, description="share that chooses")] = 0.1
    test: Annotated[float, Field(gt=0, lt=1, description="share that judges")] = 0.2

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must stay below 1: nothing would be left to train on")
        return self


class PreparationParams(Section):
    clean: tuple[str, ...] = Field(
        ("html", "mojibake", "unicode", "control", "whitespace"), description="cleaning steps, in this order"
    )
    minimum_characters: Count = Field(3, description="shorter texts are dropped")
    maximum_characters: Count = Field(20_000, description="longer texts are dropped")
    maximum_symbols: Share = Field(
        1.0, description="share of neither letters, digits nor spaces; 1 drops none"
    )
    languages: tuple[str, ...] = Field(
        (), description="ISO 639-1 codes; other texts are dropped (needs regraft[language]); empty: any"
    )
    labels: tuple[str, ...] = Field((), description="the only labels that may occur; empty: any")
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Jaccard similarity of word shingles from which two texts are near-duplicates"
    )
    shingle: Count = Field(3, description="words per shingle")
    conflicts: Literal["quarantine", "majority", "keep"] = Field(
        "quarantine",
        description="duplicates with different labels: set all aside, keep the commoner label, or the first",
    )
    fractions: Fractions = Fractions()
    salt: str = Field("regraft", description="another salt divides the rows anew")
    subset: Subset = Subset()
    max_quarantine_fraction: Share = Field(
        0.1, description="a larger share of quarantined rows fails the stage"
    )
    engine: Literal["thread", "process", "ray"] = Field(
        "thread", description="who works on the shards: process for large tables; ray needs regraft[ray]"
    )
    workers: Count | None = Field(None, description="how many; null: one for each core")
    shard_rows: Count = Field(20_000, description="rows worked on at once by each")


class VocabularyParams(Section):
    tokenizer: Literal["checkpoint", "bpe", "wordpiece", "unigram"] = Field(
        "checkpoint", description="the checkpoint's own, or a new one trained on the cleaned train split"
    )
    size: Count = Field(30_000, description="tokens of a newly trained one, at most")
    minimum_frequency: Count = Field(2, description="occurrences that a new token needs")
    add_tokens: tuple[str, ...] = Field((), description="tokens to add, such as <|user|>")


class ConversionParams(Section):
    family: str = Field("auto", description="rule table; auto takes the checkpoint's model_type")
    seed: int = Field(17, description="seed of initialised tensors (the new head)")
    deviation: Annotated[float, Field(gt=0)] = Field(
        0.02, description="standard deviation of a new head's weights (BERT's initializer_range)"
    )
    pooling: Literal["token", "mean"] = Field(
        "token",
        description="what a classifier reads: the first token (decoders: the last), or the mean of all, in a "
        "class of ours that plain transformers does not load",
    )
    tolerance: Annotated[float, Field(ge=0)] = Field(
        0.0, description="largest allowed |difference| of hidden states, source against converted"
    )
    verify: tuple[str, ...] = Field(
        DEFAULT_LEVELS, description=f"what is proven beside the structure: {', '.join(LEVELS)}"
    )

    @field_validator("verify")
    @classmethod
    def _levels_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known_levels(names, LEVELS)


class EncodingParams(Section):
    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens a row may have; longer are cut")
    packing: Literal["none", "wrapped", "bfd_split"] = Field(
        "none",
        description="kind text only: fill rows of max_length, losing no token (needs regraft[packing])",
    )
    stride: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="kind answer only: tokens of a context that two windows share; null: a quarter of "
        "max_length",
    )


Only = Literal["feed-forward", "router"]  # what a layer has that can learn without the rest of it


class Phase(Section):
    """One step of the unfreezing schedule; `depth` counts layers below the head that learn."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", description="what runs and pages call it")]
    depth: Annotated[int, Field(ge=0)] | Literal["half", "all"] = Field(
        description="layers below the head that learn; 0: the head alone"
    )
    floors: tuple[Literal["embeddings", "norms", "biases"], ...] = Field(
        (), description="what else learns in the floors below that depth"
    )
    only: Only | None = Field(
        None, description="what alone learns in the layers, and neither embeddings nor head do"
    )
    epochs: Annotated[Count, Field(description="times that all rows are learned from")] = 1
    steps: Count | None = Field(None, description="optimizer steps, instead of epochs")
    learning_rate: Annotated[
        float, Field(gt=0, le=1, description="of the highest floor that learns, at its peak")
    ]
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="each layer further down learns at this multiple of the one above (ULMFiT, 2018)"
    )
    warmup: Share = Field(0.1, description="share of the phase's steps in which the rate rises from 0")
    schedule: Literal["linear", "cosine", "constant", "slanted-triangular"] = Field(
        "linear", description="how the rate moves behind the warm-up"
    )
    batch_tokens: Count | None = Field(
        None, description="tokens of a batch, padding included, instead of batch_size rows"
    )
    early_stopping: Count | None = Field(
        None, description="epochs without a better validation figure after which the phase ends"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and "epochs" in self.model_fields_set and self.epochs != 1:
            raise ValueError(f"phase {self.name}: name epochs or steps, not both")
        return self

    @model_validator(mode="after")
    def _only_in_layers(self) -> Self:
        if self.only and (self.floors or self.depth == 0):
            raise ValueError(f"phase {self.name}: `only` wants a depth above 0, and no floors")
        return self


class CacheParams(Section):
    """Hidden states at the border of what is frozen, computed once and kept."""

    dtype: Annotated[
        Literal["float16", "float32", "int8", "none"],
        Field(description="how they are kept; none: only what the head alone reads is, as float32"),
    ] = "float16"
    maximum_bytes: Annotated[Count, Field(description="disk that they may take in all")] = 2**33


class AdapterParams(Section):
    """Small tensors that learn in place of the layers' own, and are merged into them at the end."""

    kind: Literal["lora", "dora", "rslora", "ia3", "houlsby", "pfeiffer"] = Field(
        "lora", description="what is put beside the layers' own tensors"
    )
    rank: Count = Field(8, description="inner width; ia3 has none")
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="what is added counts alpha / rank times; rslora: alpha / square root of rank"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="of what enters the adapter, while it learns"
    )
    targets: Literal["attention", "all-linear"] = Field(
        "attention", description="query, key, value and output; all-linear: the feed-forward part too"
    )

    @field_validator("kind")
    @classmethod
    def _merges(cls, kind: str) -> str:
        if kind in ("houlsby", "pfeiffer"):
            raise ValueError(
                f"{kind} cannot be merged into a model that evaluation and promotion can read: use lora, "
                "dora, rslora or ia3 (tasks/model/adapters.py puts it into a model of your own)"
            )
        return kind

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        idle = [k for k in ("rank", "alpha", "dropout", "targets") if getattr(self, k) != _default(self, k)]
        if self.kind == "ia3" and idle:
            raise ValueError(f"ia3 scales fixed places and has no {', '.join(idle)}: leave that out")
        return self


def _default(section: Section, name: str) -> Any:
    return type(section).model_fields[name].default


class FinetuningParams(Section):
    seed: Annotated[int, Field(ge=0, description="of the order of rows, dropout and adapters")] = 1
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where training and evaluation compute; auto: a GPU where there is one"
    )
    processes: Count = Field(
        1, description="that share each batch on this host, a GPU each; the update is the same for any number"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of matrix products while training; weights stay float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="layers that learn are computed twice and their activations not kept"
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="how gradients become updates")
    batch_size: Annotated[Count, Field(description="rows of an update")] = 32
    accumulation: Count = Field(
        1, description="parts in which a batch is computed; the update is the same for any number"
    )
    weight_decay: Annotated[float, Field(ge=0, description="of matrices; 0: none")] = 0.01
    maximum_gradient_norm: Annotated[float, Field(gt=0, description="to which longer ones are cut")] = 1.0
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced gives every class the same say, however rare"
    )
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of a row's weight that all classes divide")
    ] = 0.0
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="how much less rows count that are answered well (Lin et al., 2017); 0: cross-entropy",
    )
    router_aux_loss_coef: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="weight of the loss that keeps the load of a mixture's experts even, of each part of a "
        "batch and each layer whose router learns; null: the checkpoint's",
    )
    select: Literal["auto", "loss", "accuracy", "micro_f1", "r2", "perplexity"] = Field(
        "auto",
        description="validation figure by which the best epoch of a phase is kept; auto: the kind's own",
    )
    save_every: Count = Field(50, description="optimizer steps between resume points")
    cache: CacheParams = CacheParams()
    adapter: AdapterParams | None = Field(
        None, description="what learns in the layers that a phase unfreezes; null: the layers themselves"
    )
    phases: tuple[Phase, ...] = Field(min_length=1, description="the unfreezing schedule, in order")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phase names must differ: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _adapter_learns_alone(self) -> Self:
        if self.adapter is None:
            return self
        faults = [
            f"phase {phase.name}: leave out floors and only"
            for phase in self.phases
            if phase.floors or phase.only
        ]
        if all(phase.depth == 0 for phase in self.phases):
            faults.append("no phase has a depth above 0")
        if faults:
            raise ValueError(f"an adapter learns instead of the layers' own tensors: {'; '.join(faults)}")
        return self


class AbstainParams(Section):
    accuracy: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of the answered validation rows that must be right"
    )


Change = Literal["typo", "upper", "lower", "name", "punctuation", "whitespace"]


class Direction(Section):
    """Behind any text, this makes a label no less likely."""

    append: str = Field(description="a phrase, such as: It was awful.")
    label: str = Field(description="that becomes no less likely")
    tolerance: Share = Field(0.1, description="fall of its probability that is forgiven")


class Expected(Section):
    """A text of which anybody knows the label."""

    text: str = Field(description="such as: I loved every minute of it.")
    pair: str | None = Field(None, description="the second text, for kind pair")
    label: str = Field(description="that anybody would give it")


class BehaviourParams(Section):
    """What the model must not mind, must not lose and must know; for kinds label, labels and pair."""

    perturbations: Annotated[tuple[Change, ...], Field(description="must not change an answer")] = (
        "typo",
        "upper",
        "lower",
        "name",
        "punctuation",
        "whitespace",
    )
    rows: Annotated[Count, Field(description="test rows that are perturbed, at most")] = 500
    names: Annotated[tuple[str, ...], Field(description="that stand for one another; empty: twenty")] = ()
    direction: Annotated[tuple[Direction, ...], Field(description="what must not lose a label")] = ()
    expected: Annotated[tuple[Expected, ...], Field(description="what must be known")] = ()


class PromptingParams(Section):
    """Among what the baseline k_shot chooses, on validation rows."""

    templates: Annotated[
        tuple[str, ...],
        Field(
            min_length=1, description="of a prompt: {text}, then {label} at the end; {labels}: all of them"
        ),
    ] = (
        "Text: {text}\nLabel: {label}",
        "{text}\nThis is {label}",
        "Choose one of: {labels}.\nText: {text}\nAnswer: {label}",
    )
    shots: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(min_length=1, description="numbers of training rows that are shown before the text"),
    ] = (0, 4)
    draws: Annotated[Count, Field(description="sets of such rows that are tried of each number")] = 2
    rows: Annotated[Count, Field(description="validation rows that choose, at most")] = 200

    @field_validator("templates")
    @classmethod
    def _templates_ask_for_the_label(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for one in templates:
            if one.count("{text}") != 1 or one.count("{label}") != 1 or not one.endswith("{label}"):
                raise ValueError(f"{one!r} must hold {{text}} once and end with {{label}}")
        return templates


class EvaluationParams(Section):
    metrics: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "auto", description="names; auto: the usual ones of the kind of row"
    )
    baselines: Literal["auto"] | tuple[str, ...] = Field(
        "auto", description="names; auto: all of the kind of row but k_shot (needs regraft[prompting])"
    )
    resamples: Annotated[int, Field(ge=100)] = Field(1000, description="bootstrap resamples per interval")
    confidence: Annotated[float, Field(gt=0.5, lt=1, description="of all intervals and tests")] = 0.95
    seed: Annotated[int, Field(description="of resamples, perturbations and demonstrations")] = 1
    slices: dict[str, str] = Field(
        {},
        description="name -> SQL over the rows' columns, sources.text.keep among them: one slice where it is "
        "true, or one for each value",
    )
    smallest_slice: Count = Field(100, description="rows below which a slice is no evidence")
    abstain: AbstainParams | None = Field(
        None, description="say nothing of rows the model is not sure enough of; null answers all"
    )
    threshold: Literal["half", "best_f1"] = Field(
        "half", description="from which probability a label holds, for kind labels; best_f1: on validation"
    )
    behaviour: BehaviourParams = BehaviourParams()
    prompting: PromptingParams = PromptingParams()


class ProtectedSlices(Section):
    """Parts of the test rows in which a candidate must not be worse than the champion."""

    minimum: Annotated[
        Count, Field(description="rows below which a slice is no evidence, and fails nobody")
    ] = 100
    margin: Annotated[
        float,
        Field(ge=0, description="loss of the primary score beyond which a slice fails the candidate"),
    ] = 0.05


class GateParams(Section):
    """What a candidate must fulfil to become champion; null or empty asks for nothing."""

    must_beat: Annotated[
        Literal["auto"] | tuple[str, ...],
        Field(description="baselines that the model must beat by a paired test; auto: all evaluated ones"),
    ] = "auto"
    primary: Annotated[
        str,
        Field(description="metric that must be higher than theirs; auto: each row's score, such as accuracy"),
    ] = "auto"
    margin: Annotated[
        float, Field(ge=0, description="by how much the primary metric must exceed the champion's")
    ] = 0.0
    not_worse: Annotated[
        dict[str, Annotated[float, Field(ge=0)]],
        Field(description="metric -> how much worse than the champion's it may be, and shown to be no more"),
    ] = {}
    slices: Annotated[ProtectedSlices | None, Field(description="that may not fall")] = ProtectedSlices()
    maximum_ece: Annotated[Share | None, Field(description="expected calibration error on the test rows")] = (
        None
    )
    maximum_latency_ratio: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="time to answer test texts, as a multiple of the champion's"),
    ] = None
    maximum_megabytes: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="size of the model directory, in millions of bytes"),
    ] = None
    proofs: Annotated[
        tuple[str, ...],
        Field(description=f"that the conversion must have recorded: structure, {', '.join(LEVELS)}"),
    ] = ()
    judgements: Annotated[
        Count,
        Field(description="candidates that may be judged on the same test rows before fresh ones are due"),
    ] = 20

    @field_validator("proofs")
    @classmethod
    def _proofs_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known_levels(names, ("structure", *LEVELS))


class PromotionParams(Section):
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = Field(description="registered model name")
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.05, description="two-sided level of the paired test against the champion"
    )
    gate: GateParams = GateParams()
    move_alias: bool = Field(True, description="false writes the verdict and touches no alias")


class OperationsParams(Section):
    """Where stages run and what is handed on: no part of what is made, nor of any digest."""

    finetuning: Annotated[
        Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None,
        Field(description="Prefect deployment that fine-tunes elsewhere, such as finetune/gpu; null: here"),
    ] = None
    remote: Annotated[
        str | None,
        Field(description="DVC remote by which workers hand data to one another; null: the default one"),
    ] = None
    commit_lock: Annotated[
        bool, Field(description="after a run in the checkout itself, push the data and commit dvc.lock")
    ] = False


class Params(Section):
    """The whole of params.yaml, in the order of the stages."""

    sources: SourcesParams
    preparation: PreparationParams
    vocabulary: VocabularyParams
    conversion: ConversionParams
    encoding: EncodingParams
    finetuning: FinetuningParams
    evaluation: EvaluationParams
    promotion: PromotionParams
    operations: OperationsParams = OperationsParams()
    tasks: dict[TaskName, dict[str, Any]] = Field(
        {}, description="more tasks on the same checkpoint: a name for each, and the keys in which it differs"
    )

    @model_validator(mode="after")
    def _device_is_everywhere(self) -> Self:
        if self.operations.finetuning and self.finetuning.device == "cuda":
            raise ValueError(
                "operations.finetuning trains elsewhere, and evaluation is done here by the same "
                "finetuning.device: set that to auto"
            )
        return self

    def contents(self) -> dict[str, Any]:
        """All that says what is made: runs with equal contents are the same, wherever their stages run and
        whatever other tasks there are."""
        return self.model_dump(mode="json", exclude={"operations", "tasks"})

    def models(self) -> list[str]:
        """Names under which the project and its tasks are registered."""
        return [self.promotion.model, *(of_task(self, task).promotion.model for task in self.tasks)]


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises ParamsError with every fault at once, each with its line and, for an unknown key, the nearest
    known one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(
            f"{path} is missing: `git checkout params.yaml` brings the shipped one back"
        ) from None
    return parse(text, name=str(path))


def parse(text: str, *, name: str = "params.yaml") -> Params:
    try:
        node, value = yaml.compose(text), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParamsError(f"{name} is not YAML: {error}") from None
    lines = dict(_lines((), node))
    if isinstance(value, dict) and (schema := value.pop("schema", SCHEMA)) != SCHEMA:
        raise ParamsError(
            f"{name}:{lines['schema',]}: schema {schema!r}: this regraft knows {SCHEMA}; install one that "
            "knows the file, or write the file anew with `regraft init`"
        )
    return check(value, name=name, lines=lines)


def check(value: Any, *, name: str, lines: Mapping[tuple[str, ...], int] | None = None) -> Params:
    """`value` (nested dictionaries) as Params. Raises ParamsError with every fault at once."""
    try:
        found = Params.model_validate(value)
    except ValidationError as error:
        faults = [_sentence(fault, name, lines or {}) for fault in error.errors()]
        raise ParamsError("\n".join(faults)) from None
    for task in found.tasks:
        of_task(found, task, name=name)
    _demand_models_differ(found.models(), name)
    return found


def of_task(params: Params, task: str, *, name: str = "params.yaml") -> Params:
    """What `params` come to for one of their tasks: its own keys, else those of the project. The registered
    model bears the task's name unless it says otherwise.

    Raises ParamsError for an unknown key or a value out of range.
    """
    value = params.model_dump(mode="json") | {"tasks": {}}
    value["promotion"]["model"] = task
    for key, new in params.tasks[task].items():
        if key.partition(".")[0] == "tasks":
            raise ParamsError(f"{name}: tasks.{task}: {key}: a task has no tasks of its own")
        _assign(value, key.split("."), new, f"{name}: tasks.{task}: {key}")
    return check(value, name=f"{name}: tasks.{task}")


def _demand_models_differ(models: Sequence[str], name: str) -> None:
    if twice := [model for place, model in enumerate(models) if model in models[:place]]:
        raise ParamsError(
            f"{name}: tasks: two of them would be registered as {twice[0]}: give one another promotion.model"
        )


def override(params: Params, assignments: Iterable[str]) -> Params:
    """`params` with `section.key=value` applied, values read as YAML, as `dvc exp run -S` does.

    Raises ParamsError for an assignment without `=`, an unknown key or a value out of range.
    """
    value = params.model_dump(mode="json")
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ParamsError(f"-S {assignment}: write section.key=value")
        _assign(value, path.split("."), _read(text, assignment), f"-S {assignment}")
    return check(value, name="-S")


def dump(params: Params) -> str:
    """YAML that `parse` reads back as equal params."""
    return yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def source_paths(text: str) -> list[str]:
    """Where the sources of a params.yaml are, which an older or newer version may have written."""
    sources = (yaml.safe_load(text) or {}).get("sources") or {}
    several = (entry if isinstance(entry, list) else [entry] for entry in sources.values())
    return [source["path"] for entry in several for source in entry]


class Deployment(NamedTuple):
    name: str
    entrypoint: str
    pool: str
    variables: dict[str, Any]


def deployments(text: str) -> list[Deployment]:
    """Those of a prefect.yaml. Raises ParamsError where it is none."""
    try:
        listed = (yaml.safe_load(text) or {}).get("deployments") or []
        return [_deployment(one, one["work_pool"]) for one in listed]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ParamsError(
            f"prefect.yaml: each deployment needs name, entrypoint and work_pool.name ({error})"
        ) from None


def _deployment(one: dict[str, Any], pool: dict[str, Any]) -> Deployment:
    variables = dict(pool.get("job_variables") or {})
    return Deployment(str(one["name"]), str(one["entrypoint"]), str(pool["name"]), variables)


def compose(text: str) -> Any:
    """The nodes of a YAML document, each with where it stands in `text`."""
    return yaml.compose(text)


def inline(value: Any) -> str:
    """A value on one line, as it may stand inside a list or a mapping too."""
    text = yaml.safe_dump(
        [value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return text.strip()[1:-1]


def flatten(params: Params) -> dict[str, Any]:
    """Dotted names to plain values of all that says what is made, for tracking and comparison."""
    return dict(_flat("", params.contents()))


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        return [(prefix, value)]
    return [pair for key, item in items for pair in _flat(f"{prefix}.{key}" if prefix else str(key), item)]


def _read(text: str, assignment: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ParamsError(f"-S {assignment}: {text!r} is not a YAML value") from None


def _assign(value: Any, keys: list[str], new: Any, where: str) -> None:
    for key in keys[:-1]:
        value = _step(value, key, where)
    if isinstance(value, list):
        _step(value, keys[-1], where)
        value[int(keys[-1])] = new
    elif isinstance(value, dict):
        value[keys[-1]] = new
    else:
        raise ParamsError(f"{where}: {keys[-2]} has no keys below it")


def _step(value: Any, key: str, where: str) -> Any:
    try:
        return value[int(key)] if isinstance(value, list) else value[key]
    except (KeyError, IndexError, ValueError, TypeError):
        known = [str(i) for i in range(len(value))] if isinstance(value, list) else [*_names(value)]
        raise ParamsError(f"{where}: no {key!r} here; {did_you_mean(key, known)}") from None


def _names(value: Any) -> Iterable[str]:
    return value if isinstance(value, dict) else ()


def _lines(path: tuple[str, ...], node: Any) -> Iterable[tuple[tuple[str, ...], int]]:
    """Every key path of a YAML document with its line, counted from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines((*path, key.value), item)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, str(index)), item.start_mark.line + 1
            yield from _lines((*path, str(index)), item)


def _sentence(fault: Any, name: str, lines: Mapping[tuple[str, ...], int]) -> str:
    path = tuple(str(key) for key in fault["loc"] if not str(key).startswith(("constrained-", "literal[")))
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    where = f"{name}:{line}" if line else name
    if now := FORMER.get(".".join(path)):
        return f"{where}: {'.'.join(path)} is called {now} today: `regraft migrate` rewrites it"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key {'.'.join(path)!r}; {did_you_mean(path[-1], _keys(path[:-1]))}"
    message = fault["msg"].removeprefix("Value error, ")
    got = "" if fault["type"] in ("missing", "value_error") else f", not {fault['input']!r}"
    return f"{where}: {'.'.join(path) or 'the document'}: {message[0].lower()}{message[1:]}{got}"


def _keys(path: tuple[str, ...]) -> list[str]:
    """The keys that the schema knows at `path`."""
    model: Any = Params
    for key in path:
        if not key.isdigit():
            model = model.model_fields[key].annotation
            model = getattr(model, "__args__", (model,))[0]
    return list(model.model_fields)
