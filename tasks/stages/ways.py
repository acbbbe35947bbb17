"""How a base answers rows: a head reads each once, or a language model goes on with it.

A way knows how it takes a row and what it makes of several at once. Which adapters there are, and how long
each stays, is the service's business.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tasks.errors import InputError, TrainingError
from tasks.evaluation.asking import continuing, predict, sequences
from tasks.evaluation.asking.continuing import Continuation
from tasks.evaluation.decisions import Decision
from tasks.evaluation.predictions import Text
from tasks.evaluation.telling import TELLINGS, tempered
from tasks.model.bank import BASE, About, Bank
from tasks.model.batches import Ragged, Rows
from tasks.serving.messages import Answer, Row
from tasks.text.kinds import KINDS

TOGETHER = 2**14  # tokens of prompts at once; keys and values of SmolLM2-135M's are 755 MB then
TEXT = "text"  # the kind of a row that a language model goes on with, where no adapter tells another


@dataclass(frozen=True)
class Manner:
    """How an adapter takes a text, and what its answers are called."""

    kind: str
    labels: tuple[str, ...]
    clean: tuple[str, ...]
    max_length: int
    decision: Decision


@dataclass(eq=False)
class Served:
    """key: what the bank calls it, another one each time that its name is given anew. users: rows on their
    way. retired: no row can ask for it any more."""

    name: str
    key: str
    source: str
    version: str | None
    manner: Manner
    users: int = 0
    retired: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """A row on its way. served: None for the base. ids, types: of its tokens; types None where it is no pair.
    most: tokens that may follow it."""

    served: Served | None
    ids: Sequence[int]
    types: Sequence[int] | None = None
    most: int = 0

    @property
    def alike(self) -> Hashable:
        """Equal for rows that go well together: none says twice as many tokens as another."""
        return self.most.bit_length()


class Way(Protocol):
    kinds: Sequence[str]  # of rows that are answered

    def take(self, asked: Text, row: Row, served: Served | None) -> Prepared:
        """asked: cleaned. By one thread at a time. Raises InputError."""

    def answers(self, rows: Sequence[Prepared]) -> list[Answer | Exception]: ...

    def demand(self, source: str, manner: Manner, about: About) -> None:
        """Raises InputError where the adapter in the bank is not what `source` says that it is, or wants what
        the base has not."""


class Reading:
    """By a classifier: each adapter's head reads a row, and that of the base is its embedding."""

    kinds: Sequence[str] = tuple(predict.FROM_LOGITS)

    def __init__(self, bank: Bank, tokenizer: PreTrainedTokenizerBase) -> None:
        config = bank.model.config
        self._bank, self._tokenizer = bank, tokenizer
        self._pad, self._typed = int(config.pad_token_id or 0), getattr(config, "type_vocab_size", 0) > 1
        positions = int(getattr(config, "max_position_embeddings", None) or 512)
        self._longest = min(positions, tokenizer.model_max_length)

    def take(self, asked: Text, row: Row, served: Served | None) -> Prepared:
        if row.max_tokens is not None:
            raise InputError("nothing is said behind a text here: leave max_tokens out")
        length = served.manner.max_length if served else self._longest
        told = predict.encode(self._tokenizer, [asked], max_length=length)
        return Prepared(served, told["input_ids"][0], told.get("token_type_ids", [None])[0])

    def answers(self, rows: Sequence[Prepared]) -> list[Answer | Exception]:
        paired = self._typed and any(row.types is not None for row in rows)
        types = Ragged.of(row.types or [0] * len(row.ids) for row in rows) if paired else None
        taken = Rows(Ragged.of(row.ids for row in rows), types, self._pad)
        found = self._bank.answer(taken.batch(range(len(taken)), self._bank.model.device), _names(rows))
        return [_read(row.served, one) for row, one in zip(rows, found, strict=True)]

    def demand(self, source: str, manner: Manner, about: About) -> None:
        demand_labels(source, manner, about.labels)


class Continuing:
    """By a language model: what it says behind a row, as `regraft predict` has it; the base goes on too."""

    kinds: Sequence[str] = tuple(sequences.STARTS)

    def __init__(self, bank: Bank, tokenizer: PreTrainedTokenizerBase) -> None:
        self._bank, self._tokenizer, self._most = bank, tokenizer, continuing.most(bank.model)

    def take(self, asked: Text, row: Row, served: Served | None) -> Prepared:
        if not isinstance(asked, str):
            raise InputError("a language model goes on with one text: leave text_pair out")
        kind = served.manner.kind if served else TEXT
        ids = continuing.prompt(self._bank.model, self._tokenizer, asked, kind=kind)
        if not ids:
            raise InputError("its text has no token")
        return Prepared(served, ids, most=min(row.max_tokens or self._most, self._most))

    def answers(self, rows: Sequence[Prepared]) -> list[Answer | Exception]:
        taken, found = Rows(Ragged.of(row.ids for row in rows), None, pad=0), dict[int, Answer | Exception]()
        for places in taken.longest_first(len(taken), tokens=TOGETHER):
            found.update(zip(places, self._continued([rows[place] for place in places]), strict=True))
        return [found[place] for place in range(len(rows))]

    def demand(self, source: str, manner: Manner, about: About) -> None:
        if manner.kind == "chat" and not self._tokenizer.chat_template:
            raise InputError(f"{source}: it answers chats, and the base's tokenizer has no template for them")

    def _continued(self, rows: Sequence[Prepared]) -> list[Answer | Exception]:
        ids, mask = Ragged.of(row.ids for row in rows).padded(range(len(rows)), pad=0, left=True)
        device = self._bank.model.device
        given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        generate = partial(self._bank.generate, _names(rows))
        found = continuing.go_on(generate, self._tokenizer, given, [row.most for row in rows])
        return [_said(row.served, one) for row, one in zip(rows, found, strict=True)]


def way(bank: Bank, tokenizer: PreTrainedTokenizerBase) -> Way:
    """As the bank's model answers."""
    return (Continuing if bank.model.can_generate() else Reading)(bank, tokenizer)


def demand_labels(source: str, manner: Manner, labels: tuple[str, ...]) -> None:
    """Raises InputError unless `labels`, those of its adapter's head, are what it is said to answer."""
    if labels != (manner.labels if KINDS[manner.kind].classes else labels[:1]):
        told, own = ", ".join(manner.labels) or f"a {manner.kind}", ", ".join(labels)
        raise InputError(f"{source}: it is said to answer {told}, and its adapter's head answers {own}")


def _names(rows: Sequence[Prepared]) -> list[str]:
    return [row.served.key if row.served else BASE for row in rows]


def _read(served: Served | None, scores: Tensor) -> Answer | Exception:
    """scores: (labels,), or of the base the mean state (width,)."""
    values = scores.float().cpu().numpy()
    if not np.isfinite(values).all():
        return _diverged(served)
    if served is None:
        return Answer(adapter=None, embedding=values.tolist())
    manner = served.manner
    found = tempered(predict.FROM_LOGITS[manner.kind](values[None]), manner.kind, manner.decision)[0]
    told = _told(served, TELLINGS[manner.kind].cells(found, manner.labels, manner.decision)[0])
    if manner.labels:
        told.probabilities = dict(zip(manner.labels, np.asarray(found).tolist(), strict=True))
    return told


def _said(served: Served | None, said: Continuation | None) -> Answer | Exception:
    if said is None:
        return _diverged(served)
    told = _told(served, said.text)
    told.ended = said.ended
    return told


def _told(served: Served | None, prediction: str | list[str] | float | None) -> Answer:
    told = Answer(adapter=served.name if served else None, prediction=prediction)
    if served and served.version:
        told.version = served.version
    return told


def _diverged(served: Served | None) -> TrainingError:
    who = f"{served.name} ({served.source})" if served else "the base"
    return TrainingError(f"{who} answers what is no number: its weights have diverged, serve others")
