"""What fine-tuning will take, by arithmetic on names and shapes: nothing is loaded, torch is not needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tasks.params import AdapterParams, FinetuningParams, Phase
from tasks.training import order
from tasks.training.reuse import Reach, kept, passes

FLOAT = 4  # bytes; everything is computed in float32
STATE = {"float32": 4, "float16": 2, "int8": 1}  # bytes of a kept number, beside SCALE for each token in int8
SCALE = 4
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}  # numbers that an optimizer remembers of each parameter
# Bytes that PyTorch keeps of a layer until its gradients are there: for each token and channel, each token
# and inner channel, each head and pair of tokens. The terms are those of Korthikanti et al., 2022, equation
# 2; the factors were measured on BERT's layers with dropout, and are again by the tests.
PER_CHANNEL, PER_INNER, PER_PAIR = 40, 8, 12
PASS_ROWS = 64  # of a batch where nothing is learned
LOGITS = 3  # of each word that may be told: the logit, its log-probability, the gradient
KEYS_AND_VALUES = ("key", "value", "k_lin", "v_lin", "k_proj", "v_proj", "c_attn")  # GPT-2 has both in one
GATE = "gate_proj"  # no adapter stands at it


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    part: str  # of its layer: attention, feed-forward, norm

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Outline:
    """A model's floors, bottom to top, each tensor's name -> shape; the head's is empty while unknown, and
    where it is `shared` with the embeddings. inner: channels of the feed-forward part that work on a token.
    words: that a language model tells apart; 0 for others; told: of its tokens, the share that it is asked
    for. chosen: experts that read a token; 0 where there are none. whole: nothing below can be computed once,
    whatever stands still.
    """

    floors: Mapping[str, Mapping[str, Tensor]]  # embeddings, layer 0, …, head
    width: int
    inner: int
    heads: int
    shared: bool = False
    words: int = 0
    told: float = 1.0
    chosen: int = 0
    whole: bool = False

    @property
    def layers(self) -> int:
        return len(self.floors) - 2

    @property
    def parameters(self) -> int:
        return sum(tensor.size for floor in self.floors.values() for tensor in floor.values())


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row, those of a decoder included. reads: positions of train and of validation that the
    head reads; None: one a row."""

    train: Sequence[int]
    validation: Sequence[int]
    reads: tuple[int, int] | None = None

    @property
    def longest(self) -> int:
        return max((*self.train, *self.validation), default=0)


@dataclass(frozen=True)
class Schedule:
    """lengths: None while the rows are unknown. fresh: rows of the word table that learn in every phase, as
    those of new tokens do. drawn: the names of tensors that conversion drew at random, where it has run."""

    outline: Outline
    lengths: Lengths | None
    settings: FinetuningParams
    fresh: int = 0
    drawn: Sequence[str] = ()

    def lowest(self, phase: Phase) -> int:
        """The lowest layer that learns: as many as there are where only the head does, -1 for embeddings."""
        layers = self.outline.layers
        count = layers // 2 if phase.depth == "half" else layers + 1 if phase.depth == "all" else phase.depth
        return layers - min(count, layers + 1)

    def reach(self, phase: Phase) -> Reach:
        start = self.lowest(phase)
        bottom = start <= 0 or phase.floors or self.fresh or self.outline.whole
        rows, size = len(self.lengths.train) if self.lengths else 1, self.settings.batch_size
        return Reach(None if bottom else start, passes(phase.epochs, phase.steps, batch_size=size, rows=rows))

    def state_bytes(self, start: int) -> int:
        """On disk, of the states that enter layer `start`; behind the last one the head reads one token. 0
        while the rows are unknown."""
        rows, dtype = self.lengths, self.settings.cache.dtype
        if rows is None:
            return 0
        if start == self.outline.layers:
            counts = (len(rows.train), len(rows.validation))
            pairs = zip(counts, rows.reads or counts, strict=True)
            return sum(self._read_bytes(count, reads) for count, reads in pairs)
        scale = SCALE if dtype == "int8" else 0
        return (sum(rows.train) + sum(rows.validation)) * (self.outline.width * STATE.get(dtype, 0) + scale)

    def _read_bytes(self, rows: int, reads: int) -> int:
        """Of what the head reads: float32 where that is one state a row, and where no others are kept."""
        dtype = self.settings.cache.dtype
        if reads == rows or dtype == "none":
            return reads * self.outline.width * FLOAT
        return reads * (self.outline.width * STATE[dtype] + (SCALE if dtype == "int8" else 0))

    def starts(self, number: int, *, maximum: int) -> list[int]:
        """The layers whose incoming states are there once phase `number` begins, in at most `maximum` bytes,
        as the stage decides it, its own first; none where everything is computed every epoch."""
        reaches = [self.reach(phase) for phase in self.settings.phases]
        dtype = self.settings.cache.dtype
        return kept(reaches, self.outline.layers, self.state_bytes, dtype=dtype, maximum=maximum)[number]


@dataclass(frozen=True)
class PhaseForecast:
    """floors: those that learn, bottom to top; only: what alone learns of them. rates: of the lowest and of
    the highest. start: the layer whose incoming states are computed once, the number of layers where only the
    head reads them; None: everything is computed every epoch. states: bytes that these take on disk.
    memory: what takes it -> bytes, at the largest batch. None where it depends on rows that are unknown.
    """

    name: str
    floors: tuple[str, ...]
    parameters: int
    steps: int | None
    rates: tuple[float, float]
    start: int | None
    states: int | None
    memory: Mapping[str, int] | None
    only: str | None = None


def forecast(schedule: Schedule) -> list[PhaseForecast]:
    return [_phase(schedule, number) for number in range(len(schedule.settings.phases))]


def _phase(schedule: Schedule, number: int) -> PhaseForecast:
    phase, outline = schedule.settings.phases[number], schedule.outline
    sizes = {name: learning(schedule, phase, name) for name in schedule.outline.floors}
    head = not (outline.shared or phase.only)  # it learns, though its size may be unknown
    floors = tuple(name for name, size in sizes.items() if size or (name == "head" and head))
    table = 0 if sizes["embeddings"] else schedule.fresh * outline.width
    parameters = sum(sizes.values()) + table
    start = schedule.lowest(phase)
    kept = schedule.starts(number, maximum=schedule.settings.cache.maximum_bytes)
    return PhaseForecast(
        name=phase.name,
        floors=floors,
        parameters=parameters,
        steps=_steps(schedule, number),
        rates=(phase.learning_rate * phase.layer_decay ** max(0, len(floors) - 1), phase.learning_rate),
        start=start if kept else None,
        states=None if schedule.lengths is None else schedule.state_bytes(start) if kept else 0,
        memory=_memory(schedule, schedule.lengths, phase, parameters) if schedule.lengths else None,
        only=phase.only,
    )


def learning(schedule: Schedule, phase: Phase, floor: str) -> int:
    """How many parameters of one floor learn."""
    tensors, adapter = schedule.outline.floors[floor], schedule.settings.adapter
    place = [*schedule.outline.floors].index(floor) - 1  # of a layer its number
    if phase.only:
        inside = schedule.lowest(phase) <= place < schedule.outline.layers
        return sum(t.size for t in tensors.values() if inside and t.part == phase.only)
    if place < schedule.lowest(phase):
        return sum(t.size for name, t in tensors.items() if _chosen(floor, name, phase.floors))
    if adapter is None or floor == "head":
        return sum(tensor.size for tensor in tensors.values())
    return 0 if floor == "embeddings" else _adapted(tensors, adapter, schedule.outline)


def _chosen(floor: str, name: str, parts: Sequence[str]) -> bool:
    """Whether one of a phase's `floors`, PARTS of tasks/model/floors.py, holds a tensor."""
    of = {
        "embeddings": floor == "embeddings",
        "norms": "norm" in name.lower(),
        "biases": name.endswith("bias"),
    }
    return any(of[part] for part in parts)


def _adapted(tensors: Mapping[str, Tensor], adapter: AdapterParams, outline: Outline) -> int:
    """Parameters that an adapter puts into one layer, as tasks/model/adapters.py does."""
    found = {name.split(".")[-2]: one for name, one in tensors.items() if len(one.shape) == 2}
    if adapter.kind == "ia3":  # scales of keys, values and inner states
        scaled = [_outputs(name, one) for name, one in found.items() if name in KEYS_AND_VALUES]
        return sum(scaled) + outline.inner
    dense = [(n, one) for n, one in tensors.items() if len(one.shape) == 2 and GATE not in n]
    if adapter.targets == "attention":
        dense = [(name, tensor) for name, tensor in dense if tensor.part == "attention"]
    magnitudes = sum(_outputs(n.split(".")[-2], one) for n, one in dense) if adapter.kind == "dora" else 0
    return adapter.rank * sum(sum(tensor.shape) for _, tensor in dense) + magnitudes


def _outputs(module: str, tensor: Tensor) -> int:
    """GPT-2 stores its dense layers, c_attn and others, the other way round."""
    return tensor.shape[1 if module.startswith("c_") else 0]


def _steps(schedule: Schedule, number: int) -> int | None:
    phase, lengths, settings = schedule.settings.phases[number], schedule.lengths, schedule.settings
    if phase.steps is not None or lengths is None:
        return phase.steps
    if phase.batch_tokens is None:
        return phase.epochs * -(-len(lengths.train) // settings.batch_size)
    size, tokens = settings.batch_size, phase.batch_tokens
    seeds = [(settings.seed, number, epoch) for epoch in range(phase.epochs)]
    return sum(
        len(order.epoch_order(lengths.train, batch_size=size, seed=seed, batch_tokens=tokens))
        for seed in seeds
    )


def _memory(schedule: Schedule, lengths: Lengths, phase: Phase, learning: int) -> dict[str, int]:
    """At the largest batch that rows and params allow, on one process, in the parts that `accumulation`
    asks for."""
    outline, settings, longest = schedule.outline, schedule.settings, lengths.longest
    parts = settings.accumulation * settings.processes
    rows = -(-min(settings.batch_size, len(lengths.train)) // parts)
    tokens = rows * longest
    if phase.batch_tokens is not None:
        tokens = max(longest, phase.batch_tokens // parts)
    layer = tokens * (PER_CHANNEL * outline.width + PER_INNER * outline.inner)
    layer += tokens * longest * outline.heads * PER_PAIR
    told = int(tokens * outline.told * outline.words * LOGITS * FLOAT)
    whole = phase.floors or schedule.fresh  # something learns at the bottom
    layers = outline.layers - (0 if whole else max(0, schedule.lowest(phase)))
    if settings.gradient_checkpointing:  # what enters each, and of one at a time all
        layer, kept = layer if layers else 0, layers * tokens * outline.width * FLOAT
    else:
        layer, kept = layers * layer, 0
    # Without gradients a layer at a time: input, query, key, value, attended, added, and twice the inner.
    working = PASS_ROWS * longest * (6 * outline.width + 2 * outline.inner) * FLOAT
    return {
        "weights, twice": 2 * outline.parameters * FLOAT,  # as they are, and as they were
        "gradients": learning * FLOAT,
        "optimizer": MOMENTS[settings.optimizer] * learning * FLOAT,
        "activations": max(kept + layer + told, working),
    }
