"""Near-duplicates found by us and by datasketch, in the form it is best at and in that of its tutorial.

All get the same texts, normalisation, 128 permutations and threshold, and one thread. All but the tutorial
drop identical texts first and measure every candidate pair exactly; datasketch has 16 bands of 8 rows.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import xxhash
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from benchmarks import brute_force, corpus
from benchmarks.record import medians
from tasks.text import dedup, signatures

Integers = NDArray[np.int64]

THRESHOLD = 0.8
SHINGLE = 3
BANDS, ROWS = 16, 8  # of datasketch; ours are what signatures.rows_per_band says
TUTORIAL = 0.1  # share of texts that the tutorial form gets: its time grows with their number, and is scaled


class Found(NamedTuple):
    """`text`: (rows,) which different text each row has; pairs of these, one end below the other."""

    text: Integers
    left: Integers
    right: Integers


def contest(rows: int, repetitions: int) -> list[dict[str, Any]]:
    """One line for each contestant, ours first: seconds (median), rows a second, how many times as long as
    ours, recall over all pairs and over those of different keys, precision."""
    texts = pl.Series([text.text for text in corpus.real(rows)])
    few = texts.head(int(rows * TUTORIAL))
    contestants: Mapping[str, Callable[[], Found]] = {
        "regraft": partial(ours, texts),
        "datasketch": partial(datasketch, texts),
        "datasketch, our shingles": partial(datasketch_on_our_shingles, texts),
        "datasketch, tutorial": partial(datasketch_tutorial, few),
    }
    seconds, found = medians(contestants, repetitions)
    seconds["datasketch, tutorial"] *= len(texts) / len(few)
    truth = {len(those): _truth(those) for those in (few, texts)}
    return [
        {
            "contestant": name,
            "seconds": seconds[name],
            "rows_per_second": rows / seconds[name],
            "times_ours": seconds[name] / seconds["regraft"],
            **_judged(found[name], truth[len(found[name].text)]),
        }
        for name in contestants
    ]


def ours(texts: pl.Series) -> Found:
    """As the stage does it: normalise, shingle, sign, band, join, measure."""
    with tempfile.TemporaryDirectory() as folder:
        signed = signatures.sign(
            texts, Path(folder), shingle=SHINGLE, rows=signatures.rows_per_band(THRESHOLD)
        )
        _, first, text = np.unique(signed.keys, return_index=True, return_inverse=True)
        near = dedup.measured_pairs(signed, first, threshold=THRESHOLD)
    near = near.chosen(near.similarity >= THRESHOLD)
    return Found(text, near.left, near.right)


def datasketch(texts: pl.Series) -> Found:
    """Its fast way: shingles as bytes, xxHash, copies of one MinHash, each updated with a whole batch."""
    text, keys = _different(signatures.keys(texts))
    shingles = [_bytes(key) for key in keys]
    return Found(text, *_indexed(shingles, xxhash.xxh32_intdigest))


def datasketch_on_our_shingles(texts: pl.Series) -> Found:
    """With our shingles, already hashed, so that nothing of its own slows it but signatures and index."""
    text, keys = _different(signatures.keys(texts))
    hashes, offsets = signatures.shingles(pl.Series(keys), SHINGLE)
    low = (hashes & np.uint64(2**32 - 1)).tolist()
    shingles = [set(low[start:end]) for start, end in pairwise(offsets.tolist())]
    return Found(text, *_indexed(shingles, int))


def datasketch_tutorial(texts: pl.Series) -> Found:
    """As its documentation begins: a MinHash a text, an update a shingle, default bands, nothing measured."""
    index, found = MinHashLSH(threshold=THRESHOLD, num_perm=signatures.PERMUTATIONS), []
    for place, key in enumerate(signatures.keys(texts).to_list()):
        sketch = MinHash(num_perm=signatures.PERMUTATIONS)
        for shingle in _bytes(key):
            sketch.update(shingle)
        found += [(other, place) for other in index.query(sketch)]
        index.insert(place, sketch)
    return Found(np.arange(len(texts)), *_columns(found))


def _indexed(shingles: Sequence[set[Any]], hashing: Callable[[Any], int]) -> tuple[Integers, Integers]:
    """Pairs at or above the threshold: each text asks before it goes in, so that no pair is met twice."""
    index = MinHashLSH(num_perm=signatures.PERMUTATIONS, params=(BANDS, ROWS))
    sketches = MinHash.generator(shingles, num_perm=signatures.PERMUTATIONS, hashfunc=hashing)
    found = []
    for place, sketch in enumerate(sketches):
        own = shingles[place]
        for other in index.query(sketch):
            shared = len(own & shingles[other])
            if shared / (len(own) + len(shingles[other]) - shared) >= THRESHOLD:
                found.append((other, place))
        index.insert(place, sketch, check_duplication=False)
    return _columns(found)


def _bytes(key: str) -> set[bytes]:
    words = key.encode().split(b" ")
    if len(words) <= SHINGLE:
        return {b" ".join(words)}
    return set(map(b" ".join, zip(words, words[1:], words[2:], strict=False)))


def _different(keys: pl.Series) -> tuple[Integers, list[str]]:
    """Which different key each row has, and those keys in the order of their first rows."""
    numbers: dict[str, int] = {}
    text = [numbers.setdefault(key, len(numbers)) for key in keys.to_list()]
    return np.array(text), list(numbers)


def _columns(found: Iterable[tuple[int, int]]) -> tuple[Integers, Integers]:
    table = np.array(list(found), dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


class Truth(NamedTuple):
    left: Integers
    right: Integers
    same: NDArray[np.bool_]  # whether both have one key


def _truth(texts: pl.Series) -> Truth:
    keys = signatures.keys(texts).to_numpy()
    left, right = brute_force.pairs(brute_force.shingle_matrix(keys.tolist(), SHINGLE), THRESHOLD)
    return Truth(left, right, keys[left] == keys[right])


def _judged(found: Found, truth: Truth) -> dict[str, float]:
    """Recall and precision over pairs of rows; rows of one text are pairs too."""
    count = int(found.text.max()) + 1
    one, other = found.text[truth.left], found.text[truth.right]
    ends = np.minimum(found.left, found.right) * count + np.maximum(found.left, found.right)
    met = (one == other) | np.isin(np.minimum(one, other) * count + np.maximum(one, other), ends)
    sizes = np.bincount(found.text)
    claimed = (sizes[found.left] * sizes[found.right]).sum() + (sizes * (sizes - 1) // 2).sum()
    return {
        "pairs": len(truth.left),
        "recall": float(met.mean()),
        "recall_near": float(met[~truth.same].mean()),
        "precision": float(met.sum() / claimed),
    }
