"""The tokenizer as a directory of its own: the checkpoint's or a new one, and where its tokens come from."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute
from tokenizers import Tokenizer, decoders
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tasks import architectures
from tasks.errors import CheckpointError, ParamsError
from tasks.text import kinds

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Any one of these makes a tokenizer; without one, transformers builds an empty vocabulary without a word.
CARRIERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
TRACES = ("name_or_path", "is_local", "local_files_only")  # of where and how it was loaded
LENGTHS = ("max_position_embeddings", "n_positions")
BEHIND_PAD = ("roberta", "xlm-roberta", "camembert")  # count positions from behind the padding token's id
ALIGNMENT = pa.schema(
    {
        "id": pa.int32(),
        "token": pa.string(),
        "origin": pa.string(),
        "source_id": pa.int32(),
        "pieces": pa.list_(pa.int32()),
    }
)
SPECIAL = ("<|", "|>")  # what stands between these is a mark, not a word


def load(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a transformers directory: from its files alone, running none of its code.

    Raises CheckpointError where there is none or it cannot be read.
    """
    if not any(found for pattern in CARRIERS for found in directory.glob(pattern)):
        raise CheckpointError(
            f"{directory} holds no tokenizer (none of {', '.join(CARRIERS)}): add the checkpoint's own files"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"the tokenizer in {directory} cannot be read: {error}") from error
    return tokenizer


def adopt(tokenizer: PreTrainedTokenizerBase, config: Path) -> None:
    """State the checkpoint's maximum length in the tokenizer, and nothing about where it was loaded from.

    Raises CheckpointError where a token lies beyond the embedding table that `config` (config.json) declares.
    """
    tokenizer.name_or_path = ""
    for trace in TRACES:
        tokenizer.init_kwargs.pop(trace, None)
    if not config.exists():
        return
    declared = json.loads(config.read_text(encoding="utf-8"))
    body = architectures.body_type(declared.get("model_type") or "")
    behind = (declared.get("pad_token_id") or 0) + 1 if body in BEHIND_PAD else 0
    limits = [declared[name] - behind for name in LENGTHS if isinstance(declared.get(name), int)]
    tokenizer.model_max_length = min([tokenizer.model_max_length, *limits])
    if isinstance(declared.get("vocab_size"), int):
        _refuse_beyond(tokenizer, declared["vocab_size"])


def _refuse_beyond(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    beyond = sorted((id, token) for token, id in tokenizer.get_vocab().items() if id >= rows)
    if beyond:
        id, token = beyond[0]
        raise CheckpointError(
            f"{len(beyond)} tokens lie beyond the {rows} rows of the embedding table, the first "
            f"{token!r} with id {id}: tokenizer and weights are not of the same checkpoint"
        )


def texts(table: pa.Table, kind: str) -> list[str]:
    """All that rows of `kind` say, to train a tokenizer on: both texts of a pair, every message of a chat."""
    columns = kinds.KINDS[kind].columns
    if "messages" in columns:
        said: list[str] = compute.struct_field(
            table["messages"].combine_chunks().flatten(), "content"
        ).to_pylist()
        return said
    own = [
        name for name, type in columns.items() if type == pa.string() and name != kinds.KINDS[kind].classes
    ]
    return [text for name in ("text", *own) for text in table[name].to_pylist()]


def extend(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add `tokens` after all others, in their order; those that look like <|...|> as special tokens.

    Raises ParamsError for one that the tokenizer already has.
    """
    for token in tokens:
        known = tokenizer.get_vocab()
        if token in known:
            raise ParamsError(
                f"vocabulary.add_tokens names {token!r}, which is already token {known[token]}: take it out"
            )
        if token.startswith(SPECIAL[0]) and token.endswith(SPECIAL[1]):
            tokenizer.add_special_tokens(
                {"extra_special_tokens": [token]}, replace_extra_special_tokens=False
            )
        else:
            tokenizer.add_tokens([token])


def alignment(
    tokenizer: PreTrainedTokenizerBase, source: PreTrainedTokenizerBase, *, kept: bool, added: Sequence[str]
) -> pa.Table:
    """Where the embedding of each token comes from, by id; the columns are those of ALIGNMENT.

    `kept` says that `tokenizer` is `source` but for the tokens `added`. Otherwise tokens are matched by
    special role, then by what they spell ("##ing" of WordPiece is "ing" of byte-level BPE, "Ġthe" is "▁the"),
    never by id. source_id is null for a token that comes from nowhere; `pieces` are the ids that `source`
    cuts its text into, without special and unknown ones, and empty for all others.
    """
    tokens = sorted((id, token) for token, id in tokenizer.get_vocab().items())
    find = _same(added) if kept else _matching(tokenizer, source)
    found = [find(id, token) for id, token in tokens]
    origins = [_origin(token, match, kept, added) for (_, token), match in zip(tokens, found, strict=True)]
    new = [token for (_, token), match in zip(tokens, found, strict=True) if match is None]
    made = _pieces(new, str if kept else _texts(tokenizer), source)
    pieces = [made.get(token, []) for _, token in tokens]
    columns = [[id for id, _ in tokens], [token for _, token in tokens], origins, found, pieces]
    return pa.Table.from_arrays(
        [pa.array(column, type) for column, type in zip(columns, ALIGNMENT.types, strict=True)],
        schema=ALIGNMENT,
    )


def _same(added: Sequence[str]) -> Callable[[int, str], int | None]:
    return lambda id, token: None if token in added else id


def _matching(
    tokenizer: PreTrainedTokenizerBase, source: PreTrainedTokenizerBase
) -> Callable[[int, str], int | None]:
    theirs, roles = special(source), {id: role for role, id in reversed(special(tokenizer).items())}
    spell, spell_source = _spelling(tokenizer), _spelling(source)
    known = {spell_source(token): id for token, id in sorted(source.get_vocab().items())}

    def find(id: int, token: str) -> int | None:
        return theirs[roles[id]] if roles.get(id) in theirs else known.get(spell(token))

    return find


def _origin(token: str, match: int | None, kept: bool, added: Sequence[str]) -> str:
    if match is not None:
        return "kept" if kept else "matched"
    return "added" if token in added else "trained"


def _pieces(
    tokens: Sequence[str], text: Callable[[str], str | None], source: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    texts = [text(token) or "" for token in tokens]
    if not texts:  # an empty list is no batch to a tokenizer
        return {}
    cut = source(texts, add_special_tokens=False, padding=False, truncation=False, verbose=False)["input_ids"]
    known = [[id for id in row if id != source.unk_token_id] for row in cut]
    return dict(zip(tokens, known, strict=True))


def _spelling(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """What a token spells, so that models can be compared; one that is no whole characters spells itself."""
    text = _texts(tokenizer)

    def spelled(token: str) -> str:
        found = text(token)
        return token if found is None else found

    return spelled


def _texts(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str | None]:
    """The text of a token, with a space before that which begins a word; None for no whole characters.

    Special tokens are their own text.
    """
    state = json.loads(backend(tokenizer).to_str())
    itself = {token["content"] for token in state["added_tokens"]}
    spell = _SPELLINGS[scheme(state)]

    def text(token: str) -> str | None:
        found = token if token in itself else spell(token)
        return None if "\ufffd" in found else found

    return text


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Raises CheckpointError where the tokenizer is written in Python: it tells nothing of how it works."""
    if not tokenizer.is_fast:
        raise CheckpointError(
            "this checkpoint has no tokenizer.json, so that its tokens cannot be compared with new ones: set "
            "vocabulary.tokenizer to checkpoint"
        )
    found: Tokenizer = tokenizer.backend_tokenizer
    return found


def scheme(state: Mapping[str, Any]) -> str:
    """How a tokenizer (its tokenizer.json) writes the beginnings of words."""
    if state["model"]["type"] in ("WordPiece", "WordLevel"):
        return "prefix"
    return "bytes" if '"ByteLevel"' in json.dumps(state["pre_tokenizer"]) else "space"


def _bytes(token: str) -> str:
    text: str = decoders.ByteLevel().decode([token])
    return text


_SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "prefix": lambda token: token[2:] if token.startswith("##") else " " + token,
    "bytes": _bytes,
    "space": lambda token: token.replace("\u2581", " "),
}


def size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding table must have: ids need not be dense."""
    return int(max(tokenizer.get_vocab().values())) + 1


def special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Role -> token id, for the roles that this tokenizer fills.

    Raises CheckpointError where a role's token is not in the vocabulary.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    rows = size(tokenizer)
    for role, id in ids.items():
        if id is not None and not 0 <= id < rows:
            raise CheckpointError(f"the {role} token has id {id}, outside the vocabulary of {rows} ids")
    return {role: int(id) for role, id in ids.items() if id is not None}
