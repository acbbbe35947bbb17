"""The tokenizer that stands beside a checkpoint, for the proofs that need words and not only ids."""

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


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _encoder(directory: Path, **more: Any) -> Encode:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, **more
        )
    except REFUSING as error:
        raise ProofError(f"the tokenizer in {directory} cannot be read: {error}") from None
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
