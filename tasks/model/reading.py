"""What a model is given of each kind of row, where its head reads, and what it should say there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from tasks.errors import DataError
from tasks.model import heads
from tasks.model.batches import Places, Ragged, Rows, last_tokens
from tasks.model.masked import Masked

Targets = Callable[[Places], Tensor]


@dataclass(frozen=True)
class Asked:
    """rows: what the model is given. targets: of places, what its head should say, (read, …) on the device.
    ids: of the rows. silent: ids of rows left out because the head would have nothing to say about them."""

    rows: Rows | Masked
    targets: Targets
    ids: Sequence[str]
    silent: Sequence[str] = ()

    def only(self, places: Places) -> "Asked":
        """These rows alone, in this order; not of rows with hidden words, which their place decides."""
        assert isinstance(self.rows, Rows)
        targets = lambda given: self.targets([places[place] for place in given])  # noqa: E731
        return Asked(self.rows.only(places), targets, [self.ids[place] for place in places])


def ask(
    table: pa.Table, kind: str, model: PreTrainedModel, *, special: Mapping[str, int], seed: int = 0
) -> Asked:
    """table: encoded rows of `kind`. special: role -> token id. seed: of what masked language models hide.

    Raises DataError for a token that is beyond the model's table.
    """
    _demand_known(table, model)
    places = np.arange(len(table))
    ids = table["id"].to_pylist() if "id" in table.column_names else [f"row {place}" for place in places]
    if kind == "text" and type(model).__name__.endswith("MaskedLM"):
        return _hidden(table, model, ids, special, seed)
    rows, told = FORMS[kind](_Encoded(table, model))
    return _without_silent(Asked(rows, _targets(told, model), ids), told, model)


@dataclass(frozen=True)
class _Encoded:
    table: pa.Table
    model: PreTrainedModel

    @property
    def pad(self) -> int:
        """Masked, so that any id would do."""
        return self.model.config.pad_token_id or 0

    def ragged(self, name: str) -> Ragged:
        return ragged(self.table[name])

    def rows(self, ids: Ragged, read: Ragged | None, decoder: Ragged | None = None) -> Rows:
        types = self.ragged("token_type_ids") if "token_type_ids" in self.table.column_names else None
        return Rows(ids, types, self.pad, read, decoder)


def _padding(model: PreTrainedModel) -> int:
    """-1, which no token is, where it has none."""
    return -1 if model.config.pad_token_id is None else int(model.config.pad_token_id)


Told = Ragged | NDArray[Any]  # of each row one answer, or several


def ragged(column: pa.ChunkedArray) -> Ragged:
    """A column of lists."""
    lengths = compute.list_value_length(column).to_numpy()
    values = compute.list_flatten(column).to_numpy()
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _demand_known(table: pa.Table, model: PreTrainedModel) -> None:
    names = [name for name in ("input_ids", "target_ids") if name in table.column_names]
    highest = max(compute.max(compute.list_flatten(table[name])).as_py() or 0 for name in names)
    if highest >= model.config.vocab_size:
        raise DataError(
            f"the encoded rows hold token {highest}, and the model's table has "
            f"{model.config.vocab_size:,} rows: tokenizer and checkpoint do not belong together; run "
            "`dvc repro conversion encoding`"
        )


def _targets(told: Told, model: PreTrainedModel) -> Targets:
    if isinstance(told, Ragged):
        return lambda places: told.flat(places).to(model.device)
    whole = torch.as_tensor(told, device=model.device)
    return lambda places: whole[list(places)]


def _without_silent(asked: Asked, told: Told, model: PreTrainedModel) -> Asked:
    """A row that was cut before the first token to be told has nothing to teach."""
    if not isinstance(told, Ragged) or (told.lengths > 0).all():
        return asked
    assert isinstance(asked.rows, Rows)
    speaking, kept = np.flatnonzero(told.lengths > 0).tolist(), np.flatnonzero(told.lengths == 0).tolist()
    return Asked(
        asked.rows.only(speaking),
        _targets(told.only(speaking), model),
        [asked.ids[place] for place in speaking],
        [asked.ids[place] for place in kept],
    )


def _hidden(
    table: pa.Table, model: PreTrainedModel, ids: Sequence[str], special: Mapping[str, int], seed: int
) -> Asked:
    """Rows of special tokens alone have none to hide."""
    rows = ragged(table["input_ids"])
    free = [bool((~np.isin(rows[place], list(special.values()))).any()) for place in range(len(rows))]
    masked = _masked(table.filter(pa.array(free)), model, special, seed)
    kept = [id for id, told in zip(ids, free, strict=True) if told]
    silent = [id for id, told in zip(ids, free, strict=True) if not told]
    return Asked(masked, lambda asked: masked.targets(asked).to(model.device), kept, silent)


def _masked(table: pa.Table, model: PreTrainedModel, special: Mapping[str, int], seed: int) -> Masked:
    if "mask" not in special:
        raise DataError(
            "the tokenizer has no masking token, so that nothing can be hidden: take a checkpoint that was "
            "trained to fill in words, or sources.text.kind: label"
        )
    held = _Encoded(table, model)
    rows = held.rows(held.ragged("input_ids"), None)
    return Masked(rows, special["mask"], model.config.vocab_size, sorted(set(special.values())), seed)


def _classified(held: _Encoded, told: Told) -> tuple[Rows, Told]:
    ids, read = held.ragged("input_ids"), heads.head_of(held.model).read
    rows = held.rows(ids, last_tokens(ids, _padding(held.model)) if read == "last" else None)
    return replace(rows, mean=read == "mean"), told


def _label(held: _Encoded) -> tuple[Rows, Told]:
    return _classified(held, held.table["label"].to_numpy().astype(np.int64))


def _labels(held: _Encoded) -> tuple[Rows, Told]:
    hot = compute.list_flatten(held.table["labels"]).to_numpy().astype(np.float32)
    return _classified(held, hot.reshape(len(held.table), -1))


def _score(held: _Encoded) -> tuple[Rows, Told]:
    return _classified(held, held.table["label"].to_numpy().astype(np.float32))


def _tags(held: _Encoded) -> tuple[Rows, Told]:
    return held.rows(held.ragged("input_ids"), held.ragged("places")), held.ragged("tags")


def _answer(held: _Encoded) -> tuple[Rows, Told]:
    """Every token may be an answer's start or end: a target of three says which, and where rows begin."""
    ids = held.ragged("input_ids")
    told = np.zeros((len(ids.values), 3), dtype=np.int64)
    for number, side in enumerate(("start", "end")):
        told[ids.offsets[:-1] + held.table[side].to_numpy(), number] = 1
    told[ids.offsets[:-1], 2] = 1
    every = Ragged.of([range(length) for length in ids.lengths])
    return held.rows(ids, every), Ragged(told, ids.offsets)


def _text(held: _Encoded) -> tuple[Rows, Told]:
    """Each token says the next one."""
    return _continued(held, held.ragged("input_ids"), np.ones(len(held.table), dtype=np.int64))


def _chat(held: _Encoded) -> tuple[Rows, Told]:
    return _continued(held, held.ragged("input_ids"), held.table["prompt_length"].to_numpy())


def _completion(held: _Encoded) -> tuple[Rows, Told]:
    prompts, targets = held.ragged("input_ids"), held.ragged("target_ids")
    whole = [np.concatenate([prompts[place], targets[place]]) for place in range(len(prompts))]
    return _continued(held, Ragged.of(whole), prompts.lengths)


def _continued(held: _Encoded, ids: Ragged, begins: NDArray[np.int64]) -> tuple[Rows, Told]:
    """Tokens from `begins` of each row on are to be told, each by the state of the one before it."""
    spans = [(max(1, int(first)), length) for first, length in zip(begins, ids.lengths, strict=True)]
    read = Ragged.of([range(first - 1, length - 1) for first, length in spans])
    told = Ragged.of([ids[place][first:] for place, (first, _) in enumerate(spans)])
    return held.rows(ids, read), told


def _translated(held: _Encoded) -> tuple[Rows, Told]:
    """The decoder is given what it has said so far, behind a token that starts it."""
    targets, start = held.ragged("target_ids"), held.model.config.decoder_start_token_id
    shifted = Ragged.of([[start, *targets[place][:-1]] for place in range(len(targets))])
    every = Ragged.of([range(length) for length in targets.lengths])
    return held.rows(held.ragged("input_ids"), every, shifted), targets


FORMS: Mapping[str, Callable[[_Encoded], tuple[Rows, Told]]] = {
    "label": _label,
    "pair": _label,
    "labels": _labels,
    "score": _score,
    "tags": _tags,
    "answer": _answer,
    "text": _text,
    "completion": _completion,
    "chat": _chat,
    "translation": _translated,
    "prefix-remainder": _translated,
}
