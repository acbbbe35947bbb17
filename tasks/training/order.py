"""In which order rows are seen: shuffled by seed, yet neighbours in length, so that little is padded."""

from collections.abc import Iterator, Sequence

import numpy as np

POOL = 50  # batches sorted together; research on packing measured 5 % padding left at this size


def epoch_order(
    lengths: Sequence[int], *, batch_size: int, seed: Sequence[int], batch_tokens: int | None = None
) -> list[list[int]]:
    """Batches of row places for one epoch, a function of lengths and seed alone.

    Rows are shuffled, sorted by length inside pools of `POOL` batches, cut into batches, and the batches are
    shuffled again. Every row appears exactly once.
    batch_tokens: instead of `batch_size` rows, as many as fill this many tokens with their padding; a longer
    row stands alone.
    """
    random = np.random.default_rng(list(seed))
    order = random.permutation(len(lengths))
    size = POOL * (batch_size if batch_tokens is None else _rows(lengths, batch_tokens))
    pools = [order[start : start + size] for start in range(0, len(order), size)]
    rows = np.concatenate(
        [pool[np.argsort(np.take(lengths, pool), kind="stable")] for pool in pools]
    ).tolist()
    if batch_tokens is None:
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    else:
        batches = list(_filled(rows, lengths, batch_tokens))
    return [batches[place] for place in random.permutation(len(batches))]


def parts(rows: Sequence[int], count: int) -> list[list[int]]:
    """`rows` in at most `count` runs of nearly equal size: what accumulation computes at once."""
    return [part.tolist() for part in np.array_split(np.asarray(rows), min(count, len(rows)))]


def _rows(lengths: Sequence[int], tokens: int) -> int:
    return max(1, int(tokens / max(1.0, float(np.mean(lengths)))))


def _filled(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if batch and longest * (len(batch) + 1) > tokens:
            yield batch
            batch, longest = [], lengths[row]
        batch.append(row)
    if batch:
        yield batch
