"""Evaluations kept elsewhere: which of our texts they hold, and which of theirs we hold.

Runs of 13 words, as in GPT-3 (Brown et al. 2020, appendix C); texts with fewer words are compared whole,
exactly and by similarity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.text import signatures
from tasks.text.dedup import Integers
from tasks.text.signatures import Hashes, Signed

GRAM = 13  # words


class Evaluation(NamedTuple):
    """An evaluation kept elsewhere: what params.yaml calls it, and its texts."""

    reference: str
    texts: pl.Series


class Finding(NamedTuple):
    """How much of an evaluation stands in our data, exactly, nearly or by a run of 13 words."""

    reference: str
    rows: int
    found: int


class Overlaps(TypedDict):
    grams: Hashes
    parts: Hashes
    overlaps: NDArray[np.bool_]


@dataclass(frozen=True)
class Elsewhere:
    """All evaluations kept elsewhere, signed, one behind the other."""

    references: tuple[str, ...]
    of: Integers  # (texts,) which evaluation each is of
    signed: Signed
    grams: Hashes
    text: Integers  # (grams,) the text each is of
    file: Path  # their different grams and keys, for whoever works on a shard


def collect(evaluations: Sequence[Evaluation], into: Path, *, shingle: int, rows: int) -> Elsewhere:
    """Sign the evaluations, below the directory `into`."""
    into.mkdir()
    texts = pl.concat([evaluation.texts for evaluation in evaluations])
    of = np.repeat(np.arange(len(evaluations)), [len(evaluation.texts) for evaluation in evaluations])
    hashes, text = grams(texts)
    signed = signatures.sign(texts, into / "signed", shingle=shingle, rows=rows)
    np.savez(into / "theirs.npz", grams=np.unique(hashes), keys=np.unique(signed.keys))
    return Elsewhere(
        references=tuple(evaluation.reference for evaluation in evaluations),
        of=of,
        signed=signed,
        grams=hashes,
        text=text,
        file=into / "theirs.npz",
    )


def found(elsewhere: Elsewhere, keys: Hashes, grams: Hashes) -> tuple[Finding, ...]:
    """What our data hold of them: `keys` of texts that are ours too, or nearly, `grams` that ours have."""
    hit = np.isin(elsewhere.signed.keys, keys)
    hit[elsewhere.text[np.isin(elsewhere.grams, grams)]] = True
    rows = np.bincount(elsewhere.of, minlength=len(elsewhere.references))
    hits = np.bincount(elsewhere.of[hit], minlength=len(elsewhere.references))
    return tuple(
        Finding(reference, int(rows[number]), int(hits[number]))
        for number, reference in enumerate(elsewhere.references)
    )


def grams(texts: pl.Series) -> tuple[Hashes, Integers]:
    """Hashes of every run of 13 words, and the text each is of; texts with fewer words have none."""
    keys = signatures.keys(texts)
    long = keys.str.count_matches(" ") >= GRAM - 1
    hashes, offsets = signatures.shingles(keys.filter(long), GRAM)
    return hashes, np.repeat(np.flatnonzero(long.to_numpy()), np.diff(offsets))


def overlaps(texts: pl.Series, parts: Sequence[pl.Series], file: Path | None) -> Overlaps:
    """Which `texts` share a run of 13 words with the evaluations in `file`, and which runs; or are, in one of
    the `parts` that they were joined from, one of their texts."""
    hit = np.zeros(len(texts), dtype=bool)
    if file is None:
        return Overlaps(grams=np.empty(0, dtype=np.uint64), parts=np.empty(0, dtype=np.uint64), overlaps=hit)
    theirs = np.load(file)
    ours, text = grams(texts)
    shared = np.isin(ours, theirs["grams"])
    hit[text[shared]] = True
    keys = [signatures.hashed(signatures.keys(part)) for part in parts]
    for part in keys:
        hit |= np.isin(part, theirs["keys"])
    same = np.unique(np.concatenate([np.empty(0, np.uint64), *(k[np.isin(k, theirs["keys"])] for k in keys)]))
    return Overlaps(grams=np.unique(ours[shared]), parts=same, overlaps=hit)
