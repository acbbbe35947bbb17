"""A new tokenizer from our own texts, which frames and names special tokens as the checkpoint's does.

transformers' `train_new_from_iterator` keeps the model type and, of WordPiece, gives other tokens in every
process: its trainer numbers the first pieces in the order of a hash table, and ties between merges are told
by these numbers. Here they are numbered in the order of their characters.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tasks.errors import DataError, ParamsError
from tasks.text.tokens import vocabulary

Model = Literal["bpe", "wordpiece", "unigram"]
Texts = Callable[[], Iterable[Sequence[str]]]  # batches, from the beginning at every call
PREFIX = "##"
STEP = 1e-4  # min_score_penalty_delta of the library's Unigram trainer
DECIMALS = 6  # of a logarithm of a probability
CARRIED = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "chat_template")
JOINING = ("Prepend", "Replace")  # normalizers that hide spaces from whoever looks for words


@dataclass(frozen=True)
class Pieces:
    """What texts are made of, as the tokenizer's own first steps cut them."""

    first: frozenset[str]  # characters that begin a word
    later: frozenset[str]


def train(
    checkpoint: PreTrainedTokenizerBase, texts: Texts, *, model: Model, size: int, minimum_frequency: int
) -> PreTrainedTokenizerBase:
    """A tokenizer of at most `size` tokens: the checkpoint's normalizer, special tokens and frame around
    texts, with a model learned from `texts`; its way to cut words too where it is of the same family.

    The same texts give the same bytes; of "unigram" the library's own sums differ in the last digits from
    run to run, which rounding hides unless a score lies on its edge. "unigram" knows no minimum frequency.
    Raises ParamsError where `size` cannot hold the characters or the model needs an unknown token that the
    checkpoint lacks, DataError where there is no word.
    """
    state = json.loads(vocabulary.backend(checkpoint).to_str())
    _refit(state, model)
    special = [token["content"] for token in state["added_tokens"] if token["special"]]
    blank = _blank(state)
    pieces = _pieces(blank, texts)
    _refuse(model, size, special, pieces, checkpoint.unk_token)
    learned = LEARN[model](blank, texts, Job(size, minimum_frequency, special, pieces, checkpoint.unk_token))
    return _assemble(checkpoint, state, learned)


@dataclass(frozen=True)
class Job:
    size: int
    minimum_frequency: int
    special: Sequence[str]
    pieces: Pieces
    unknown: str | None


def _bpe(blank: Tokenizer, texts: Texts, job: Job) -> dict[str, Any]:
    trainer = trainers.BpeTrainer(
        vocab_size=job.size,
        min_frequency=job.minimum_frequency,
        special_tokens=list(job.special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    return _run(blank, models.BPE(), trainer, texts)


def _wordpiece(blank: Tokenizer, texts: Texts, job: Job) -> dict[str, Any]:
    """Learned as BPE with a prefix, as the library's own WordPiece trainer does; only the tokens are kept."""
    trainer = trainers.BpeTrainer(
        vocab_size=job.size,
        min_frequency=job.minimum_frequency,
        special_tokens=[*job.special, *(PREFIX + piece for piece in sorted(job.pieces.later))],
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    learned = _run(blank, models.BPE(continuing_subword_prefix=PREFIX), trainer, texts)
    empty = models.WordPiece({}, unk_token=job.unknown or "")
    return {**json.loads(empty.__getstate__()), "vocab": learned["vocab"]}


def _unigram(blank: Tokenizer, texts: Texts, job: Job) -> dict[str, Any]:
    trainer = trainers.UnigramTrainer(
        vocab_size=job.size, special_tokens=list(job.special), unk_token=job.unknown, show_progress=False
    )
    learned = _run(blank, models.Unigram(), trainer, texts)
    return {
        **learned,
        "vocab": _settled(learned["vocab"], len(job.special), len(job.pieces.first | job.pieces.later)),
    }


def _settled(vocabulary: list[Any], special: int, characters: int) -> list[Any]:
    """Undo what differs from process to process: sums in another order, and rare characters, which the
    trainer spaces by STEP above the lowest score in the order of a hash table: all get the lowest."""
    marks, pieces = vocabulary[:special], vocabulary[special:]
    lowest = min(score for _, score in pieces)
    bound = lowest + STEP * characters
    flat = [(lowest if len(piece) == 1 and score < bound else score, piece) for piece, score in pieces]
    ordered = sorted((-round(score, DECIMALS), piece) for score, piece in flat)
    return [*marks, *([piece, -score] for score, piece in ordered)]


LEARN: Mapping[str, Callable[[Tokenizer, Texts, Job], dict[str, Any]]] = {
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}


def _run(blank: Tokenizer, model: Any, trainer: Any, texts: Texts) -> dict[str, Any]:
    blank.model = model
    blank.train_from_iterator(texts(), trainer=trainer)
    learned: dict[str, Any] = json.loads(blank.to_str())["model"]
    return learned


def _refit(state: dict[str, Any], model: Model) -> None:
    """Another way to cut words and to join them again, where the checkpoint's is of another family."""
    scheme, cutter, joiner = {
        "bpe": ("bytes", pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
        "wordpiece": ("prefix", pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(prefix=PREFIX)),
        "unigram": ("space", pre_tokenizers.Metaspace(), decoders.Metaspace()),
    }[model]
    same = state["model"]["type"].lower() == model and vocabulary.scheme(state) == scheme
    if not same:
        state["normalizer"] = _normalizer(state["normalizer"])
        state["pre_tokenizer"] = json.loads(cutter.__getstate__())
        state["decoder"] = json.loads(joiner.__getstate__())


def _normalizer(step: dict[str, Any] | None) -> dict[str, Any] | None:
    if step is None or step["type"] in JOINING:
        return None
    if step["type"] == "Sequence":
        kept = [inner for inner in map(_normalizer, step["normalizers"]) if inner]
        return {**step, "normalizers": kept} if kept else None
    return step


def _blank(state: Mapping[str, Any]) -> Tokenizer:
    """The first steps of `state`, without a model and without special tokens."""
    model = json.loads(models.BPE().__getstate__())
    steps = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None, "model": model}
    return Tokenizer.from_str(json.dumps({**state, **steps}))


def _pieces(blank: Tokenizer, texts: Texts) -> Pieces:
    """Raises DataError where there is no word at all."""
    first: set[str] = set()
    later: set[str] = set()
    said = False
    for batch in texts():
        text = "\n".join(batch)
        said = said or bool(text.strip())
        normal = blank.normalizer.normalize_str(text) if blank.normalizer else text
        words = {word for word, _ in blank.pre_tokenizer.pre_tokenize_str(normal)}
        first.update(word[0] for word in words if word)
        later.update("".join(word[1:] for word in words))
    if not said or not first:
        raise DataError("the train split holds no word to train a tokenizer on")
    return Pieces(frozenset(first), frozenset(later))


def _refuse(model: Model, size: int, special: Sequence[str], pieces: Pieces, unknown: str | None) -> None:
    if model != "bpe" and unknown is None:
        raise ParamsError(
            f"vocabulary.tokenizer = {model} needs a token for unknown characters, which this checkpoint "
            "does not have: take bpe"
        )
    characters = {
        "bpe": len(pre_tokenizers.ByteLevel.alphabet()),
        "wordpiece": len(pieces.first) + len(pieces.later),
        "unigram": len(pieces.first | pieces.later),
    }[model]
    if size < (least := characters + len(special)):
        raise ParamsError(
            f"vocabulary.size = {size:,} cannot hold the {characters:,} single characters and "
            f"{len(special):,} special tokens that {model} begins with: raise it to {least:,} at least"
        )


def _assemble(
    checkpoint: PreTrainedTokenizerBase, state: dict[str, Any], model: dict[str, Any]
) -> PreTrainedTokenizerBase:
    ids = model["vocab"]
    if isinstance(ids, list):  # Unigram's: pairs of a piece and its score
        ids = {piece: id for id, (piece, _) in enumerate(ids)}
    added = [{**token, "id": ids[token["content"]]} for token in state["added_tokens"] if token["special"]]
    added.sort(key=lambda token: token["id"])
    frame = _renumbered(state["post_processor"], ids)
    state = {**state, "model": model, "added_tokens": added, "post_processor": frame}
    carried = {name: getattr(checkpoint, name) for name in CARRIED}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        extra_special_tokens=list(checkpoint.extra_special_tokens),
        **checkpoint.special_tokens_map,
        **carried,
    )


def _renumbered(step: dict[str, Any] | None, ids: Mapping[str, int]) -> dict[str, Any] | None:
    """The frame around texts, with the new ids of its special tokens."""
    if step is None:
        return None
    new = dict(step)
    if "processors" in step:
        new["processors"] = [_renumbered(inner, ids) for inner in step["processors"]]
    for end in {"cls", "sep"} & step.keys():
        new[end] = [step[end][0], ids[step[end][0]]]
    if "special_tokens" in step:
        new["special_tokens"] = {
            name: {**entry, "ids": [ids[token] for token in entry["tokens"]]}
            for name, entry in step["special_tokens"].items()
        }
    return new
