"""From texts to token ids: ragged rows, cut at a maximum length, with what the cut cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from tasks.errors import DataError, ParamsError

BATCH = 1000  # rows


@dataclass(frozen=True)
class Encoded:
    """`dataset` has id, input_ids (ragged int32) and label (int64, named); the rest are its totals."""

    dataset: Dataset
    tokens: int
    truncated: int  # rows that lost tokens
    lost: int  # tokens cut off
    unknown: int  # tokens that the vocabulary does not know


def check_length(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raises ParamsError where the model has no positions for `max_length` tokens, or no text would fit."""
    if max_length > tokenizer.model_max_length:
        raise ParamsError(
            f"encoding.max_length = {max_length} is more than the {tokenizer.model_max_length} tokens that "
            "this checkpoint has positions for: lower it"
        )
    if max_length <= (frame := tokenizer.num_special_tokens_to_add()):
        raise ParamsError(
            f"encoding.max_length = {max_length} leaves no room for text: {frame} special tokens frame it"
        )


def encode(
    ids: Sequence[str],
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    names: Sequence[str],
) -> Encoded:
    """Token ids of each text between the tokenizer's special tokens, never padded.

    `names` are all labels in the order of their numbers. Raises DataError for a label that is not among them.
    """
    if strangers := sorted(set(labels) - set(names)):
        raise DataError(f"labels {', '.join(map(repr, strangers))} are not among {', '.join(names)}")
    numbers = {name: number for number, name in enumerate(names)}
    columns = {"id": Value("string"), "label": ClassLabel(names=list(names))}
    rows = Dataset.from_dict(
        {"id": list(ids), "label": [numbers[label] for label in labels], "text": list(texts)},
        features=Features({**columns, "text": Value("string")}),
    )
    datasets.disable_caching()  # its fingerprints miss what a tokenizer holds; the pipeline owns caching
    full = rows.map(
        _encode_batch,
        batched=True,
        batch_size=BATCH,
        remove_columns=["text"],
        features=Features({**columns, "input_ids": List(Value("int32")), "lost": Value("int32")}),
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        keep_in_memory=True,
        new_fingerprint="encoded",  # a random one would be written into the files
    )
    return _counted(full, tokenizer.unk_token_id)


def _encode_batch(
    batch: Mapping[str, list[Any]], *, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    """Whole first, to know what a cut costs; then again with a cut that keeps the closing special tokens."""
    whole = _ids(tokenizer, batch["text"])
    long = [place for place, row in enumerate(whole) if len(row) > max_length]
    cut = _ids(tokenizer, [batch["text"][place] for place in long], max_length) if long else []
    kept = dict(zip(long, cut, strict=True))
    ids = [kept.get(place, row) for place, row in enumerate(whole)]
    return {"input_ids": ids, "lost": [len(old) - len(new) for old, new in zip(whole, ids, strict=True)]}


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None = None
) -> list[list[int]]:
    encoded = tokenizer(
        list(texts),
        padding=False,  # tokenizer.json may ask for padding by itself
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    rows: list[list[int]] = encoded["input_ids"]
    return rows


def _counted(full: Dataset, unknown: int | None) -> Encoded:
    lost, rows = full["lost"][:], full["input_ids"][:]
    return Encoded(
        dataset=full.select_columns(["id", "input_ids", "label"]),
        tokens=sum(map(len, rows)),
        truncated=sum(cut > 0 for cut in lost),
        lost=sum(lost),
        unknown=0 if unknown is None else sum(row.count(unknown) for row in rows),
    )
