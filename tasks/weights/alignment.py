"""Which row of the checkpoint's embedding table each row of ours comes from: told by token, never by id."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as parquet
from transformers import PretrainedConfig

from tasks.errors import ArtifactError, CheckpointError
from tasks.weights.arithmetic import Embed
from tasks.weights.ops import Op
from tasks.weights.rules import KEEP, listed

State = Literal["kept", "moved", "new"]
COLUMNS = ("id", "token", "origin", "source_id", "pieces")
OWN = {"kept", "added"}  # origins of tokens where the vocabulary is the checkpoint's, perhaps with some added
SUFFIX = "_token_id"  # of a config's field that names a special token


@dataclass(frozen=True)
class Word:
    """A token. `source`: its row in the checkpoint; where that is None, its row is the mean of `pieces`'."""

    id: int
    token: str
    source: int | None
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Alignment:
    """All tokens of the vocabulary by id, beside the checkpoint's table: `before` rows of `width` numbers.

    extends: the vocabulary is the checkpoint's, so that rows without a token stay where they are.
    """

    words: tuple[Word, ...]
    before: int
    extends: bool
    width: int = 0

    @cached_property
    def same(self) -> bool:
        """Whether the table stays as it is, to the byte."""
        return all(word.source == word.id for word in self.words)

    @cached_property
    def after(self) -> int:
        """Rows that our table has."""
        size = max((word.id for word in self.words), default=-1) + 1
        return max(size, self.before) if self.extends or self.same else size

    @cached_property
    def new(self) -> tuple[Word, ...]:
        return tuple(word for word in self.words if word.source is None)

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(Row of the checkpoint, row of ours) of every token that both have."""
        return tuple((word.source, word.id) for word in self.words if word.source is not None)

    @cached_property
    def carried(self) -> dict[int, int]:
        """Row of ours -> row of the checkpoint that it is, bit for bit."""
        named = {word.id for word in self.words}
        unnamed = set(range(self.before)) - named if self.extends or self.same else set()
        return {row: row for row in unnamed} | {ours: theirs for theirs, ours in self.pairs}

    @cached_property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """For each of our rows those of the checkpoint whose mean it is; none: all of them."""
        pieces = {word.id: word.pieces for word in self.new}
        return tuple(
            (self.carried[row],) if row in self.carried else pieces.get(row, ()) for row in range(self.after)
        )

    @property
    def op(self) -> Op:
        """What happens to the table."""
        return KEEP if self.same else Embed(self.rows)

    @property
    def states(self) -> list[State]:
        """What each of our rows is."""
        found = (self.carried.get(row) for row in range(self.after))
        return ["new" if old is None else "kept" if old == row else "moved" for row, old in enumerate(found)]

    @property
    def counts(self) -> dict[str, int]:
        """Rows of both tables, and of ours by where they come from."""
        states = Counter(self.states)
        pieces = sum(bool(word.pieces) for word in self.new)
        found = {"kept": states["kept"], "moved": states["moved"], "from pieces": pieces}
        return {"before": self.before, "after": self.after, **found, "from all": states["new"] - pieces}

    @property
    def reason(self) -> str:
        """What happens to the table, in words."""
        counts = self.counts
        told = {
            "moved to their tokens' new ids": counts["moved"],
            "made as the mean of their tokens' pieces": counts["from pieces"],
            "made as the mean of all": counts["from all"],
        }
        return ", ".join(f"{_number(count)} {text}" for text, count in told.items() if count)


def _number(rows: int) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def read(path: Path, *, before: int, width: int) -> Alignment:
    """The alignment that the vocabulary stage wrote, beside a table of `before` rows of `width` numbers.

    Raises ArtifactError where an older version wrote it.
    """
    names = parquet.read_schema(path).names
    if lacking := [name for name in COLUMNS if name not in names]:
        raise ArtifactError(f"{path} has no column {', '.join(lacking)}: run `dvc repro -f vocabulary`")
    rows = parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    words = (Word(row["id"], row["token"], row["source_id"], tuple(row["pieces"])) for row in rows)
    extends = {row["origin"] for row in rows} <= OWN
    return Alignment(tuple(sorted(words, key=lambda word: word.id)), before, extends, width)


def fields(alignment: Alignment, config: PretrainedConfig, special: Mapping[str, int]) -> dict[str, Any]:
    """What config.json must say of the vocabulary: its size and the ids of special tokens that it states.

    A token id whose role the tokenizer does not fill follows its token, or is None where that is gone.
    """
    stays, moved = alignment.extends or alignment.same, dict(alignment.pairs)
    found: dict[str, Any] = {"vocab_size": alignment.after}
    for name, id in config.to_dict().items():
        role = name.removesuffix(SUFFIX)
        if name.endswith(SUFFIX) and isinstance(id, int):
            found[name] = special.get(role, id if stays else moved.get(id))
    if config.pad_token_id is None and "pad" in special:
        found["pad_token_id"] = special["pad"]
    return found


def padding(config: PretrainedConfig, special: Mapping[str, int]) -> int:
    """The token id of padding for a head that reads the last token which is none: that, or the end of text.

    Raises CheckpointError where there is neither.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    found = [config.pad_token_id, special.get("pad"), special.get("eos"), *ends]
    if not (known := [id for id in found if id is not None]):
        raise CheckpointError(
            "the head reads the last token that is not padding, and neither config.json nor the tokenizer "
            "names a token for padding or for the end of text: write pad_token_id into config.json"
        )
    return int(known[0])


def check(
    alignment: Alignment, config: PretrainedConfig, special: Mapping[str, int], *, longest: int, behind: bool
) -> None:
    """Raises CheckpointError with everything in which tokenizer, config and embedding table disagree.

    config: the checkpoint's, as it came. longest: tokens that the tokenizer allows.
    behind: the model counts positions from behind the padding token's id, as RoBERTa does.
    """
    faults = [*_row_faults(alignment, config.vocab_size), *_special_faults(alignment, config, special)]
    pad = config.pad_token_id or 0
    positions = getattr(config, "max_position_embeddings", longest) - (pad + 1 if behind else 0)
    if longest > positions:
        faults.append(
            f"the tokenizer lets texts have {longest:,} tokens, the model has {positions:,} positions"
        )
    if behind and special.get("pad", pad) != pad:
        faults.append(
            f"the padding token has id {special['pad']}, in the checkpoint {pad}: this model counts "
            "positions from it, so it cannot move"
        )
    if faults:
        raise CheckpointError(
            listed("tokenizer, config.json and embedding table do not belong together", faults)
            + "\ntake the checkpoint's own tokenizer (vocabulary.tokenizer: checkpoint), or correct its files"
        )


def _row_faults(alignment: Alignment, declared: int) -> Iterator[str]:
    before = alignment.before
    if declared != before:
        yield f"config.json declares {declared:,} rows of embeddings, the table has {before:,}"
    taken = [row for word in alignment.words for row in (word.source, *word.pieces) if row is not None]
    if (highest := max(taken, default=-1)) >= before:
        yield f"the vocabulary takes row {highest:,} of the embedding table, which has {before:,} rows"
    if not alignment.pairs:
        yield f"none of the {len(alignment.words):,} tokens has a row in the embedding table of {before:,}"


def _special_faults(
    alignment: Alignment, config: PretrainedConfig, special: Mapping[str, int]
) -> Iterator[str]:
    ids = {f"{role}{SUFFIX}": id for role, id in special.items()}
    for name, id in sorted((ids | fields(alignment, config, special)).items()):
        if name.endswith(SUFFIX) and isinstance(id, int) and not 0 <= id < alignment.after:
            yield f"{name} is {id:,}, the embedding table has {alignment.after:,} rows"
