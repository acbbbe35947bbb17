"""A checkpoint's tokenizer as a directory of its own, and where each of its tokens comes from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tasks.errors import CheckpointError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Any one of these makes a tokenizer; without one, transformers builds an empty vocabulary without a word.
CARRIERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
TRACES = ("name_or_path", "is_local", "local_files_only")  # of where and how it was loaded
LENGTHS = ("max_position_embeddings", "n_positions")


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
    limits = [declared[name] for name in LENGTHS if isinstance(declared.get(name), int)]
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


def alignment(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Sequence[int | str]]:
    """Columns id, token, origin, source_id, by id: the row of the new embedding table, and of the old."""
    tokens = sorted((id, token) for token, id in tokenizer.get_vocab().items())
    ids = [id for id, _ in tokens]
    return {
        "id": ids,
        "token": [token for _, token in tokens],
        "origin": ["kept"] * len(ids),
        "source_id": ids,
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
