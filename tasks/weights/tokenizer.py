"""The tokenizer beside a checkpoint: for proofs that need words, and to go with what was converted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tasks.errors import ProofError
from tasks.weights.formats.gguf_file import MAGIC
from tasks.weights.loading import REFUSING, quiet

Encode = Callable[[str], list[int]]  # a text -> its token ids, with the special tokens that belong around it
# Any one of these makes a tokenizer; without one, transformers builds an empty vocabulary without a word.
CARRIERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
CARRIED = (
    *CARRIERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "chat_template.jinja",
)  # fmt: skip
ABSENT = "no tokenizer beside the checkpoint"


def beside(path: Path) -> Encode | None:
    """The tokenizer of a directory, of the directory that a file lies in, or inside a GGUF file; None: none.

    Raises ProofError where there is one that transformers does not read.
    """
    with quiet():
        if path.is_file() and _is_gguf(path):
            return _encoder(path.parent, gguf_file=path.name)
        directory = path.parent if path.is_file() else path
        found = any(found for pattern in CARRIERS for found in directory.glob(pattern))
        return _encoder(directory) if found else None


def carry(path: Path, target: Path) -> str | None:
    """Put the tokenizer of the checkpoint `path` (a file) into the directory `target`, where that has none:
    the files beside it as they are, or what transformers makes of a GGUF file's own. Returns what was done;
    None where there is none.

    Raises ProofError where there is one in a GGUF file that transformers does not read.
    """
    if _is_gguf(path):
        with quiet():
            tokenizer = _tokenizer(path.parent, gguf_file=path.name)
            tokenizer.save_pretrained(target)
        return f"{len(tokenizer):,} tokens, as the GGUF file has them"
    found = sorted({one for pattern in CARRIED for one in path.parent.glob(pattern)})
    if not any(one.match(pattern) for one in found for pattern in CARRIERS):
        return None
    for one in found:
        shutil.copyfile(one, target / one.name)
    return f"copied: {', '.join(one.name for one in found)}"


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _tokenizer(directory: Path, **more: Any) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, **more
        )
    except REFUSING as error:
        raise ProofError(f"the tokenizer in {directory} cannot be read: {error}") from None


def _encoder(directory: Path, **more: Any) -> Encode:
    tokenizer = _tokenizer(directory, **more)
    return lambda text: list(map(int, tokenizer.encode(text, truncation=False, verbose=False)))


def ids(encode: Encode, text: str, *, vocabulary: int) -> list[int]:
    """Token ids of `text`. Raises ProofError where one lies beyond the embedding table."""
    found = encode(text)
    if found and max(found) >= vocabulary:
        raise ProofError(
            f"the tokenizer gives id {max(found):,}, the embedding table has {vocabulary:,} rows: it belongs "
            "to another checkpoint"
        )
    return found
