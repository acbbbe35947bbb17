"""Find texts that are the same, or nearly, and decide which row stays.

Candidates come from banded MinHash signatures (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
3rd ed., chapter 3); every candidate pair is then measured exactly, because unverified bands merge strangers.
Two structures serve two purposes: a row is *removed* only if it is itself near a row that stays, while
*clusters*, which no split may cut, are whole connected components. Paraphrases in other words are not found.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from tasks import progress
from tasks.text.filters import Drop
from tasks.text.sources import Document, Quarantined

PERMUTATIONS = 128
SEED = 42
FOUND = 0.94  # probability with which a pair exactly at the threshold must become a candidate
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's bits are lost (Knuth, TAOCP 3, 6.4)
CHUNK = 2**15  # pairs measured at once

# Who retweets, whom they mention and what they link to does not make another text.
RETWEET = re.compile(r"^(?:rt\b:?\s*(?:@\w+:?\s*)?)+")
LINK_OR_MENTION = re.compile(r"(?:https?://|www\.)\S*|(?<!\w)@\w+")


@dataclass(frozen=True)
class Deduplicated:
    kept: tuple[Document, ...]
    drops: tuple[Drop, ...]
    quarantined: tuple[Quarantined, ...]
    clusters: Mapping[str, str]  # id of every document that came in -> key of its cluster


class Pair(NamedTuple):
    left: int  # the earlier of the two
    right: int
    similarity: float


def deduplicate(
    documents: Sequence[Document],
    *,
    threshold: float,
    shingle: int,
    conflicts: Literal["quarantine", "keep"],
) -> Deduplicated:
    """Keep the first of each set of duplicates, in the order given.

    Two texts are duplicates when their keys are equal or when the Jaccard similarity of their sets of word
    `shingle`-grams is at least `threshold`. With conflicts="quarantine" every row that has a duplicate with
    another label is set aside. Rows added at the end change nothing about earlier rows except by such a
    conflict.
    """
    groups: dict[str, list[Document]] = {}
    for document in progress.track(documents, total=len(documents), description="comparing texts"):
        groups.setdefault(key(document.text), []).append(document)
    members = list(groups.values())
    pairs = near_pairs(list(groups), threshold=threshold, shingle=shingle)
    clashes = _clashes(members, pairs) if conflicts == "quarantine" else {}
    leaders = _leaders(len(members), pairs, aside=clashes.keys())
    kept = [group[0] for index, group in enumerate(members) if index not in clashes | leaders]
    return Deduplicated(
        kept=tuple(kept),
        drops=tuple(_drops(members, leaders, aside=clashes.keys())),
        quarantined=tuple(_set_aside(members, clashes)),
        clusters=_clusters(list(groups), members, pairs),
    )


def key(text: str) -> str:
    """What makes two texts exactly the same: their words and symbols, without case, addresses, punctuation.

    A text of nothing else is its own key, so that two different bare links are not duplicates.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = LINK_OR_MENTION.sub(" ", RETWEET.sub("", folded.lstrip()))
    return " ".join(words.translate(PUNCTUATION).split()) or " ".join(folded.split())


class _Punctuation(dict[int, int]):
    """Code point -> itself, or a space for punctuation (Unicode category P) and the replacement character."""

    def __missing__(self, point: int) -> int:
        blank = point == 0xFFFD or unicodedata.category(chr(point)).startswith("P")
        self[point] = ord(" ") if blank else point
        return self[point]


PUNCTUATION = _Punctuation()


def near_pairs(keys: Sequence[str], *, threshold: float, shingle: int) -> list[Pair]:
    """Every found pair of `keys` (all different) whose exact Jaccard similarity is at least `threshold`."""
    if len(keys) < 2:
        return []
    hashes, offsets = shingles(keys, shingle)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
    signatures = np.array(matrix.to_rows(), dtype=np.uint32)  # (keys, permutations)
    left, right = _candidates(signatures, rows_per_band(threshold))
    return _verified(left, right, _membership(hashes, offsets), threshold)


def rows_per_band(threshold: float) -> int:
    """The most selective banding that still finds a pair at `threshold` with probability FOUND or more.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s**r)**b, b * r = 128:
    for 0.8 that is 0.947 with 16 bands of 8 rows, 0.9998 at s = 0.9 and 0.06 at s = 0.5.
    """
    for rows in (16, 8, 4, 2):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= FOUND:
            return rows
    return 1


def shingles(keys: Sequence[str], size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes of every run of `size` words of each key, and where each key's hashes begin.

    A key with fewer words is one shingle. Returns (shingles,) and (keys + 1,), both uint64, the same on every
    machine.
    """
    words = [[_word_hash(word) for word in text.split()] for text in keys]
    lengths = np.array([len(row) for row in words], dtype=np.int64)
    flat = np.array([word for row in words for word in row], dtype=np.uint64)
    counts = np.maximum(lengths - size + 1, 1)  # windows per key
    offsets = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    start = np.repeat(np.cumsum(lengths) - lengths, counts) + within
    width = np.repeat(np.minimum(lengths, size), counts)
    hashes = np.zeros(len(start), dtype=np.uint64)
    for place in range(min(size, int(lengths.max()))):
        word = flat[np.minimum(start + place, len(flat) - 1)]
        hashes = np.where(place < width, hashes * MULTIPLIER + word, hashes)
    return hashes, offsets.astype(np.uint64)


@lru_cache(maxsize=2**20)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _candidates(signatures: NDArray[np.uint32], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (left < right) that agree on every row of at least one band."""
    count = len(signatures)
    found = [np.empty(0, dtype=np.int64)]
    for first in range(0, PERMUTATIONS, rows):
        band = np.ascontiguousarray(signatures[:, first : first + rows])
        values = band.view(np.dtype((np.void, band.itemsize * rows))).ravel()
        _, bucket = np.unique(values, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        sizes = np.bincount(bucket)
        ends = np.cumsum(sizes)
        for place in np.flatnonzero(sizes > 1):
            run = order[ends[place] - sizes[place] : ends[place]]
            left, right = np.triu_indices(len(run), k=1)
            found.append(run[left] * count + run[right])
    codes = np.unique(np.concatenate(found))
    return codes // count, codes % count


def _membership(hashes: NDArray[np.uint64], offsets: NDArray[np.uint64]) -> csr_matrix:
    """Which key has which shingle: (keys, different shingles) of zeros and ones."""
    different, column = np.unique(hashes, return_inverse=True)
    ones = np.ones(len(hashes), dtype=np.int32)
    matrix = csr_matrix((ones, column, offsets.astype(np.int64)), shape=(len(offsets) - 1, len(different)))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _verified(
    left: NDArray[np.int64], right: NDArray[np.int64], membership: csr_matrix, threshold: float
) -> list[Pair]:
    sizes = np.diff(membership.indptr)
    pairs: list[Pair] = []
    chunks = range(0, len(left), CHUNK)
    for start in progress.track(chunks, total=len(chunks), description="measuring candidates"):
        one, other = left[start : start + CHUNK], right[start : start + CHUNK]
        shared = np.asarray(membership[one].multiply(membership[other]).sum(axis=1)).ravel()
        jaccard = shared / (sizes[one] + sizes[other] - shared)
        near = jaccard >= threshold
        pairs += map(Pair, one[near].tolist(), other[near].tolist(), jaccard[near].tolist())
    return pairs


def _clashes(
    members: Sequence[Sequence[Document]], pairs: Iterable[Pair]
) -> dict[int, list[tuple[int, float]]]:
    """Group -> the groups (itself included) that hold a duplicate with another label, with the similarity."""
    labels = [{document.label for document in group} for group in members]
    clashes = {index: [(index, 1.0)] for index, names in enumerate(labels) if len(names) > 1}
    for left, right, similarity in pairs:
        if len(labels[left] | labels[right]) > 1:
            clashes.setdefault(left, []).append((right, similarity))
            clashes.setdefault(right, []).append((left, similarity))
    return clashes


def _leaders(count: int, pairs: Iterable[Pair], *, aside: Iterable[int]) -> dict[int, tuple[int, float]]:
    """Removed group -> the most similar earlier group that stays, with the similarity."""
    earlier: dict[int, list[tuple[int, float]]] = {}
    for left, right, similarity in pairs:
        earlier.setdefault(right, []).append((left, similarity))
    leaders: dict[int, tuple[int, float]] = {}
    gone = set(aside)
    for index in sorted(earlier.keys() - gone):
        if near := [entry for entry in earlier[index] if entry[0] not in gone]:
            leaders[index] = max(near, key=lambda entry: (entry[1], -entry[0]))
            gone.add(index)
    return leaders


def _drops(
    members: Sequence[Sequence[Document]], leaders: Mapping[int, tuple[int, float]], *, aside: Iterable[int]
) -> Iterable[Drop]:
    untouched = set(aside)
    for index, group in enumerate(members):
        if index in untouched:
            continue
        first = group[0]
        if index in leaders:
            leader, similarity = leaders[index]
            detail = f"{similarity:.3f} similar to {members[leader][0].id}"
            yield Drop(first.id, "dedup", "near_duplicate", detail, first.text)
        for document in group[1:]:
            yield Drop(document.id, "dedup", "exact_duplicate", f"of {first.id}", document.text)


def _set_aside(
    members: Sequence[Sequence[Document]], clashes: Mapping[int, Sequence[tuple[int, float]]]
) -> Iterable[Quarantined]:
    for index, opponents in sorted(clashes.items()):
        for document in members[index]:
            detail = _disagreement(document, members, opponents)
            yield Quarantined(document.id, "dedup", "conflicting_labels", detail, document.text)


def _disagreement(
    document: Document, members: Sequence[Sequence[Document]], opponents: Sequence[tuple[int, float]]
) -> str:
    nearest = sorted(opponents, key=lambda entry: (-entry[1], entry[0]))
    others = ((rival, s) for group, s in nearest for rival in members[group] if rival.label != document.label)
    rival, similarity = next(others)
    return f"labelled {document.label}, but {rival.id} ({similarity:.3f} similar) is labelled {rival.label}"


def _clusters(
    keys: Sequence[str], members: Sequence[Sequence[Document]], pairs: Sequence[Pair]
) -> dict[str, str]:
    """Document id -> its component's smallest content hash, whatever the order of the documents."""
    ends = np.array([pair[:2] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs)), (ends[:, 0], ends[:, 1])), shape=(len(keys), len(keys)))
    _, component = connected_components(graph, directed=False)
    hashes = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest() for text in keys]
    smallest: dict[int, str] = {}
    for part, content in zip(component.tolist(), hashes, strict=True):
        smallest[part] = min(content, smallest.get(part, content))
    return {
        document.id: smallest[part]
        for part, group in zip(component.tolist(), members, strict=True)
        for document in group
    }
