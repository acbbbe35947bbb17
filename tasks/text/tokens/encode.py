"""From rows to token ids: ragged lists, cut at a maximum length, with what the cut cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tasks.errors import CheckpointError, DataError, ParamsError, did_you_mean
from tasks.text import kinds
from tasks.text.tokens import windows, words
from tasks.text.tokens.tally import COUNTED

IDS = pa.list_(pa.int32())
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Form:
    """How rows of a kind are encoded. `encode(rows, tokenizer, max_length)` gives the columns of token ids
    and what is counted; `answer(rows, names, columns)` what is to be predicted of them; `columns` are all but
    id and input_ids."""

    encode: Callable[..., Columns]
    columns: Mapping[str, pa.DataType] = field(default_factory=dict)
    answer: Callable[[pa.Table, Sequence[str], Columns], Columns] | None = None


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


def schema(kind: str, tokenizer: PreTrainedTokenizerBase) -> pa.Schema:
    """The columns of encoded rows of `kind`: id (string), input_ids (ragged int32), and the kind's own.

    Raises DataError for a kind that cannot be encoded yet.
    """
    columns = dict(_form(kind).columns)
    if kind in TYPED and "token_type_ids" in tokenizer.model_input_names:
        columns = {"token_type_ids": IDS, **columns}
    return pa.schema({"id": pa.string(), "input_ids": IDS, **columns})


def shard(
    table: pa.Table,
    *,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    max_length: int | None,
    names: Sequence[str] = (),
    stride: int | None = None,
) -> pa.Table:
    """The rows of `table` (id, text, the kind's columns) as `schema` says, then the int32 columns of
    `tally.COUNTED`.

    Never padded; cut at `max_length`, or, for packing, not at all where it is None, each text then closed by
    the end token if the tokenizer frames nothing. `names` are all labels in the order of their numbers. Of
    kind answer a row becomes several, which share `stride` tokens of the context (see `windows.overlap`).
    Raises DataError for a label that is not among `names`, CheckpointError for a chat without a template or
    a tokenizer that cannot say where tokens come from, ParamsError for a stride that is too large.
    """
    form = _form(kind)
    if kind in TRACED and not tokenizer.is_fast:
        raise CheckpointError(
            f"rows of kind {kind} need a tokenizer that says where its tokens come from, which this "
            "checkpoint's does not: take one with a tokenizer.json"
        )
    encoder = form.encode if stride is None else partial(form.encode, stride=stride)
    columns = {"id": table["id"].to_pylist(), **encoder(table, tokenizer, max_length)}
    if form.answer:
        columns |= form.answer(table, names, columns)
    columns.setdefault("missed", [0] * len(columns["id"]))
    columns["unknown"] = _unknown(columns, tokenizer)
    full = pa.schema({**{part.name: part.type for part in schema(kind, tokenizer)}, **COUNTED})
    return pa.table({part.name: columns[part.name] for part in full}, schema=full)


def _form(kind: str) -> Form:
    if kind in UNREADY:
        raise DataError(f"rows of kind {kind} cannot be encoded yet: {UNREADY[kind]}")
    if kind not in FORMS:
        raise DataError(f"rows of kind {kind} cannot be encoded; {did_you_mean(kind, FORMS)}")
    return FORMS[kind]


def _single(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Columns:
    columns = _cut(tokenizer, max_length, text=rows["text"].to_pylist())
    return {name: columns[name] for name in ("input_ids", "lost")}


def _document(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Columns:
    """Texts that will share a row must be told apart."""
    columns = _single(rows, tokenizer, max_length)
    end = tokenizer.eos_token_id
    if max_length is None and end is not None and not tokenizer.num_special_tokens_to_add():
        columns["input_ids"] = [[*row, end] for row in columns["input_ids"]]
    return columns


def _pair(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Columns:
    return _cut(tokenizer, max_length, text=rows["text"].to_pylist(), text_pair=rows["pair"].to_pylist())


def _translation(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Columns:
    """Source and target stand apart, in encoder and decoder: each may have `max_length`."""
    source = _single(rows, tokenizer, max_length)
    target = _cut(tokenizer, max_length, text_target=rows["target"].to_pylist())
    lost = [a + b for a, b in zip(source["lost"], target["lost"], strict=True)]
    return {"input_ids": source["input_ids"], "target_ids": target["input_ids"], "lost": lost}


def _completion(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Columns:
    """Prompt and completion stand in one row: the longer gives way, as with pairs, to half each at most.

    A completion ends with the end token, where there is one, so that a model learns to stop.
    """
    prompts = rows["text"].to_pylist()
    whole = _call(tokenizer, text=prompts)["input_ids"]
    plain = _call(tokenizer, text=rows["completion"].to_pylist(), add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    targets = [[*row, *end] for row in plain]
    columns: Columns = {"input_ids": [], "target_ids": [], "lost": []}
    for prompt, ids, target in zip(prompts, whole, targets, strict=True):
        room = len(ids) if max_length is None else max(max_length - len(target), (max_length + 1) // 2)
        kept = ids if len(ids) <= room else _call(tokenizer, room, text=[prompt])["input_ids"][0]
        left = target if max_length is None else target[: max_length - len(kept)]
        columns["input_ids"].append(kept)
        columns["target_ids"].append(left)
        columns["lost"].append(len(ids) + len(target) - len(kept) - len(left))
    return columns


def _chat(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Columns:
    """The whole conversation as the template writes it; the last message begins at `prompt_length`."""
    if not tokenizer.chat_template:
        raise CheckpointError(
            "this checkpoint's tokenizer has no chat template, so that messages cannot be written as it "
            "expects them: take a checkpoint that was trained to chat, or sources.text.kind: completion"
        )
    both = [
        _written(tokenizer, *row)
        for row in zip(rows["id"].to_pylist(), rows["messages"].to_pylist(), strict=True)
    ]
    bare = {"add_special_tokens": False}  # the template writes them
    whole = _call(tokenizer, text=[text for text, _ in both], **bare)["input_ids"]
    prompts = _call(tokenizer, text=[text for _, text in both], **bare)["input_ids"]
    kept = whole if max_length is None else [row[:max_length] for row in whole]
    shared = [_shared(prompt, row) for prompt, row in zip(prompts, kept, strict=True)]
    lost = [len(row) - len(part) for row, part in zip(whole, kept, strict=True)]
    return {"input_ids": kept, "prompt_length": shared, "lost": lost}


def _written(tokenizer: PreTrainedTokenizerBase, id: str, messages: list[dict[str, str]]) -> tuple[str, str]:
    try:
        whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise DataError(
            f"row {id}: the checkpoint's chat template refuses its messages: {error}: change the row or "
            "take it out"
        ) from None
    return whole, str(prompt)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _cut(tokenizer: PreTrainedTokenizerBase, max_length: int | None, **texts: list[str]) -> Columns:
    """Whole first, to know what a cut costs; then again with a cut that keeps the closing special tokens."""
    columns = _call(tokenizer, **texts)
    sizes = [len(row) for row in columns["input_ids"]]
    long = [] if max_length is None else [place for place, size in enumerate(sizes) if size > max_length]
    if long:
        again = _call(
            tokenizer, max_length, **{name: [part[place] for place in long] for name, part in texts.items()}
        )
        for name, column in again.items():
            for place, row in zip(long, column, strict=True):
                columns[name][place] = row
    columns["lost"] = [size - len(row) for size, row in zip(sizes, columns["input_ids"], strict=True)]
    return columns


def _call(tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, /, **options: Any) -> Columns:
    if not next(iter(options.values())):  # an empty list is no batch to a tokenizer
        return {"input_ids": [], "token_type_ids": []}
    encoded = tokenizer(
        padding=False,  # tokenizer.json may ask for padding by itself
        truncation="longest_first" if max_length is not None else False,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids="text_pair" in options and "token_type_ids" in tokenizer.model_input_names,
        verbose=False,
        **options,
    )
    return dict(encoded)


def _unknown(columns: Columns, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where another role has the same token, as in GPT-2, no text is unknown: its pieces are bytes."""
    roles = ("bos", "eos", "sep", "pad", "cls", "mask")
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in {getattr(tokenizer, f"{role}_token_id") for role in roles}:
        return [0] * len(columns["id"])
    parts = [columns[name] for name in ("input_ids", "target_ids") if name in columns]
    return [sum(row.count(unknown) for row in rows) for rows in zip(*parts, strict=True)]


def _label(rows: pa.Table, names: Sequence[str], _: Columns) -> Columns:
    values = rows["label"].to_pylist()
    numbers = _numbers(values, names)
    return {"label": [numbers[value] for value in values]}


def _labels(rows: pa.Table, names: Sequence[str], _: Columns) -> Columns:
    values = rows["labels"].to_pylist()
    numbers = _numbers((name for row in values for name in row), names)
    hot = [{numbers[name] for name in row} for row in values]
    return {"labels": [[int(place in row) for place in range(len(names))] for row in hot]}


def _score(rows: pa.Table, names: Sequence[str], _: Columns) -> Columns:
    return {"label": rows["score"].to_pylist()}


def _tags(rows: pa.Table, names: Sequence[str], columns: Columns) -> Columns:
    """Of the words that are left."""
    values = rows["tags"].to_pylist()
    numbers = _numbers((name for row in values for name in row), names)
    each = zip(values, columns["words"], strict=True)
    return {"tags": [[numbers[tags[word]] for word in left] for tags, left in each]}


def _numbers(values: Any, names: Sequence[str]) -> dict[str, int]:
    if strangers := sorted(set(values) - set(names)):
        raise DataError(f"labels {', '.join(map(repr, strangers))} are not among {', '.join(names)}")
    return {name: number for number, name in enumerate(names)}


TARGETS = {"target_ids": IDS}
FORMS: Mapping[str, Form] = {
    "label": Form(_single, {"label": pa.int64()}, _label),
    "labels": Form(_single, {"labels": pa.list_(pa.int8())}, _labels),  # 1 for each label that the row has
    "score": Form(_single, {"label": pa.float32()}, _score),
    "pair": Form(_pair, {"label": pa.int64()}, _label),
    "text": Form(_document),
    "completion": Form(_completion, TARGETS),
    "translation": Form(_translation, TARGETS),
    "prefix-remainder": Form(_translation, TARGETS),
    "chat": Form(_chat, {"prompt_length": pa.int32()}),
    "tags": Form(words.encode, {"places": IDS, "tags": pa.list_(pa.int64())}, _tags),
    "answer": Form(windows.encode, {"start": pa.int32(), "end": pa.int32(), "offsets": IDS}),
}
TYPED = ("pair", "answer")  # two texts, told apart by token_type_ids where the tokenizer makes them
TRACED = ("tags", "answer")  # each token's word or characters must be known
UNREADY: Mapping[str, str] = {
    "preference": "training does not know chosen and rejected texts",
    "rating": "training does not know rated completions",
}


def wanted(kind: str) -> tuple[str, ...]:
    """The columns of prepared rows that `shard` reads."""
    return ("id", "text", *kinds.KINDS[kind].columns)
