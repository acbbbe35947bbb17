"""Which experts of a mixture read which test rows: their load, and what they know of what divides these."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.evaluation import pictures
from tasks.evaluation.figures.routing import Routing, routed
from tasks.evaluation.pictures import Picture
from tasks.evaluation.predictions import Array

DOMAINS = 12  # values that are told apart, the most frequent; what is not among them is OTHER
OTHER, NONE = "(another)", "(none)"
COLUMNS = ("by", "domain", "layer", "expert", "tokens")


@dataclass(frozen=True, eq=False)
class Division:
    """What the experts of each layer know of `domains`, that is, of a value that each row has."""

    by: str
    domains: Sequence[str]
    layers: Sequence[Routing]

    @property
    def bits(self) -> float:
        """Of the mean layer."""
        return float(np.mean([layer.bits for layer in self.layers]))

    def told(self, alpha: float) -> str:
        """In a sentence how many layers know of the domains, and how many would if none did."""
        know, layers = sum(layer.p_value <= alpha for layer in self.layers), len(self.layers)
        chance = f"p ≤ {alpha:g}, as chance alone gives in {alpha * layers:.1f}"
        return (
            f"In {know} of {layers} layers experts and {self.by} have more in common than where its values "
            f"are dealt out to the rows anew ({chance})."
        )


@dataclass(frozen=True, eq=False)
class Routes:
    """Of the test rows. reads: tokens that each expert reads, (layers, experts) int64; chosen: experts that
    read a token."""

    reads: Array
    chosen: int
    divisions: Sequence[Division]

    @property
    def load(self) -> Array:
        """Share of the tokens that each expert reads, (layers, experts)."""
        return np.asarray(self.reads * self.chosen / self.reads.sum(axis=1, keepdims=True))

    @property
    def values(self) -> dict[str, float]:
        """For tracking and `dvc metrics diff`."""
        shared = {f"{one.by}.bits": one.bits for one in self.divisions}
        return {"least_load": float(self.load.min()), "most_load": float(self.load.max()), **shared}

    def lines(self) -> Iterator[tuple[str, str, int, int, int]]:
        """A line for each of COLUMNS; what divides nothing is `by` nothing."""
        tables = [("", "", layer, reads) for layer, reads in enumerate(self.reads)]
        for one in self.divisions:
            for layer, found in enumerate(one.layers):
                pairs = zip(one.domains, found.table, strict=True)
                tables += [(one.by, domain, layer, reads) for domain, reads in pairs]
        for by, domain, layer, reads in tables:
            yield from ((by, domain, layer, expert, int(tokens)) for expert, tokens in enumerate(reads))

    def pictures(self) -> list[Picture]:
        even = self.chosen / self.reads.shape[1]
        loads = Picture(
            "Load of the experts",
            f"Tokens of the test rows that each reads, and its share of what is read in the layer; "
            f"where loads are even, each reads {even:.1%} of the tokens.",
            pictures.loads(self.reads),
        )
        return [loads, *(self._picture(one) for one in self.divisions)]

    def _picture(self, one: Division) -> Picture:
        told = "Shares of what is read of each value in a layer; where its rows differ, experts know of it."
        tables = [layer.table for layer in one.layers]
        return Picture(f"Experts by {one.by}", told, pictures.routes(tables, one.domains), wide=True)


def find(
    counts: Array, chosen: int, columns: Mapping[str, Sequence[str | None]], *, seed: int
) -> Routes | None:
    """counts: tokens of each row that each expert reads, (layers, rows, experts); None without layers.

    columns: what divides the rows, a value for each; one that all have alike divides nothing.
    """
    if not len(counts):
        return None
    found = (_division(by, values, counts, seed) for by, values in columns.items())
    return Routes(counts.sum(axis=1), chosen, [one for one in found if len(one.domains) > 1])


def _division(by: str, values: Sequence[str | None], counts: Array, seed: int) -> Division:
    named = [NONE if value is None else value for value in values]
    common = sorted(name for name, _ in Counter(sorted(named)).most_common(DOMAINS))
    domains = common + ([OTHER] if set(named) - set(common) else [])
    number = {name: place for place, name in enumerate(domains)}
    of = np.array([number.get(name, len(common)) for name in named])
    layers = [routed(reads, of, seed=seed) for reads in counts] if len(domains) > 1 else []
    return Division(by, domains, layers)
