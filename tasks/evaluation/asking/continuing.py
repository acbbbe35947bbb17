"""What a language model goes on to say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from tasks.errors import InputError, TrainingError
from tasks.evaluation.asking.predict import Batches, Tokens
from tasks.evaluation.predictions import Array, texts_of
from tasks.progress import track

WRITTEN = ("translation", "prefix-remainder")  # kinds of row that an encoder-decoder answers
LONGEST = 64  # tokens said, at most


def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, kind: str
) -> list[str]:
    """The likeliest next tokens after each of `texts`, one at a time; of a chat, the answer to it.

    Raises InputError for a model that guesses hidden tokens and cannot go on, TrainingError for one whose
    logits are no numbers.
    """
    if not model.can_generate():
        raise InputError(
            f"a {type(model).__name__} guesses hidden tokens and cannot continue a text: its figures are in "
            "reports/evaluation.html"
        )
    return [_continued(model, tokenizer, text, kind=kind) for text in texts]


@dataclass(frozen=True)
class Continuation:
    """ended: whether the text came to its end; false where there was no room for more."""

    text: str
    ended: bool


def most(model: PreTrainedModel) -> int:
    """Tokens that it says behind a prompt, at most."""
    return min(LONGEST, _positions(model) // 2)


def prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, kind: str) -> list[int]:
    """Tokens of `text`, as the rows of `kind` that the model learned from: a chat by its template, which
    writes the special tokens. Where they and `most` are more than it has positions, the last of them: what
    came last decides how it goes on."""
    written, chat = text, kind == "chat"
    if chat:
        message = [{"role": "user", "content": text}]
        written = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    ids: list[int] = tokenizer(written, add_special_tokens=not chat)["input_ids"]
    return ids[-(_positions(model) - most(model)) :]


def go_on(
    generate: Callable[..., Tensor],
    tokenizer: PreTrainedTokenizerBase,
    given: Mapping[str, Tensor],
    limits: Sequence[int],
) -> list[Continuation | None]:
    """The likeliest next tokens behind each row, one at a time; None of a row whose logits are no numbers.

    generate: a model's. given: input_ids and attention_mask, each (batch, tokens), padded on the left.
    limits: of each row, tokens at most.
    """
    end, watch = tokenizer.eos_token_id, _Watch()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    how = {"max_new_tokens": max(limits), "do_sample": False, "num_beams": 1}
    with torch.inference_mode():
        said = generate(
            **given, **how, eos_token_id=end, pad_token_id=pad, logits_processor=LogitsProcessorList([watch])
        )
    rows = zip(said[:, given["input_ids"].shape[1] :].tolist(), limits, watch.lost(), strict=True)
    return [None if lost else _told(ids[:limit], tokenizer) for ids, limit, lost in rows]


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


class _Watch(LogitsProcessor):
    """Sees all logits and changes none."""

    def __init__(self) -> None:
        self._lost: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        lost = scores.isnan().any(dim=-1)  # (batch, words) -> (batch,)
        self._lost = lost if self._lost is None else self._lost | lost
        return scores

    def lost(self) -> list[bool]:
        """Of each row, whether there was one that is no number."""
        return [] if self._lost is None else self._lost.tolist()


def _continued(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, kind: str) -> str:
    ids = torch.tensor([prompt(model, tokenizer, text, kind=kind)], device=model.device)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    (said,) = go_on(model.generate, tokenizer, given, [most(model)])  # type: ignore[arg-type]
    if said is None:
        raise TrainingError(
            "the model's logits are no numbers: its weights have diverged; train again at a lower learning "
            "rate"
        )
    return said.text


def _told(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Continuation:
    """Behind the end of a text stands padding."""
    ended = tokenizer.eos_token_id in ids
    own = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
    return Continuation(str(tokenizer.decode(own, skip_special_tokens=True)), ended)


def _positions(model: PreTrainedModel) -> int:
    """Tokens that fit the model, said ones included."""
    return int(getattr(model.config, "max_position_embeddings", None) or 2**20)
