"""Part of a model: some of its layers, in any order, and blocks inserted between them that add nothing.

An inserted block is a copy of the one before it whose closing projections are zeros (Wu et al., 2024, LLaMA
Pro): where nothing but these write to the residual stream, the model computes bit for bit what it did.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tasks.errors import InputError
from tasks.weights.arithmetic import Replicate
from tasks.weights.families.naming import Blocks, Config
from tasks.weights.ops import Chain, Op, Shape
from tasks.weights.plan import Plan, Target
from tasks.weights.rules import DROP, KEEP, ZEROS, Rule, fill, matches, overlap, side

NUMBER = "{n}"  # of the layer, in every table


@dataclass(frozen=True)
class Repeat(Replicate):
    """All of several tensors `count` times over, the first of each time together."""

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        return list(given) * self.count


def demand(layers: Sequence[int], config: Config, blocks: Blocks) -> None:
    """Raises InputError with everything that speaks against these layers of the model of `config`."""
    depth = config[blocks.depth]
    wrong = sorted({layer for layer in layers if not 0 <= layer < depth})
    faults = [] if layers else ["no layer is named"]
    if wrong:
        faults.append(f"the model has layers 0 to {depth - 1}, not {', '.join(map(str, wrong))}")
    if inserted := sorted({layers[place] for place in _inserted(layers)}):
        faults += (
            f"layer {', '.join(map(str, inserted))} stands twice in a row: {reason}"
            for reason in _against_insertion(config, blocks)
        )
    if faults:
        raise InputError(f"layers {', '.join(map(str, layers))}: {'; '.join(faults)}")


def _against_insertion(config: Config, blocks: Blocks) -> Iterator[str]:
    if not blocks.closing:
        yield "no block of this model can be inserted without effect, so name each layer once in a row"
    for field in blocks.numbered:
        if config.get(field):
            yield f"{field} makes a block depend on its number, so none can be inserted without effect"


def table(
    whole: Plan, blocks: Blocks, layers: Sequence[int], depth: int, *, reverse: bool
) -> tuple[Rule, ...]:
    """The rules at work in `whole`, the plan of all `depth` layers, spelled out for each of `layers`.

    reverse: `whole` makes another project's names of transformers'.
    """
    exact = [layer for layer, _ in groupby(layers)] == list(range(depth))
    found: list[Rule] = []
    for rule in whole.rules:
        if not rule.keeps or not any(NUMBER in source for source in rule.sources):
            found.append(rule)
            continue
        ours = rule.sources if reverse else rule.targets
        closes = any(overlap(name, closing) for name in ours for closing in blocks.closing)
        told = replace(rule, function=rule.effect if exact else "no")
        for layer in range(depth):
            found += _spelled(told, layer, layers, closes=closes)
    return tuple(dict.fromkeys(found))


def _spelled(rule: Rule, layer: int, layers: Sequence[int], *, closes: bool) -> Iterator[Rule]:
    """The rule for one layer: what it makes in every place where that stands, or why it goes nowhere."""
    source = side(_numbered(rule.sources, [layer]))
    places = [place for place, taken in enumerate(layers) if taken == layer]
    if not places:
        yield Rule(source, None, DROP, f"layer {layer} is not among those taken")
        return
    silent = [place for place in places if place in _inserted(layers)] if closes else []
    full = [place for place in places if place not in silent]
    op = _repeated(rule, len(full))
    yield replace(rule, source=source, target=side(_numbered(rule.targets, full)), op=op)
    for target in _numbered(rule.targets, silent):
        yield Rule(None, target, ZEROS, f"inserted behind layer {layer}, adds nothing", function="exact")


def _inserted(layers: Sequence[int]) -> list[int]:
    """Places whose layer stands in the place before already."""
    return [place for place in range(1, len(layers)) if layers[place] == layers[place - 1]]


def _numbered(templates: Iterable[str], numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(template.replace(NUMBER, str(number)) for number in numbers for template in templates)


def _repeated(rule: Rule, count: int) -> Op:
    if count == 1:
        return rule.op
    copies = Replicate(count) if len(rule.targets) == 1 else Repeat(count)
    return copies if rule.op == KEEP else Chain((rule.op, copies))


def targets(whole: Plan, names: Iterable[str], layers: Sequence[int]) -> Mapping[str, Target]:
    """`names` of the result, each with the shape that its layer has in `whole`."""
    shapes = dict(_shapes(whole, layers))
    return {name: Target(shapes.get(name)) for name in names}


def _shapes(whole: Plan, layers: Sequence[int]) -> Iterator[tuple[str, Shape]]:
    for move in whole.moves:
        for template in move.rule.targets:
            bound = matches(template, move.target)
            if bound and "n" in bound:
                for place in (place for place, layer in enumerate(layers) if str(layer) == bound["n"]):
                    yield fill(template, {**bound, "n": str(place)}), move.shape
            elif bound is not None:
                yield move.target, move.shape
