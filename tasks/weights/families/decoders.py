"""What writes: GPT-2, Llama, Mixtral and T5, by the tables from transformers' own names to themselves."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.weights.families import gpt2, llama, mixtral, t5
from tasks.weights.families.family import CAUSAL, CONDITIONAL, SEQUENCES, Family, Head, unused
from tasks.weights.families.naming import Naming
from tasks.weights.rules import Rule

OUTPUT = "lm_head.weight"  # a score for each token; often the embedding table itself
SCORE = Head(("score.weight",), last=True)


@dataclass(frozen=True)
class Decoder(Family):
    """naming: the table from transformers' names to themselves, with the head that predicts tokens."""

    naming: Naming

    def _layers(self, head: Head, config: Mapping[str, Any], tied: Collection[str]) -> tuple[Rule, ...]:
        table = self.naming.table({**config, "tie_word_embeddings": OUTPUT in tied})
        return tuple(_without_output(table)) if head == SCORE else table

    def _tables(self) -> set[str]:
        return {self.embedding, OUTPUT}


def _without_output(table: Iterable[Rule]) -> Iterator[Rule]:
    for rule in table:
        outputs = [name for name in rule.sources if name.endswith(OUTPUT)]
        yield from unused(CAUSAL, *outputs) if outputs else (rule,)


GPT2 = Decoder(
    name="gpt2",
    base=gpt2.BASE,
    embedding=gpt2.EMBEDDING,
    naming=gpt2.GPT2,
    heads={CAUSAL: Head(), SEQUENCES: SCORE},
)
LLAMA = Decoder(
    name="llama",
    base=llama.BASE,
    embedding=llama.EMBEDDING,
    naming=llama.LLAMA,
    heads={CAUSAL: Head(), SEQUENCES: SCORE},
)
MIXTRAL = Decoder(
    name="mixtral",
    base=llama.BASE,
    embedding=llama.EMBEDDING,
    naming=mixtral.OWN,
    heads={CAUSAL: Head(), SEQUENCES: SCORE},
)
T5 = Decoder(
    name="t5",
    base="",
    embedding="shared.weight",
    naming=t5.T5,
    heads={CONDITIONAL: Head()},
)
