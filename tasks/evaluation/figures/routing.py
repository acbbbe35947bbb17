"""Where the routers of a mixture of experts send the tokens of several domains. Numpy only.

That experts and domains have something in common is only shown beside chance: domains are dealt out to the
texts anew (Fisher's permutation test). To texts and not to tokens, as those of one text resemble each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.evaluation.predictions import Array

DEALS = 999  # of the domains to the texts: the smallest p is 1 / 1000


@dataclass(frozen=True)
class Routing:
    """Of one layer.

    table: tokens of each domain that each expert reads, (domains, experts) int64. load: share of all tokens
    that each expert reads, (experts,); together as many as read one token.
    bits: mutual information of expert and domain. chance: its mean where domains are dealt out anew.
    p_value: how often they then have as much in common.
    """

    table: Array
    load: Array
    bits: float
    chance: float
    p_value: float


def routed(
    logits: Sequence[Array], mask: Array, domains: Array, *, chosen: int, seed: int
) -> tuple[Routing, ...]:
    """Of each layer; logits: each (texts * tokens, experts), as transformers gives them.

    mask: (texts, tokens), 0 where there is padding. domains: (texts,) numbers from 0 on. chosen: how many
    experts read a token.
    """
    counts = [tallied(layer, mask, chosen) for layer in logits]
    return tuple(_layer(each, domains, int(mask.sum()), seed) for each in counts)


def tallied(logits: Array, mask: Array, chosen: int) -> Array:
    """Tokens of each text that each expert reads, (texts, experts) int64; padding is read by none."""
    texts, tokens = mask.shape
    experts = np.argsort(-logits, axis=1, kind="stable")[:, :chosen]  # (texts * tokens, chosen)
    reads = np.zeros(logits.shape, dtype=np.int64)
    np.put_along_axis(reads, experts, 1, axis=1)
    kept: Array = reads.reshape(texts, tokens, -1) * (mask != 0)[..., None]
    return np.asarray(kept.sum(axis=1))


def _layer(counts: Array, domains: Array, tokens: int, seed: int) -> Routing:
    """counts: (texts, experts); tokens: of all texts, without padding."""
    generator, table = np.random.default_rng(seed), _table(counts, domains)
    bits = information(table)
    dealt = [information(_table(counts, generator.permutation(domains))) for _ in range(DEALS)]
    above = sum(other >= bits - 1e-12 for other in dealt)  # equal but for rounding is as much
    return Routing(table, counts.sum(axis=0) / tokens, bits, float(np.mean(dealt)), (1 + above) / (1 + DEALS))


def _table(counts: Array, domains: Array) -> Array:
    """(texts, experts) -> (domains, experts)."""
    member = np.arange(domains.max() + 1)[:, None] == domains  # (domains, texts)
    return np.asarray(member.astype(np.int64) @ counts)


def information(table: Array) -> float:
    """Mutual information of row and column in bits, of counts (rows, columns); 0 if they are independent."""
    shares = table / table.sum()
    apart = shares.sum(axis=1, keepdims=True) * shares.sum(axis=0, keepdims=True)
    seen = shares > 0
    return float((shares[seen] * np.log2(shares[seen] / apart[seen])).sum())
