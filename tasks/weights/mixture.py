"""A mixture of experts of dense models: their feed-forward tensors side by side, and a router in each layer.

Copies of one network compute what it did, whichever of them are chosen (Komatsuzaki et al., 2023, Sparse
Upcycling, arXiv 2212.05055). They also learn alike, as a router has no gradient where its experts are equal.
Networks of several fine-tunes, which have all else in common, stay what they were; the router has to be
trained (Sukhbaatar et al., 2024, Branch-Train-MiX, arXiv 2403.07816).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tasks.errors import CheckpointError, InputError, PlanError
from tasks.weights.arithmetic import Redraw, Replicate
from tasks.weights.families import Axes, Sparse
from tasks.weights.partial import NUMBER
from tasks.weights.plan import Plan, Target
from tasks.weights.rules import (
    DROP,
    NORMAL,
    Effect,
    Frozen,
    Rule,
    Tie,
    behind,
    examples,
    fill,
    matches,
    side,
    spelled,
)
from tasks.weights.templates import STAR

Config = Mapping[str, Any]
Begin = Literal["replicate", "drop"]
SHARE = 0.5  # of an expert's channels that drop draws anew: the default of Drop-Upcycling's own code
DEVIATION = 0.02  # of a router where the config names none: transformers' initializer_range
MOST = 1024  # experts of a layer: more than any published model has, and no plan of millions of tensors
UNTRAINED = "a router, untrained"
ROUTER: Mapping[Begin, tuple[str, Effect]] = {  # why there is a new one, and what it does to the function
    "replicate": ("a router, whose choice is of no effect while its experts are equal", "exact"),
    "drop": (UNTRAINED, "no"),
}
BASE = "base"  # before the names of its tensors, where those of the experts have a number


@dataclass(frozen=True)
class Mixture:
    """What was asked for.

    experts: of each layer. chosen: how many of them read a token. begin: as copies of the dense network, or
    with a share of their channels drawn anew. seed: of routers, and of these channels.
    """

    experts: int
    chosen: int = 2
    begin: Begin = "replicate"
    seed: int = 0


def demand(wanted: Mixture, *, reverse: bool, otherwise: bool) -> None:
    """Raises InputError with all that cannot be.

    reverse: from transformers' names. otherwise: layers are to be chosen too, or a width.
    """
    experts, faults = wanted.experts, list[str]()
    if not 2 <= experts <= MOST:
        faults.append(f"{experts} experts: a mixture has 2 to {MOST}")
    elif not 1 <= wanted.chosen <= experts:
        faults.append(f"--top-k {wanted.chosen}: 1 to {experts} of {experts} experts can read a token")
    if reverse:
        faults.append("experts are made on the way to transformers: leave out --reverse")
    if otherwise:
        faults.append("--layers and --width come before experts: convert so first, then what that makes")
    if faults:
        raise InputError("; ".join(faults))


def table(plan: Plan, sparse: Sparse, axes: Axes, wanted: Mixture, depth: int) -> tuple[Rule, ...]:
    """The rules at work in the dense model's `plan`, with what makes its experts, and the routers' rule."""
    found: list[Rule] = []
    for rule in plan.rules:
        for one, expert in _networks(rule, sparse):
            found += [one] if expert is None else _experts(one, expert, axes, wanted, depth)
    reason, effect = ROUTER[wanted.begin]
    return (*found, Rule(None, sparse.router, NORMAL, reason, function=effect))


def _networks(rule: Rule, sparse: Sparse) -> Iterator[tuple[Rule, str | None]]:
    """The rule, spelled out where it makes feed-forward tensors, each with the template of its experts."""
    each = [(one, sparse.tensors.get(one.targets[0])) for one in spelled(rule)] if rule.keeps else []
    yield from each if any(expert for _, expert in each) else [(rule, None)]


def _experts(rule: Rule, expert: str, axes: Axes, wanted: Mixture, depth: int) -> Iterator[Rule]:
    """The rule that makes copies; those that draw anew are one for each layer, as each draws its own."""
    if wanted.begin == "replicate":
        op = behind(rule.op, Replicate(wanted.experts))
        yield replace(rule, target=expert, op=op, function=rule.effect)
        return
    for layer in range(depth):
        source = side([name.replace(NUMBER, str(layer)) for name in rule.sources])
        target = expert.replace(NUMBER, str(layer))
        op = behind(rule.op, _redraw(rule.targets[0], target, axes, wanted))
        yield replace(rule, source=source, target=target, op=op, function="no")


def _redraw(network: str, expert: str, axes: Axes, wanted: Mixture) -> Redraw:
    layout = axes.layout(next(examples(network)))
    assert layout is not None  # every feed-forward tensor has one
    module, _, tensor = expert.partition(STAR)
    experts = tuple(f"{module}{number}" for number in range(wanted.experts))
    return Redraw(experts, tensor.lstrip("."), layout.axes.index("inner"), SHARE, wanted.seed)


def merged(base: Plan, experts: Sequence[Plan], sparse: Sparse) -> tuple[Rule, ...]:
    """The rules from several dense models' tensors, `base:name`, `0:name`, `1:name`, …, to one mixture.

    experts: the plans of the models, each of which brings the networks of the expert of its number. All their
    other tensors must be the base's.
    """
    shared = set(base.rules)
    brought = (
        rule for number, plan in enumerate(experts) for rule in _brought(str(number), plan, shared, sparse)
    )
    return (*_kept(base, sparse), *brought, Rule(None, sparse.router, NORMAL, UNTRAINED))


def _kept(base: Plan, sparse: Sparse) -> Iterator[Rule]:
    for rule in base.rules:
        for one, expert in _networks(rule, sparse):
            whose = _whose(BASE, one)
            yield Rule(whose.source, None, DROP, "every expert brings its own") if expert else whose


def _brought(number: str, plan: Plan, shared: Collection[Rule], sparse: Sparse) -> Iterator[Rule]:
    """Raises PlanError for a rule that the base has not: its tensors could not be compared."""
    for rule in plan.rules:
        for one, expert in _networks(rule, sparse):
            if expert:
                yield replace(_whose(number, one), target=expert.replace(STAR, number))
            elif not one.keeps:
                yield _whose(number, one)
            elif one in shared:
                yield from (
                    Rule(
                        f"{number}:{name}", None, Frozen(f"{BASE}:{name}"), "the base's, which stayed frozen"
                    )
                    for name in one.sources
                )
            else:
                raise PlanError(f"expert {number}: the base has no tensor that {one} is for")


def _whose(model: str, rule: Rule) -> Rule:
    """The rule for tensors that bear the model's name before their own."""
    op = Tie(f"{model}:{rule.op.to}") if isinstance(rule.op, Tie) else rule.op
    return replace(rule, source=side([f"{model}:{name}" for name in rule.sources]), op=op)


def demand_alike(config: Config, base: Config, computing: Iterable[str], whose: object) -> None:
    """Raises CheckpointError with all fields, of those that the function depends on, in which they differ."""
    if other := [
        f"{name} is {config.get(name)!r}, the base's {base.get(name)!r}"
        for name in computing
        if config.get(name) != base.get(name)
    ]:
        raise CheckpointError(f"{whose}: {'; '.join(other)}: one mixture is made of fine-tunes of one base")


def targets(plan: Plan, sparse: Sparse, config: Config) -> Mapping[str, Target]:
    """Names of the result, which `config` describes, each with its shape."""
    experts, found = config["num_local_experts"], dict[str, Target]()
    for move in plan.moves:
        names = _names(move.target, sparse, experts) or [move.target]
        found |= dict.fromkeys(names, Target(move.shape))
    layers = map(str, range(config["num_hidden_layers"]))
    routers = (sparse.router.replace(NUMBER, layer) for layer in layers)
    return found | dict.fromkeys(routers, Target((experts, config["hidden_size"])))


def _names(name: str, sparse: Sparse, experts: int) -> list[str]:
    """Of the experts' tensors that stand where the dense model has `name`; none where it keeps that."""
    for network, expert in sparse.tensors.items():
        if bound := matches(network, name):
            return [fill(expert, {**bound, "e": str(number)}) for number in range(experts)]
    return []
