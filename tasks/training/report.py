"""The fine-tuning as one page of HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from tasks import pages
from tasks.params import LOWER_IS_BETTER, Only
from tasks.training import pictures
from tasks.training.events import Event, Finished, Measure
from tasks.training.loop import Step
from tasks.training.phases import NEW
from tasks.training.pictures import INK, Stretch, percent

ALONE: Mapping[Only, str] = {"feed-forward": "feed-forward networks", "router": "routers"}


@dataclass(frozen=True)
class Plan:
    """What was asked of one phase. whole: the floors that learned as a whole, bottom to top; parts: what
    learned of the floors below; only: what alone learned of `whole`. reused: the layer whose incoming states
    were computed once, the number of layers for what the head reads, None where everything was computed every
    epoch."""

    whole: Sequence[str]
    parts: Sequence[str]
    learning_rate: float
    layer_decay: float
    reused: int | None
    only: Only | None = None


@dataclass(frozen=True)
class Drift:
    """What training changed in what the model makes of a general text. floors: name -> linear CKA (`cka`) and
    mean `cosine` of what leaves it, before and after; loss: cross-entropy in nats a token `before` and
    `after`, empty where the model tells no words."""

    floors: Mapping[str, Mapping[str, float]]
    loss: Mapping[str, float]

    def figures(self) -> dict[str, float]:
        """Under flat names, for tracking."""
        found = {f"drift.loss.{when}": value for when, value in self.loss.items()}
        return found | {
            f"drift.{kind}.{floor}": value
            for floor, likeness in self.floors.items()
            for kind, value in likeness.items()
        }


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the page says, as plain values. floors: of the model, embeddings first, head last.

    adapter: the kind of what learned instead of the layers' own weights, None where these did.
    """

    told: Sequence[Event]
    floors: Sequence[str]
    plans: Sequence[Plan]  # one a phase
    select: str  # validation figure by which epochs are chosen
    rows: Mapping[str, int]  # split -> rows
    settings: Mapping[str, str]  # term -> value
    sources: Mapping[str, str]
    adapter: str | None = None
    drift: Drift | None = None

    @property
    def layers(self) -> Sequence[str]:
        return self.floors[1:-1]

    @property
    def finished(self) -> list[Finished]:
        return [event for event in self.told if isinstance(event, Finished)]


@dataclass(frozen=True)
class Row:
    """A phase as the table shows it."""

    phase: Finished
    learned: str
    frozen: str
    computed: str
    padding: str
    rate: str
    decay: str


def render(facts: Facts) -> str:
    phases = pictures.stretches(facts.told)
    return pages.render(
        Path(__file__).with_name("report.jinja"),
        facts=facts,
        headline=headline(facts),
        better=better(facts),
        table=[_row(facts, number) for number in range(len(facts.plans))],
        heat_map=_inline(heat_map(facts)),
        curves=_inline(pictures.curves(phases, select=facts.select)),
        layers=[comparison(facts), *fairness(facts)],
        forgotten=forgotten(facts.drift) if facts.drift else [],
    )


def heat_map(facts: Facts) -> str:
    """How far each floor moved, as SVG."""
    return pictures.heat_map(pictures.stretches(facts.told), facts.floors)


def headline(facts: Facts) -> str:
    steps, kept = sum(phase.steps for phase in facts.finished), facts.finished[-1].figures
    figures = _and([f"{name} {value:.3f}" for name, value in kept.items()])
    return (
        f"{_count(len(facts.plans), 'phase')}, {_count(steps, 'optimizer step')} on "
        f"{_count(facts.rows['train'], 'row')}; the model that is kept has {figures} on "
        f"{_count(facts.rows['validation'], 'validation row')}."
    )


def better(facts: Facts) -> str:
    """A sentence where an earlier phase ended with a better figure than the last, else nothing."""
    sign, last = -1 if facts.select in LOWER_IS_BETTER else 1, facts.finished[-1]
    best = max(facts.finished, key=lambda phase: sign * phase.figures[facts.select])
    if sign * best.figures[facts.select] <= sign * last.figures[facts.select]:
        return ""
    return (
        f"Phase {best.name} ended with a better {facts.select}, {best.figures[facts.select]:.3f}; what is "
        "kept is the best epoch of the last phase."
    )


def comparison(facts: Facts) -> str:
    """How far the lowest third of the layers had moved beside the highest, in the weights that were kept of
    the last phase in which all layers learned."""
    number, third = _together(facts), len(facts.layers) // 3 or 1
    if facts.adapter:
        return (
            f"The layers' own weights stood still while {facts.adapter} adapters learned, so this run does "
            "not say whether early layers change less: what moved are the adapters' tensors."
        )
    if number is None:
        return "No phase let all layers learn, so this run does not say whether early layers change less."
    if len(facts.layers) < 2:
        return "The model has a single layer, so there is none below it to compare."
    phase = pictures.stretches(facts.told)[number]
    moved = kept(phase)[1:-1]
    low, high = float(np.mean(moved[:third])), float(np.mean(moved[-third:]))
    return (
        f"In the weights kept of phase {phase.name} the lowest third of the layers "
        f"({_layers(facts.layers[:third])}) has moved {_times(low, high)} the highest "
        f"({_layers(facts.layers[-third:])}): {percent(low)} of its own length on average against "
        f"{percent(high)}."
    )


def fairness(facts: Facts) -> list[str]:
    """Why that comparison says less than it seems to, in sentences; nothing where there is none."""
    number = _together(facts)
    if number is None or len(facts.layers) < 2:
        return []
    until = list(zip(facts.finished, facts.plans, strict=True))[: number + 1]
    moving = [(end.name, plan) for end, plan in until if set(end.floors) & set(facts.layers)]
    uneven = [name for name, plan in moving if not _all_layers(facts, plan)]
    slower = [name for name, plan in moving if plan.layer_decay < 1]
    if not uneven and not slower:
        return [
            "All layers learned in the same steps at one rate, so the comparison is fair, for this one run."
        ]
    found = ["That is no fair comparison; only a run in which all layers learn together at one rate can say."]
    if uneven:
        found.append(
            f"The upper layers also learned in {_phases(uneven)}, the lower ones not or only in part."
        )
    if slower:
        found.append(
            f"The lower layers had lower rates than the upper ones in {_phases(slower)} (layer_decay)."
        )
    return found


def kept(phase: Stretch) -> pictures.Array:
    """How far each floor (floors,) had moved in the weights that were kept of a phase."""
    return phase.moved[:, list(phase.told).index(phase.best)]


def _together(facts: Facts) -> int | None:
    """The last phase in which all layers learned as a whole; an adapter is no whole layer."""
    if facts.adapter:
        return None
    return max((n for n, plan in enumerate(facts.plans) if _all_layers(facts, plan)), default=None)


def _all_layers(facts: Facts, plan: Plan) -> bool:
    return plan.only is None and set(facts.layers) <= set(plan.whole)


def _row(facts: Facts, number: int) -> Row:
    plan, phase = facts.plans[number], facts.finished[number]
    still = pictures.frozen(facts.floors, phase.floors)
    frozen = [floor for floor, stands in zip(facts.floors, still, strict=True) if stands]
    stood = [*_named(frozen), *(["all else in these layers"] if plan.only else [])]
    return Row(
        phase=phase,
        learned=learned(facts, plan, new=NEW in phase.floors),
        frozen=_and(stood) or ("no floor as a whole" if plan.parts or NEW in phase.floors else "nothing"),
        computed=_computed(facts, number) if frozen else "",
        padding=padding([one for one in facts.told if isinstance(one, Step) and one.phase == phase.name]),
        rate=f"{plan.learning_rate:g}",
        decay="" if plan.layer_decay == 1 else f"× {plan.layer_decay:g} a floor",
    )


def padding(steps: Sequence[Step]) -> str:
    """Of all positions that the steps computed; nothing where that is not known."""
    tokens, positions = (sum(getattr(step, name) for step in steps) for name in ("tokens", "positions"))
    return f"{1 - tokens / positions:.1%} padding".replace("%", " %") if positions else ""


def forgotten(drift: Drift) -> list[str]:
    """How far what the model makes of a general text has moved, in sentences."""
    *_, last = drift.floors
    cka, cosine = (drift.floors[last][kind] for kind in ("cka", "cosine"))
    found = [
        f"What leaves {last} has a linear CKA of {cka:.3f} with what left it before training, and its mean "
        f"over a passage a cosine of {cosine:.3f}; 1 is unchanged."
    ]
    if drift.loss:
        before, after = drift.loss["before"], drift.loss["after"]
        found.append(
            f"Cross-entropy on this text went from {before:.3f} to {after:.3f} nats a token, "
            f"{abs(after - before):.3f} {'worse' if after > before else 'better'}."
        )
    return found


def learned(facts: Facts, plan: Plan, *, new: bool) -> str:
    """What a phase let learn, in words. new: rows of new tokens too."""
    rows = ["the rows of new tokens"] if new else []
    if plan.only:
        return f"the {ALONE[plan.only]} of {named(plan.whole)}"
    if facts.adapter and len(plan.whole) > 1:
        return _and([*rows, plan.whole[-1], f"{facts.adapter} adapters in {named(plan.whole[:-1])}"])
    if len(plan.whole) == len(facts.floors):
        return "everything"
    below = [part if part in facts.floors else f"{part} below" for part in plan.parts]
    return _and([*_named(plan.whole), *below, *rows])


def named(floors: Sequence[str]) -> str:
    """Floors in words: embeddings, layers 0 to 2 and head."""
    return _and(_named(floors))


def _named(floors: Sequence[str]) -> list[str]:
    layers = [floor for floor in floors if floor.startswith("layer ")]
    words = {floor: floor for floor in floors} | (dict.fromkeys(layers, _layers(layers)) if layers else {})
    return list(dict.fromkeys(words.values()))


def _computed(facts: Facts, number: int) -> str:
    """How often what is frozen was computed in a phase."""
    start, name = facts.plans[number].reused, facts.finished[number].name
    epochs = sum(isinstance(event, Measure) and event.phase == name for event in facts.told)
    if start is None:
        return f"computed once an epoch, {_count(epochs, 'epoch')}"
    states = "what the head reads" if start == len(facts.layers) else f"states that enter layer {start}"
    return f"{states}: computed once, used in {_count(epochs, 'epoch')}"


def _layers(names: Sequence[str]) -> str:
    """Neighbouring layers: layer 4, layers 4 and 5, layers 3 to 5."""
    first, last = names[0], names[-1].removeprefix("layer ")
    if len(names) == 1:
        return first
    return f"{first.replace('layer', 'layers')} {'and' if len(names) == 2 else 'to'} {last}"


def _times(low: float, high: float) -> str:
    """How `low` compares with `high`, for a sentence that goes on with what `high` is."""
    if min(low, high) == 0:
        return (
            "as little as" if low == high else "while nothing moved in" if high == 0 else "not at all, unlike"
        )
    ratio = high / low if low < high else low / high
    if ratio < 1.05:
        return "about as much as"
    return f"{ratio:.1f} times {'less' if low < high else 'more'} than"


def _phases(names: Sequence[str]) -> str:
    return f"phase {names[0]}" if len(names) == 1 else f"phases {_and(names)}"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _and(names: Sequence[str]) -> str:
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"


def _inline(svg: str) -> Markup:
    """A picture that follows the page's text colour; matplotlib has escaped its texts."""
    return Markup(svg.replace(INK, "currentColor"))
