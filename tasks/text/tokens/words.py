"""Tagged words as token ids: where in the row each word begins, since there its tag is read."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

Columns = dict[str, list[Any]]
Origins = Sequence[int | None]  # of each token the number of its word; None of a special token
NAMES = ("input_ids", "places", "words", "lost", "missed")


def encode(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Columns:
    """For each row `input_ids`, cut at the end, special tokens kept; `places`, the position of the first
    token of each word that is left, and `words`, their numbers; how many tokens are `lost` to the cut; and
    how many words give no token, such as one of control characters, as `missed`.
    """
    texts = spaced(rows["tokens"].to_pylist(), tokenizer)
    columns: Columns = {name: [] for name in NAMES}
    if not texts:  # an empty list is no batch to a tokenizer
        return columns
    found = _call(tokenizer, texts)
    for number, (words, ids) in enumerate(zip(texts, found["input_ids"], strict=True)):
        origins = found.word_ids(number)
        kept = _kept(origins, max_length)
        first = _first([origins[place] for place in kept])
        values = (
            [ids[place] for place in kept],
            list(first.values()),
            list(first),
            len(ids) - len(kept),
            len(words) - len({word for word in origins if word is not None}),
        )
        for name, value in zip(NAMES, values, strict=True):
            columns[name].append(value)
    return columns


def _kept(origins: Origins, max_length: int | None) -> list[int]:
    """Positions of the tokens that stay."""
    special = origins.count(None)
    room = len(origins) if max_length is None else max_length - special
    pieces = [place for place, word in enumerate(origins) if word is not None]
    gone = set(pieces[room:])
    return [place for place in range(len(origins)) if place not in gone]


def _first(origins: Origins) -> dict[int, int]:
    """Word -> position of its first token, in the order of the row."""
    found: dict[int, int] = {}
    for place, word in enumerate(origins):
        if word is not None:
            found.setdefault(word, place)
    return found


def spaced(rows: list[list[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """The words as they stand in a text: for GPT-2 and RoBERTa the space before a word is part of it."""
    if not _speaks_spaces(tokenizer):
        return rows
    return [[f" {word}" if place and word else word for place, word in enumerate(words)] for words in rows]


def _speaks_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words alone give other tokens than in a text, and words with a space before them the same."""
    whole = _call(tokenizer, ["a a"], is_split_into_words=False, add_special_tokens=False)["input_ids"][0]
    bare, spaced = _call(tokenizer, [["a", "a"], ["a", " a"]], add_special_tokens=False)["input_ids"]
    return bool(bare != whole == spaced)


def _call(tokenizer: PreTrainedTokenizerBase, texts: list[Any], **options: Any) -> Any:
    return tokenizer(
        texts,
        **{"is_split_into_words": True, **options},
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
