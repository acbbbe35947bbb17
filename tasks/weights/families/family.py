"""What a family's table is made of: how its checkpoints spell the layers, the heads and what we leave out."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.weights.ops import Op
from tasks.weights.rules import DROP, KEEP, NORMAL, ONES, ZEROS, Rule, Tie, examples, fill, matches

P = "{p:weight|bias}"
OLD = "{p:weight|bias|gamma|beta}"  # of a norm, with TensorFlow's names
BUFFER = "a buffer: the model computes it"
UNPOOLED = "the head reads tokens, not the pooler"

SEQUENCES = "sequence classification"
MEANS = "classification by the mean of all tokens"
TOKENS = "token classification"
ANSWERS = "question answering"
MASKED = "masked language modelling"
CAUSAL = "causal language modelling"
CONDITIONAL = "conditional generation"
PRETRAINING = "pretraining"  # next sentences, say: no model here has such a head


@dataclass(frozen=True)
class Head:
    """What stands on top of the layers, for one purpose; all names are templates.

    linear, norms: its tensors, and its norms without the tensors' names.
    tokens: tensors with a row or a value for each token; transformers ties some of them.
    pooled: it reads the pooler. last: it reads the last token that is not padding.
    """

    linear: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    pooled: bool = False
    last: bool = False

    @property
    def templates(self) -> tuple[str, ...]:
        """Of all its tensors in a checkpoint."""
        return (*self.linear, *(f"{norm}.{OLD}" for norm in self.norms), *self.tokens)

    def rules(self, *, new: str, replaced: str, tied: Mapping[str, str]) -> Iterator[Rule]:
        """Those that copy the checkpoint's head, or drop it where `replaced` says why, and make up a new one.

        new: why there is a new one. tied: second name -> the tensor that transformers ties it to.
        """
        names = [name for template in self.tokens for name in examples(template)]
        if replaced:
            yield from dropped(replaced, *self.templates)
        else:
            yield from (*same(*self.linear), *layer_norms(self.norms))
            yield from (tie(name, tied[name]) if name in tied else Rule(name, name) for name in names)
        made = [name for template in self.linear for name in examples(template)]
        made += [name for name in names if name not in tied]
        yield from (_made(name, new, "head") for name in made)
        for norm in self.norms:
            yield Rule(None, f"{norm}.weight", ONES, new, "head")
            yield Rule(None, f"{norm}.bias", ZEROS, new, "head")


MEAN = Head((f"mean_classifier.{P}",))  # of our own classes, the same whatever the layers


@dataclass(frozen=True)
class Family:
    """Checkpoints of one model type of transformers, which all of its heads share the layers of.

    base: prefix of the layers in a model with a head. embedding: the table with a row for each token.
    behind_pad: positions are counted from behind the padding token's id.
    """

    name: str  # transformers' model_type
    base: str
    embedding: str
    heads: Mapping[str, Head]
    behind_pad: bool = field(default=False, kw_only=True)

    def rules(
        self,
        head: str,
        config: Mapping[str, Any],
        *,
        new: str = "new head",
        replaced: str = "",
        tied: Mapping[str, str] | None = None,
        words: Op = KEEP,
        reason: str = "",
    ) -> tuple[Rule, ...]:
        """The whole table for a model with `head`, one of `heads`; config: the checkpoint's.

        new, replaced, tied: as in `Head.rules`. words: what happens to every tensor with a row for each
        token, and for which reason.
        Raises CheckpointError for a config that does not describe such a model.
        """
        chosen, second = self.heads[head], tied or {}
        others = {template: name for name, other in self.heads.items() for template in other.templates}
        rules = (
            *self._layers(chosen, config, second),
            *chosen.rules(new=new, replaced=replaced, tied=second),
            *(rule for t, name in others.items() if t not in chosen.templates for rule in unused(name, t)),
        )
        return rules if words == KEEP else tuple(_realigned(rules, self._tables(), words, reason))

    def embeds(self, name: str) -> bool:
        """Whether this tensor of a checkpoint is the table with a row for each token."""
        return name.endswith(self.embedding.removeprefix(self.base))

    def _layers(self, head: Head, config: Mapping[str, Any], tied: Collection[str]) -> tuple[Rule, ...]:
        """All rules but those of `heads`."""
        raise NotImplementedError

    def _tables(self) -> set[str]:
        """Names of all tensors with a row or a value for each token."""
        templates = (template for head in self.heads.values() for template in head.tokens)
        return {self.embedding, *(name for template in templates for name in examples(template))}


@dataclass(frozen=True)
class Encoder(Family):
    """Rules of one model type, written without the base prefix, which checkpoints have or have not.

    pooler: what only some heads read, initialised where they do and the checkpoint lacks it.
    pretraining: of heads that no model here has, named as the checkpoint names them.
    """

    encoder: tuple[Rule, ...]
    buffers: tuple[str, ...]
    pooler: tuple[str, ...] = ()
    pretraining: tuple[str, ...] = ()

    def _layers(self, head: Head, config: Mapping[str, Any], tied: Collection[str]) -> tuple[Rule, ...]:
        pooler = same(*self.pooler) if head.pooled else dropped(UNPOOLED, *self.pooler)
        invented = [name for template in self.pooler for name in examples(template) if head.pooled]
        return (
            *(rule for prefix in ("", self.base) for rule in self._below((*self.encoder, *pooler), prefix)),
            *unused(PRETRAINING, *self.pretraining),
            *(_made(f"{self.base}{name}", "the checkpoint has no pooler", "pooler") for name in invented),
        )

    def _below(self, rules: Sequence[Rule], prefix: str) -> Iterator[Rule]:
        for rule in rules:
            target = None if rule.target is None else f"{self.base}{rule.target}"
            yield Rule(f"{prefix}{rule.source}", target, rule.op, rule.reason)
        yield from dropped(BUFFER, *(f"{prefix}{name}" for name in self.buffers))


def _realigned(rules: Iterable[Rule], tables: set[str], words: Op, reason: str) -> Iterator[Rule]:
    """The rules, where one that fills `tables` gives way to one for each name."""
    for rule in rules:
        names = list(examples(rule.source)) if rule.keeps and isinstance(rule.source, str) else []
        led = {name: fill(str(rule.target), matches(str(rule.source), name) or {}) for name in names}
        if not tables & {*led.values()}:
            yield rule
            continue
        for name, target in led.items():
            made = (words, reason) if target in tables else (rule.op, rule.reason)
            yield Rule(name, target, *made)


def _made(name: str, reason: str, group: str) -> Rule:
    return Rule(None, name, ZEROS if name.endswith("bias") else NORMAL, reason, group)


def same(*templates: str) -> tuple[Rule, ...]:
    """Tensors that keep their names."""
    return tuple(Rule(template, template, KEEP) for template in templates)


def tie(second: str, first: str) -> Rule:
    """`second` may be there too, and must then be `first` byte for byte."""
    return Rule(second, None, Tie(first), f"tied: {first} under a second name")


def layer_norms(modules: Sequence[str]) -> tuple[Rule, ...]:
    """LayerNorms, with the names that TensorFlow gave their tensors and old checkpoints still have."""
    return tuple(
        rule
        for module in modules
        for rule in (
            Rule(f"{module}.{P}", f"{module}.{P}", KEEP),
            Rule(f"{module}.gamma", f"{module}.weight", KEEP, "old name"),
            Rule(f"{module}.beta", f"{module}.bias", KEEP, "old name"),
        )
    )


def dropped(reason: str, *templates: str) -> tuple[Rule, ...]:
    """Tensors that go nowhere."""
    return tuple(Rule(template, None, DROP, reason) for template in templates)


def unused(purpose: str, *templates: str) -> tuple[Rule, ...]:
    """Heads for another purpose."""
    return dropped(f"head for {purpose}: not this model's", *templates)
