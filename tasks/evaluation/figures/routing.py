"""What the experts of a mixture know of the domains of texts. Numpy only.

That experts and domains have something in common is only shown beside chance: domains are dealt out to the
texts anew (Fisher's permutation test). To texts and not to tokens, as those of one text resemble each other.
"""

from dataclasses import dataclass

import numpy as np

from tasks.evaluation.predictions import Array

DEALS = 999  # of the domains to the texts: the smallest p is 1 / 1000


@dataclass(frozen=True)
class Routing:
    """Of one layer.

    table: tokens of each domain that each expert reads, (domains, experts) int64.
    bits: mutual information of expert and domain. chance: its mean where domains are dealt out anew.
    p_value: how often they then have as much in common.
    """

    table: Array
    bits: float
    chance: float
    p_value: float


def routed(reads: Array, domains: Array, *, seed: int) -> Routing:
    """reads: tokens of each text that each expert reads, (texts, experts). domains: (texts,) from 0 on."""
    generator, table = np.random.default_rng(seed), _table(reads, domains)
    bits = information(table)
    dealt = [information(_table(reads, generator.permutation(domains))) for _ in range(DEALS)]
    above = sum(other >= bits - 1e-12 for other in dealt)  # equal but for rounding is as much
    return Routing(table.astype(np.int64), bits, float(np.mean(dealt)), (1 + above) / (1 + DEALS))


def _table(reads: Array, domains: Array) -> Array:
    """(texts, experts) -> (domains, experts), float64, whose products are the faster ones."""
    member = np.arange(domains.max() + 1)[:, None] == domains  # (domains, texts)
    return np.asarray(member.astype(np.float64) @ reads)


def information(table: Array) -> float:
    """Mutual information of row and column in bits, of counts (rows, columns); 0 if they are independent."""
    shares = table / table.sum()
    apart = shares.sum(axis=1, keepdims=True) * shares.sum(axis=0, keepdims=True)
    seen = shares > 0
    return float((shares[seen] * np.log2(shares[seen] / apart[seen])).sum())
