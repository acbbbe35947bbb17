"""What a language model goes on to say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.evaluation.asking.predict import Batches, Tokens
from tasks.evaluation.predictions import Array, texts_of
from tasks.progress import track

WRITTEN = ("translation", "prefix-remainder")  # kinds of row that an encoder-decoder answers
LONGEST = 64  # tokens said, at most


def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, kind: str
) -> list[str]:
    """The likeliest next tokens after each of `texts`, one at a time; of a chat, the answer to it.

    Raises InputError for a model that guesses hidden tokens and cannot go on.
    """
    if not model.can_generate():
        raise InputError(
            f"a {type(model).__name__} guesses hidden tokens and cannot continue a text: its figures are in "
            "reports/evaluation.html"
        )
    return [_continued(model, tokenizer, text, chat=kind == "chat") for text in texts]


@dataclass(frozen=True)
class Writer:
    """How tokens that are written become texts, and how many there may be of them."""

    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    longest: int


def translations(model: PreTrainedModel, rows: Tokens, *, writer: Writer, batches: Batches) -> Array:
    """What an encoder-decoder makes of each row, its likeliest next token at a time: (rows,) texts."""
    found = [""] * len(rows["input_ids"])
    model.eval()
    for numbers, given in track(
        batches(rows), total=len(found), description="writing", size=lambda batch: len(batch[0])
    ):
        placed = {name: value.to(model.device) for name, value in given.items()}
        with torch.inference_mode():
            said = model.generate(**placed, max_new_tokens=writer.longest, do_sample=False)  # type: ignore[operator]
        for number, text in zip(numbers, writer.decode(said.tolist()), strict=True):
            found[number] = text
    return texts_of(found)


def _continued(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool) -> str:
    ids = _prompt(tokenizer, text, chat=chat)["input_ids"]
    room = _positions(model)
    said_at_most = min(LONGEST, room // 2)
    ids = ids[:, -(room - said_at_most) :].to(model.device)  # what came last decides how it goes on
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    asked = ids.shape[1]
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    with torch.inference_mode():
        said = model.generate(  # type: ignore[operator]
            **given, max_new_tokens=said_at_most, do_sample=False, eos_token_id=end, pad_token_id=pad
        )
    return str(tokenizer.decode(said[0, asked:], skip_special_tokens=True))


def _positions(model: PreTrainedModel) -> int:
    """Tokens that fit the model, said ones included."""
    return int(getattr(model.config, "max_position_embeddings", None) or 2**20)


def _prompt(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool) -> Any:
    """As the rows that the model learned from: a chat by its template, which writes the special tokens."""
    written = text
    if chat:
        message = [{"role": "user", "content": text}]
        written = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    return tokenizer(written, add_special_tokens=not chat, return_tensors="pt", return_token_type_ids=False)
