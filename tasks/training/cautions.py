"""What will fail, or is hardly meant, in a schedule that has not run yet: a sentence each."""

from collections.abc import Iterator

from tasks.training.forecast import Schedule, learning

NEAR = 1 / 5  # of the head's rate: every recipe of tasks/presets.py stays at a tenth or below
HIGHEST = 1e-2  # a hundred times what pretrained layers usually learn at


INSIDE = ("lora", "dora", "rslora")  # adapters whose targets are chosen
LINEAR = 3e-3  # below this a head of one linear layer hardly learns: of 250 tweets .608 at 1e-3, .676 at 1e-2


def cautions(schedule: Schedule, *, free: int, mean: bool = False) -> list[str]:
    """free: bytes on the disk that keeps states. mean: whether the head reads the mean of all tokens."""
    return [
        *_too_deep(schedule),
        *_never(schedule),
        *_without_dense_layers(schedule),
        *_unheard(schedule),
        *_too_fast(schedule),
        *(_too_slow(schedule) if mean else ()),
        *_too_few(schedule),
        *_too_large(schedule, free),
    ]


def _too_deep(schedule: Schedule) -> Iterator[str]:
    layers = schedule.outline.layers
    for phase in schedule.settings.phases:
        if isinstance(phase.depth, int) and phase.depth > layers:
            yield (
                f"phase {phase.name} will fail: depth {phase.depth}, and the model has {layers} layers below "
                "its head; use `all`"
            )
        if schedule.outline.shared and phase.depth == 0 and not phase.floors:
            yield (
                f"phase {phase.name} will fail: this head shares its weights with the embeddings, so that "
                "nothing would learn at depth 0; give the phase a depth"
            )


def _never(schedule: Schedule) -> Iterator[str]:
    """What `only` keeps from learning."""
    phases = schedule.settings.phases
    alone = [phase for phase in phases if phase.only]
    for phase in alone:
        if not any(learning(schedule, phase, floor) for floor in schedule.outline.floors):
            yield (
                f"phase {phase.name} will fail: depth {phase.depth} of {schedule.outline.layers} layers has "
                f"no {phase.only} part; give the phase another depth, or leave its `only` out"
            )
        if schedule.fresh:
            yield (
                f"phase {phase.name} will fail: the embeddings of new tokens learn in every phase, and its "
                "`only` lets nothing else learn; leave `only` out, or vocabulary.add_tokens"
            )
    if schedule.drawn and len(alone) == len(phases):
        yield (
            f"fine-tuning will fail: {', '.join(schedule.drawn)} would stay as drawn at random, as every "
            "phase has an `only`; give the head a phase of its own"
        )


def _without_dense_layers(schedule: Schedule) -> Iterator[str]:
    """What wants a dense feed-forward part where there are experts, or experts where there are none."""
    settings, layers = schedule.settings, [*schedule.outline.floors.values()][1:-1]
    experts = any(tensor.part == "router" for layer in layers for tensor in layer.values())
    if settings.router_aux_loss_coef is not None and not experts:
        yield "fine-tuning will fail: no layer has experts for finetuning.router_aux_loss_coef: set it null"
    adapter = settings.adapter
    if adapter and experts and (adapter.kind not in INSIDE or adapter.targets != "attention"):
        yield (
            "fine-tuning will fail: no adapter reaches a layer's experts; set finetuning.adapter to {kind: "
            "lora, targets: attention}"
        )


def _unheard(schedule: Schedule) -> Iterator[str]:
    """The weights of the experts that read a token add up to 1: that of one alone is 1 whatever is said."""
    for phase in schedule.settings.phases if schedule.outline.chosen == 1 else ():
        if phase.only == "router":
            yield (
                f"phase {phase.name} will fail: one expert reads a token, at weight 1 whatever its router "
                "says, which learns nothing of the rows; convert with --top-k 2"
            )
        elif phase.depth != 0 and phase.only is None and schedule.settings.adapter is None:
            yield (
                f"phase {phase.name}: one expert reads a token, at weight 1 whatever its router says, which "
                "learns to keep loads even and nothing of the rows; convert with --top-k 2"
            )


def _too_fast(schedule: Schedule) -> Iterator[str]:
    """Adapters begin as nothing and learn at rates near a head's (Hu et al., 2022, up to 5e-4)."""
    head = 0.0
    for phase in schedule.settings.phases:
        rate = phase.learning_rate
        if phase.depth == 0 and not phase.floors:
            head = max(head, rate)
            continue
        if rate > NEAR * head > 0 and schedule.settings.adapter is None:
            yield (
                f"phase {phase.name}: learning rate {rate:g} is not far below the {head:g} that the head "
                f"learned at, and wears down what was pretrained; take {NEAR * head:g} or less"
            )
        if (highest := rate if phase.only else rate * phase.layer_decay) > HIGHEST:
            yield (
                f"phase {phase.name}: the uppermost layer would learn at {highest:g}; above {HIGHEST:g} what "
                "was pretrained is lost; take 1e-4 or less"
            )


def _too_slow(schedule: Schedule) -> Iterator[str]:
    for phase in schedule.settings.phases:
        if phase.depth == 0 and not phase.floors and phase.learning_rate < LINEAR:
            yield (
                f"phase {phase.name}: a head that reads the mean is one linear layer, and learns little at "
                f"{phase.learning_rate:g}; take about 1e-2"
            )


def _too_few(schedule: Schedule) -> Iterator[str]:
    size, lengths = schedule.settings.batch_size, schedule.lengths
    if lengths is not None and size > len(lengths.train):
        yield (
            f"finetuning.batch_size {size} is more than the {len(lengths.train):,} rows of train: an epoch "
            "is one step"
        )


def _too_large(schedule: Schedule, free: int) -> Iterator[str]:
    maximum, numbers = schedule.settings.cache.maximum_bytes, range(len(schedule.settings.phases))
    unbounded = sum(schedule.state_bytes(start) for start in range(schedule.outline.layers + 1))
    wanted, kept = (
        {start for number in numbers for start in schedule.starts(number, maximum=most)}
        for most in (unbounded, maximum)
    )
    for start in sorted(wanted - kept):
        yield (
            f"states that enter layer {start} would take {schedule.state_bytes(start) / 1e6:,.0f} MB, more "
            f"than finetuning.cache.maximum_bytes leaves ({maximum / 1e6:,.0f} MB in all): the layers below "
            "are computed every epoch"
        )
    if (needed := sum(map(schedule.state_bytes, kept))) > free:
        yield (
            f"states of frozen layers take {needed / 1e6:,.0f} MB, and the disk has {free / 1e6:,.0f} MB "
            "free: make room, or set finetuning.cache.dtype to int8 or none"
        )
