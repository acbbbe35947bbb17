"""What a family's table is made of: how its checkpoints spell the encoder, the head and what we leave out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.weights.ops import Op
from tasks.weights.rules import DROP, KEEP, NORMAL, ZEROS, Rule, examples

P = "{p:weight|bias}"
BUFFER = "a buffer: the model computes it"
PRETRAINING = "pretraining head: not a classifier"
NEW_HEAD = "new head, labels differ"


@dataclass(frozen=True)
class Family:
    """Rules of one model type, written without the base prefix, which checkpoints have or have not.

    head: modules with weight and bias on top of the encoder, made anew unless the labels are the same.
    dropped: named as the checkpoint names them, base prefix included where there is one.
    invented: encoder modules that are initialised where the checkpoint lacks them, each with the reason.
    embeddings: the tables with a row for each token; without the base prefix, as in `encoder`.
    behind_pad: positions are counted from behind the padding token's id.
    """

    name: str  # transformers' model_type
    base: str  # prefix of the encoder in the classifier
    encoder: tuple[Rule, ...]
    buffers: tuple[str, ...]
    dropped: tuple[Rule, ...]
    head: tuple[str, ...]
    invented: tuple[tuple[str, str], ...] = ()
    embeddings: tuple[str, ...] = ("embeddings.word_embeddings.weight",)
    behind_pad: bool = False

    def rules(self, *, labels: int, keep_head: bool, words: Op = KEEP, reason: str = "") -> tuple[Rule, ...]:
        """The whole table. keep_head: the checkpoint's classifier has our labels, by name and in order.

        words: what happens to the tables of `embeddings`, and for which reason.
        """
        encoder = self.encoder if words == KEEP else tuple(self._with_words(words, reason))
        return (*self._encoder(encoder), *self.dropped, *self._head(labels, keep_head), *self._invented())

    def embeds(self, name: str) -> bool:
        """Whether this tensor of a checkpoint is a table with a row for each token."""
        return name.removeprefix(self.base) in self.embeddings

    def _with_words(self, words: Op, reason: str) -> Iterator[Rule]:
        """The encoder's rules, where a template that covers such a table gives way to its names."""
        for rule in self.encoder:
            names = list(examples(rule.source)) if isinstance(rule.source, str) else []
            if not set(names) & set(self.embeddings):
                yield rule
                continue
            for name in names:
                yield Rule(name, name, words, reason) if name in self.embeddings else Rule(name, name)

    def _encoder(self, encoder: Sequence[Rule]) -> Iterator[Rule]:
        for prefix in ("", self.base):
            for rule in encoder:
                target = None if rule.target is None else f"{self.base}{rule.target}"
                yield Rule(f"{prefix}{rule.source}", target, rule.op, rule.reason)
            for name in self.buffers:
                yield Rule(f"{prefix}{name}", None, DROP, BUFFER)

    def _head(self, labels: int, keep_head: bool) -> Iterator[Rule]:
        reason = f"new head, {labels} labels"
        for module in self.head:
            old = f"{module}.{P}"
            yield Rule(old, old, KEEP) if keep_head else Rule(old, None, DROP, NEW_HEAD)
            yield from _made(module, reason, "head")

    def _invented(self) -> Iterator[Rule]:
        for module, reason in self.invented:
            yield from _made(f"{self.base}{module}", reason, module)


def _made(module: str, reason: str, group: str) -> Iterator[Rule]:
    yield Rule(None, f"{module}.weight", NORMAL, reason, group)
    yield Rule(None, f"{module}.bias", ZEROS, reason, group)


def same(*templates: str) -> tuple[Rule, ...]:
    """Tensors that keep their names."""
    return tuple(Rule(template, template, KEEP) for template in templates)


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


def pretraining(*templates: str) -> tuple[Rule, ...]:
    """Heads that only pretraining uses."""
    return tuple(Rule(template, None, DROP, PRETRAINING) for template in templates)
