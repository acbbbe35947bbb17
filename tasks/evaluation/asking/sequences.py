"""The encoded rows of a language model: which tokens it must foresee, and from where."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from tasks.evaluation.asking.rows import Rows, demand_rows

HIDDEN = 0.15  # share of a row's tokens that a masked language model must guess (Devlin et al. 2019)
Ragged = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Wording:
    """How token ids are read: `decode` turns rows of them into texts; `special` are those that are no text.

    mask: what stands in place of a token that must be guessed; None where each token follows from those
    before it.
    """

    decode: Callable[[Ragged], list[str]]
    special: frozenset[int]
    mask: int | None


def read(path: Path, kind: str, wording: Wording) -> tuple[Rows, list[str]]:
    """The rows of a split and their texts. `tokens` has input_ids, `places` (whose logits foresee) and
    `targets` (the token that each should), all ragged; `actual` is (rows, 2) int64, tokens and their bytes.

    Packed rows have their number as id. Raises DataError for a split without rows.
    """
    table = demand_rows(parquet.read_table(path), path)
    ids, starts = STARTS[kind](table)
    names = table["id"].to_pylist() if "id" in table.column_names else [f"row {n}" for n in range(len(table))]
    tokens = _foreseen(ids, starts) if wording.mask is None else _guessed(ids, starts, wording, wording.mask)
    sizes = [len(text.encode()) for text in wording.decode(tokens["targets"])]
    actual = np.array([list(map(len, tokens["targets"])), sizes], dtype=np.int64).T
    return Rows(tuple(names), tokens, np.ascontiguousarray(actual)), wording.decode(ids)


def _foreseen(ids: Ragged, starts: Sequence[int]) -> dict[str, Ragged]:
    """Every token from `starts` on, each from the one before it; the first of a row from none."""
    firsts = [max(1, start) for start in starts]
    return {
        "input_ids": ids,
        "places": [range(first - 1, len(row) - 1) for row, first in zip(ids, firsts, strict=True)],
        "targets": [row[first:] for row, first in zip(ids, firsts, strict=True)],
    }


def _guessed(ids: Ragged, starts: Sequence[int], wording: Wording, mask: int) -> dict[str, Ragged]:
    """A share of the tokens that are text, at least one, hidden; the same of a row whatever comes before."""
    hidden: list[list[int]] = []
    places: list[list[int]] = []
    for row, start in zip(ids, starts, strict=True):
        able = [place for place in range(start, len(row)) if row[place] not in wording.special]
        count = min(len(able), max(1, round(HIDDEN * len(able))))
        chance = np.random.default_rng(list(row))
        places.append(sorted(able[n] for n in chance.choice(len(able), count, replace=False)) if able else [])
        hidden.append([mask if place in set(places[-1]) else token for place, token in enumerate(row)])
    targets = [[row[place] for place in chosen] for row, chosen in zip(ids, places, strict=True)]
    return {"input_ids": hidden, "places": places, "targets": targets}


def _whole(table: pa.Table) -> tuple[Ragged, list[int]]:
    return table["input_ids"].to_pylist(), [0] * len(table)


def _behind_prompt(table: pa.Table) -> tuple[Ragged, list[int]]:
    prompts, targets = table["input_ids"].to_pylist(), table["target_ids"].to_pylist()
    both = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
    return both, [len(prompt) for prompt in prompts]


def _last_message(table: pa.Table) -> tuple[Ragged, list[int]]:
    return table["input_ids"].to_pylist(), table["prompt_length"].to_pylist()


STARTS: Mapping[str, Callable[[pa.Table], tuple[Ragged, list[int]]]] = {
    "text": _whole,
    "completion": _behind_prompt,
    "chat": _last_message,
}
