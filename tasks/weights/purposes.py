"""What each kind of row asks of a model: which head, and what config.json says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tasks.errors import CheckpointError
from tasks.weights.families import FAMILIES, Family
from tasks.weights.families.family import ANSWERS, CAUSAL, CONDITIONAL, MASKED, MEANS, SEQUENCES, TOKENS

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True)
class Purpose:
    """heads: any one will do, the first that a family has. problem: which loss transformers takes.

    named: there is an output for each label of the rows, otherwise those of `outputs`, or transformers' own.
    new: why a head is made up, where the checkpoint has none for it.
    """

    heads: tuple[str, ...]
    new: str
    problem: Problem | None = None
    named: bool = False
    outputs: tuple[str, ...] = ()


def _classes(head: str, problem: Problem | None = None) -> Purpose:
    return Purpose((head,), "new head, {} labels", problem, named=True)


WORDS = "new head: the checkpoint has none that predicts tokens"
SINGLE = _classes(SEQUENCES, "single_label_classification")
WRITING = Purpose((CAUSAL,), WORDS)
REWRITING = Purpose((CONDITIONAL,), WORDS)
PURPOSES: Mapping[str, Purpose] = {  # kind of row -> what it asks
    "label": SINGLE,
    "pair": SINGLE,
    "labels": _classes(SEQUENCES, "multi_label_classification"),
    "score": Purpose((SEQUENCES,), "new head, one score", "regression", outputs=("score",)),
    "tags": _classes(TOKENS),
    "answer": Purpose((ANSWERS,), "new head, where an answer starts and ends"),
    "text": Purpose((MASKED, CAUSAL), WORDS),
    "completion": WRITING,
    "chat": WRITING,
    "translation": REWRITING,
    "prefix-remainder": REWRITING,
}


def find(kind: str, *, pooling: str = "token") -> Purpose:
    """pooling: what is read of a row that has one answer, a `token` or the `mean` of all.

    Raises CheckpointError for a kind of row that no head can be made for yet, or none that reads so.
    """
    if kind not in PURPOSES:
        raise CheckpointError(
            f"no head can be made for rows of kind {kind!r} yet; for these it can: {', '.join(PURPOSES)} "
            "(sources.text.kind)"
        )
    purpose = PURPOSES[kind]
    if pooling == "token":
        return purpose
    if purpose.heads != (SEQUENCES,):
        raise CheckpointError(
            f"rows of kind {kind!r} have an answer for many tokens, not one for their {pooling}: set "
            "conversion.pooling to token"
        )
    return replace(purpose, heads=(MEANS,))


def choose(kind: str, family: Family, *, pooling: str = "token") -> str:
    """The head that a checkpoint of `family` gets for rows of `kind`.

    Raises CheckpointError where there is none, with the kinds and the families that go together.
    """
    wanted = find(kind, pooling=pooling).heads
    if (head := _first(wanted, family)) is not None:
        return head
    kinds = [kind for kind, purpose in PURPOSES.items() if _first(purpose.heads, family)]
    families = [name for name, other in FAMILIES.items() if _first(wanted, other)]
    other = f"rows of kind {', '.join(kinds)}" if pooling == "token" else "conversion.pooling: token"
    raise CheckpointError(
        f"rows of kind {kind!r} need a model for {' or '.join(wanted)}, which a checkpoint of type "
        f"{family.name!r} does not become: take one of type {' or '.join(families)}, or {other}"
    )


def _first(wanted: tuple[str, ...], family: Family) -> str | None:
    return next((head for head in wanted if head in family.heads), None)
