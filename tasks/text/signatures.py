"""What a text is compared by: its key, its shingles, and the bands of its MinHash signature.

A key is the text without what makes no other text; shingles are runs of its words. Both are hashed in a way
that is the same on every machine, and lie on disk, so that memory holds a few numbers a row.
"""

import hashlib
import shutil
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rensa import RMinHash

Hashes = NDArray[np.uint64]

PERMUTATIONS = 128
SEED = 42
FOUND = 0.999  # probability with which a pair exactly at the threshold must become a candidate
ROW_BITS = 20
SHINGLE_BITS = np.uint64(64 - ROW_BITS)  # two different shingles of a pair of 60 are one with p = 2e-10
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's bits are lost (Knuth, TAOCP 3, 6.4)
BLOCK = 256  # keys signed at once: few enough that their lists stay in the cache
ALGORITHM = f"rensa.RMinHash {RMinHash.ALGORITHM_VERSION}"  # other versions give other signatures

# Who retweets, whom they mention and what they link to does not make another text.
RETWEET = r"^\s*(?:rt\b:?\s*(?:@\w+:?\s*)?)+"
LINK_OR_MENTION = r"(?:https?://|www\.)\S*|\B@\w+"
PUNCTUATION, SPACES = r"[\p{P}\x{FFFD}]+", r"\s\s+|[\s--\x20]"  # twice as fast as one class for both


def keys(texts: pl.Series) -> pl.Series:
    """What makes two texts exactly the same: their words and symbols, without case, addresses, punctuation.

    A text of nothing else is its own key, so that two different bare links are not duplicates.
    """
    folded = _compatible(texts).str.to_lowercase()
    words = (
        folded.str.replace(RETWEET, "")
        .str.replace_all(LINK_OR_MENTION, " ")
        .str.replace_all(PUNCTUATION, " ")
        .str.replace_all(SPACES, " ")
        .str.strip_chars()
    )
    bare = (words == "").arg_true()
    whole = folded.gather(bare).str.replace_all(r"\s+", " ").str.strip_chars()
    return words.scatter(bare, whole)


def _compatible(texts: pl.Series) -> pl.Series:
    """NFKC, for the few texts that it may change: it is slow."""
    foreign = (texts.str.len_bytes() != texts.str.len_chars()).arg_true()
    return texts.clone().scatter(foreign, texts.gather(foreign).str.normalize("NFKC"))


def hashed(texts: pl.Series) -> Hashes:
    """64 bits of BLAKE2b for each text: among ten million, two differ and collide with probability 3e-6."""
    digest = hashlib.blake2b
    found = b"".join([digest(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts])
    return np.frombuffer(found, dtype="<u8").astype(np.uint64)


def shingles(keys: pl.Series, size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of every run of `size` words of each key, each once and sorted, and where each key's begin.

    A key with fewer words is one shingle. Returns (shingles,) uint64 of SHINGLE_BITS and (keys + 1,) int64.
    """
    starts = range(0, len(keys), 2**ROW_BITS)
    parts = [_shingles(keys.slice(start, 2**ROW_BITS), size) for start in starts]
    counts = np.concatenate([np.empty(0, np.int64), *(counts for _, counts in parts)])
    hashes = np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _ in parts)])
    return hashes, np.concatenate([[0], np.cumsum(counts)])


def _shingles(keys: pl.Series, size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """The same with how many each key has, for at most 2**ROW_BITS keys."""
    words = keys.str.split(" ")
    lengths = words.list.len().to_numpy().astype(np.int64)
    encoded = words.explode(empty_as_null=True).to_arrow().dictionary_encode()
    hashes = hashed(pl.Series(encoded.dictionary))[encoded.indices.to_numpy()]
    return _once(*_windows(hashes, lengths, size), len(keys))


def _windows(words: Hashes, lengths: NDArray[np.int64], size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """A hash of each window of `size` words, and the row it belongs to."""
    counts = np.maximum(lengths - size + 1, 1)  # windows of each key
    row = np.repeat(np.arange(len(lengths)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.repeat(np.cumsum(lengths) - lengths, counts) + within
    width = np.repeat(np.minimum(lengths, size), counts)
    hashes = np.zeros(len(start), dtype=np.uint64)
    for place in range(min(size, int(lengths.max(initial=0)))):
        word = words[np.minimum(start + place, len(words) - 1)]
        hashes = np.where(place < width, hashes * MULTIPLIER + word, hashes)
    return hashes, row


def _once(hashes: Hashes, row: NDArray[np.int64], rows: int) -> tuple[Hashes, NDArray[np.int64]]:
    """One sort of row and hash as one number: ten times as fast as a sort by two columns."""
    coded = (row.astype(np.uint64) << SHINGLE_BITS) | (hashes >> (np.uint64(64) - SHINGLE_BITS))
    coded.sort()
    coded = coded[np.concatenate([[True], coded[1:] != coded[:-1]])] if len(coded) else coded
    counts = np.bincount((coded >> SHINGLE_BITS).astype(np.int64), minlength=rows)
    return coded & ((np.uint64(1) << SHINGLE_BITS) - np.uint64(1)), counts


def bands(hashes: Hashes, offsets: NDArray[np.int64], rows: int) -> Hashes:
    """One hash for each band of `rows` rows of each key's signature: (keys, 128 // rows).

    MinHash (Broder, 1997) through rensa; two keys whose bands differ in every place are no candidates.
    """
    count = PERMUTATIONS // rows
    packed = b"".join(
        _packed(hashes, offsets[at : at + BLOCK + 1]) for at in range(0, len(offsets) - 1, BLOCK)
    )
    signatures = np.frombuffer(packed, dtype="<u4").reshape(-1, PERMUTATIONS)[:, : count * rows]
    found = np.zeros((len(signatures), count), dtype=np.uint64)
    for place in range(rows):
        found = found * MULTIPLIER + signatures[:, place::rows]
    return found


def _packed(hashes: Hashes, offsets: NDArray[np.int64]) -> bytes:
    """Signatures as unsigned integers of 32 bits; rensa gives them as lists of Python's."""
    begin, end = offsets[0], offsets[-1]
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes[begin:end], (offsets - begin).astype(np.uint64), PERMUTATIONS, SEED
    )
    pack = struct.Struct(f"<{PERMUTATIONS}I").pack  # four times as fast as numpy on lists of lists
    return b"".join([pack(*signature) for signature in matrix.to_rows()])


def rows_per_band(threshold: float) -> int:
    """The most selective banding that still finds a pair at `threshold` with probability FOUND or more.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s**r)**b, b = 128 // r
    (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3rd ed., 3.4.2): for 0.8 that is 0.99995
    with 25 bands of 5 rows and 0.947 with 16 of 8, which lost 3.6 % of the near-duplicates of 50,000 short
    texts.
    """
    for rows in (16, 8, 6, 5, 4, 3, 2):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= FOUND:
            return rows
    return 1


@dataclass(frozen=True)
class Signed:
    """Keys of many texts; the long parts lie in files that are mapped, not read."""

    keys: Hashes  # (texts,) hash of each key
    counts: NDArray[np.int64]  # (texts,) different shingles
    folder: Path
    rows: int  # of a band

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(texts,) where each text's shingles begin."""
        return np.asarray(np.cumsum(self.counts) - self.counts)

    @property
    def bands(self) -> Hashes:
        """(texts, bands), mapped from disk."""
        shape = (len(self.keys), PERMUTATIONS // self.rows)
        return _mapped(self.folder / BANDS).reshape(shape)

    @property
    def shingles(self) -> Hashes:
        """(sum of counts,), each text's own sorted, mapped from disk."""
        return _mapped(self.folder / SHINGLES)


BANDS, SHINGLES = "bands.u64", "shingles.u64"


def _mapped(path: Path) -> Hashes:
    if not path.stat().st_size:
        return np.empty(0, dtype=np.uint64)
    return np.memmap(path, dtype=np.uint64, mode="r")


def sign(texts: pl.Series, folder: Path, *, shingle: int, rows: int) -> Signed:
    """Keys, shingles and bands of `texts`, written below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    normalised = keys(texts)
    hashes, offsets = shingles(normalised, shingle)
    for name, values in {BANDS: bands(hashes, offsets, rows), SHINGLES: hashes}.items():
        with (folder / name).open("wb") as stream:  # not tofile, which does not say that a disk is full
            stream.write(np.ascontiguousarray(values).data)
    return Signed(hashed(normalised), np.diff(offsets), folder, rows)


def join(parts: list[Signed], folder: Path) -> Signed:
    """All `parts` as one, in their order; their own files are used up."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (BANDS, SHINGLES):
        with (folder / name).open("wb") as target:
            for part in parts:
                with (part.folder / name).open("rb") as source:
                    shutil.copyfileobj(source, target, 2**20)
                (part.folder / name).unlink()
    keys = np.concatenate([part.keys for part in parts])
    return Signed(keys, np.concatenate([part.counts for part in parts]), folder, parts[0].rows)
