"""How another project writes a model that transformers has too."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.arithmetic import Replicate
from tasks.weights.families.family import BUFFER, tie
from tasks.weights.ops import Chain, Shape
from tasks.weights.rules import DROP, KEEP, Rule, Tie, expand, inverse

Config = Mapping[str, Any]

LARGEST = 2**31  # of a size: more rows, columns or layers than any model has
FLAGS = (  # fields that are true or false wherever they are there; any text would count as true
    "bias",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "use_scaled_rope",
    "scale_attn_by_inverse_layer_idx",
)
WRAPPERS = ("", "module.", "_orig_mod.")  # DistributedDataParallel and torch.compile prefix what they wrap


def _nothing(config: Config) -> tuple[Rule, ...]:
    return ()


def _no_twins(config: Config) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Blocks:
    """How the layers of one of transformers' classes are told apart, and what they write to.

    depth: the field of its config that counts them.
    closing: templates of the projections through which alone a block adds to the residual stream; none where
    a norm comes behind the addition, so that no block is without effect.
    numbered: fields of its config that, where they are true, make a block depend on its number.
    """

    depth: str
    closing: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """What transformers' config of one model type says before a table is made of it.

    needed: sizes without which there is no table. optional: those that transformers has a default for.
    """

    model_type: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def checked(self, config: Config) -> dict[str, Any]:
        """The config, which says its model type even where it left that out, without "tensors".

        Raises CheckpointError for another model type, and with all sizes that are missing or none.
        """
        found = config.get("model_type")
        if found not in (None, self.model_type):
            raise CheckpointError(
                f"model_type is {found!r}, this table is for {self.model_type!r}: other types may compute "
                "something else with tensors of the same names, so name a family of its own type"
            )
        demand(config, self.model_type, *self.needed, sizes=(*self.needed, *self.optional))
        kept = {field: value for field, value in config.items() if field != "tensors"}
        return {**kept, "model_type": self.model_type}


@dataclass(frozen=True)
class Naming:
    """A table from its names to transformers', which is read backwards too.

    theirs: what transformers' config must say, in either direction.
    rules: of transformers' config: one rule for every tensor, none of them lossy.
    drops: what its checkpoints may also hold, each with the reason why it goes nowhere.
    accepts: what transformers' checkpoints may also hold, or name otherwise.
    twins: name -> name of the tensor that its checkpoints hold twice; not needed, and checked where it is
    there; written again on the way back.
    joins: of transformers' config, the shapes of tensors that are in parts, and the number of these: what
    `rules` and `drops` are then; None where its checkpoints never are.
    prefix, base: what its names and transformers' begin with, or do not where only a part was saved.
    numbers: what each placeholder runs through; a tensor of a number beyond it has no place in the model.
    config, back: its description of the model, and under "tensors" the names of its tensors, as
    transformers' config; and back. Both raise CheckpointError where the other side has no words for it.
    """

    name: str
    architecture: str  # transformers' class
    theirs: Description
    rules: Callable[[Config], tuple[Rule, ...]]
    numbers: Callable[[Config], Mapping[str, Iterable[int]]]
    config: Callable[[Config], dict[str, Any]]
    back: Callable[[Config], dict[str, Any]]
    drops: Callable[[Config], tuple[Rule, ...]] = _nothing
    accepts: Callable[[Config], tuple[Rule, ...]] = _nothing
    twins: Callable[[Config], Mapping[str, str]] = _no_twins
    joins: Callable[[Config, Mapping[str, Shape], int], tuple[Rule, ...]] | None = None
    prefix: str = ""
    base: str = ""

    def table(self, config: Config, *, reverse: bool = False) -> tuple[Rule, ...]:
        """The rules to transformers, or from it, for every prefix. `config`: transformers'.

        Raises CheckpointError for a config that is not as `theirs` says.
        """
        config = self.theirs.checked(config)
        rules, twins = self.rules(config), self.twins(config)
        if reverse:
            twice = (_doubled(rule, twins) for rule in inverse(rules))
            return tuple(_prefixed([*twice, *self.accepts(config)], self.base))
        ties = (tie(second, first) for second, first in twins.items())
        return tuple(_prefixed([*rules, *ties, *self.drops(config)], self.prefix))

    def joining(self, config: Config, shapes: Mapping[str, Shape], parts: int) -> tuple[Rule, ...]:
        """The rules to transformers from tensors in `parts` parts: `0:name`, `1:name`, …, of these `shapes`.

        Raises CheckpointError for a family without such rules, and for parts that do not make up the model
        of `config`.
        """
        if not self.joins:
            raise CheckpointError(
                f"every tensor is in {parts} parts, and {self.name} has no rules that join them: name a "
                "family that has, such as llama-original"
            )
        return self.joins(self.theirs.checked(config), shapes, parts)

    def expected(self, config: Config, *, reverse: bool = False) -> tuple[str, ...]:
        """Every name that the result must have, each once.

        Raises CheckpointError for a config that is not as `theirs` says.
        """
        config = self.theirs.checked(config)
        rules, numbers = self.rules(config), self.numbers(config)
        sides = [(rule.sources if reverse else rule.targets) for rule in rules]
        twins = tuple(self.twins(config)) if reverse else ()
        return tuple(dict.fromkeys(name for side in [*sides, twins] for name in expand(side, numbers)))


def buffers(*templates: str) -> tuple[Rule, ...]:
    """Tensors that old checkpoints hold and no model reads."""
    return tuple(Rule(template, None, DROP, BUFFER, function="exact") for template in templates)


def lacks(given: Config, name: str) -> bool:
    """Whether a checkpoint is known to hold no tensor `name`, under no prefix."""
    return "tensors" in given and not any(held.endswith(name) for held in given["tensors"])


def demand(
    config: Config, naming: str, *fields: str, sizes: Iterable[str] = (), numbers: Iterable[str] = ()
) -> None:
    """Raises CheckpointError with all `fields` that `config` lacks, and all values that cannot be meant.

    sizes: fields that are whole numbers from 1 to 2**31 where they are there.
    numbers: those that are any finite number above 0.
    """
    lacking = [field for field in fields if config.get(field) is None]
    faults = [f"this one lacks {', '.join(lacking)}"] if lacking else []
    faults += _wrong(config, sizes, _is_size, "a whole number from 1 to 2**31")
    faults += _wrong(config, numbers, _is_number, "a number above 0")
    faults += _wrong(config, FLAGS, _is_flag, "true or false")
    if faults:
        needs = f" needs {', '.join(fields)}" if fields else ""
        raise CheckpointError(
            f"a config of {naming}{needs}; {'; '.join(faults)}: write what the model was trained with"
        )


def _wrong(config: Config, fields: Iterable[str], fits: Callable[[Any], bool], meant: str) -> Iterator[str]:
    for field in dict.fromkeys(fields):
        if config.get(field) is not None and not fits(config[field]):
            yield f"{field} is {config[field]!r:.80}, not {meant}"


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def demand_equal(config: Config, naming: str, fixed: Mapping[str, Any]) -> None:
    """Raises CheckpointError with all fields in which `config` differs from `fixed`."""
    other = [
        f"{field} is {config.get(field)!r}, not {value!r}"
        for field, value in fixed.items()
        if config.get(field) != value
    ]
    if other:
        raise CheckpointError(
            f"{naming} cannot compute this model: {'; '.join(other)}; choose another naming, or change the "
            "config if you accept another function"
        )


def _doubled(rule: Rule, twins: Mapping[str, str]) -> Rule:
    """The rule, which makes its target under a second name too where `twins` has one."""
    seconds = [second for second, first in twins.items() if rule.targets == (first,)]
    if not seconds:
        return rule
    copies = Replicate(1 + len(seconds))
    op = copies if rule.op == KEEP else Chain((rule.op, copies))
    return replace(rule, target=(*rule.targets, *seconds), op=op, function="exact")


def _prefixed(rules: Iterable[Rule], prefix: str) -> Iterator[Rule]:
    """Every rule for every wrapper, and for names without `prefix` where all its sources begin with it."""
    for rule in rules:
        cuts = ("", prefix) if prefix and all(name.startswith(prefix) for name in rule.sources) else ("",)
        for cut in cuts:
            for wrapper in WRAPPERS:
                yield _renamed(rule, cut, wrapper)


def _renamed(rule: Rule, cut: str, wrapper: str) -> Rule:
    if not cut and not wrapper:
        return rule
    names = tuple(f"{wrapper}{name.removeprefix(cut)}" for name in rule.sources)
    op = Tie(f"{wrapper}{rule.op.to.removeprefix(cut)}") if isinstance(rule.op, Tie) else rule.op
    told = f"prefix {wrapper} " * bool(wrapper) + f"without {cut}" * bool(cut)
    return replace(
        rule, source=names[0] if len(names) == 1 else names, op=op, reason=rule.reason or told.strip()
    )
