"""Several processes compute one batch: which rows each takes, and what they tell one another.

Every process holds the whole model and takes the same optimizer step on the sum of all gradients, so that the
weights stay the same everywhere, to the bit, and equal those of one process but for the order of sums.
Torch's DistributedDataParallel is not used: it adds up only what went through its own forward, while rows go
through tails and heads here, and it cannot begin a batch anew in smaller parts where one process runs out of
memory. Gradients are added up behind the batch instead, when all processes have said that they are well.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from tasks.errors import TrainingError

BUCKET = 1 << 25  # numbers that are added up at once: 128 MB of float32


class GoneError(TrainingError):
    """Another process of this training has ended or is stuck."""


@dataclass(frozen=True)
class Ranks:
    """`size` processes, of which this one is number `rank`; the first alone tells and saves.

    lost: says who is gone, asked once an exchange has failed. Every method but `shares` waits for all.
    """

    rank: int = 0
    size: int = 1
    lost: Callable[[], str] = lambda: "another process of this training is gone"

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def every(self) -> slice:
        """Of many batches those that this process computes."""
        return slice(self.rank, None, self.size)

    def shares(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows of a batch that each process computes, the largest share first; of few, some have none."""
        return [share.tolist() for share in np.array_split(np.asarray(rows, dtype=np.int64), self.size)]

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """What each process gives, by rank; one may give more numbers than another."""
        if self.size == 1:
            return [list(values)]
        with self._told():
            counts = torch.zeros(self.size, dtype=torch.float64)
            counts[self.rank] = len(values)
            lengths = [int(count) for count in reduce(counts, "sum").tolist()]
            table = torch.zeros(self.size, max(lengths), dtype=torch.float64)
            table[self.rank, : len(values)] = torch.tensor(values, dtype=torch.float64)
            found = reduce(table, "sum").tolist()
        return [row[:length] for row, length in zip(found, lengths, strict=True)]

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give each parameter the sum of all processes' gradients; one without any keeps none."""
        if self.size == 1:
            return
        held = self.gather([float(value.grad is not None) for value in parameters])
        counted = zip(parameters, *held, strict=True)
        for bucket in _buckets([value for value, *has in counted if any(has)]):
            gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in bucket]
            with self._told():
                total: Tensor = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
            for value, part in zip(bucket, total.split([v.numel() for v in bucket]), strict=True):
                value.grad = part.view_as(value)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises GoneError that names who is gone, where torch tells of a socket."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise GoneError(self.lost()) from error


ALONE = Ranks()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for value in parameters:
        if bucket and (size + value.numel() > BUCKET or value.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(value)
        size += value.numel()
    if bucket:
        yield bucket
