"""The truth about duplicates: every pair of texts compared, nothing hashed.

It shares with the product the normalised text only, not its shingles' hashes, signatures or joins.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Integers = NDArray[np.int64]

BLOCK = 1000  # rows compared with all others at once


def shingle_matrix(keys: Sequence[str], size: int) -> csr_matrix:
    """(texts, different shingles), 1 where a text has the run of `size` words; of shorter texts the whole."""
    numbers: dict[tuple[str, ...], int] = {}
    columns, ends = [], [0]
    for key in keys:
        words = key.split(" ")
        runs = {tuple(words[start : start + size]) for start in range(max(len(words) - size + 1, 1))}
        columns += [numbers.setdefault(run, len(numbers)) for run in runs]
        ends.append(len(columns))
    ones = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((ones, np.array(columns), np.array(ends)), shape=(len(keys), len(numbers)))


def pairs(matrix: csr_matrix, threshold: float) -> tuple[Integers, Integers]:
    """Places (left < right) of all pairs of rows whose Jaccard similarity is at or above `threshold`."""
    sizes, other = np.diff(matrix.indptr), matrix.T.tocsr()
    found = []
    for start in range(0, matrix.shape[0], BLOCK):
        shared = (matrix[start : start + BLOCK] @ other).tocoo()
        left, right = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        similarity = shared.data / (sizes[left] + sizes[right] - shared.data)
        near = (left < right) & (similarity >= threshold)
        found.append((left[near], right[near]))
    left, right = (np.concatenate(ends) for ends in zip(*found, strict=True))
    return left, right
