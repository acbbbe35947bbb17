"""The encoding as one page of HTML."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks import pages
from tasks.text.tokens.tally import Tally

BARS = 24  # of the length histogram
SHARES = (0.5, 0.9, 0.95, 0.99, 1.0)
MISSED: Mapping[str, str] = {  # kind -> what it is that is counted as missed
    "tags": "words give no token, and their tags are neither learnt nor predicted",
    "answer": "answers fit no window whole, and are learnt as if there were none: raise encoding.stride",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the page says, as plain values."""

    kind: str
    max_length: int
    packing: str
    tokens: int  # of the vocabulary
    fresh: int  # of these, without an embedding in the checkpoint
    written: Mapping[str, int]  # split -> rows of its file
    tallies: Mapping[str, Tally]


def render(facts: Facts) -> str:
    total = sum(facts.tallies.values(), Tally())
    return pages.render(
        Path(__file__).with_name("report.jinja"),
        facts=facts,
        total=total,
        shares=SHARES,
        missed=MISSED.get(facts.kind),
        histogram=histogram(total, facts.max_length),
    )


def histogram(total: Tally, max_length: int) -> list[tuple[str, int, bool]]:
    """Equal steps up to the length of 99 % of the rows, one bar for the rest: (range, rows, over max_length).

    A bar is over where its shortest row is. Empty without rows.
    """
    if not total.rows:
        return []
    most = max(1, total.fitting(0.99))
    step = -(-most // BARS)
    last = -(-most // step)
    counts: Counter[int] = Counter()
    for length, rows in total.lengths.items():
        counts[min(max(length - 1, 0) // step, last)] += rows
    names = [f"{bar * step + 1}–{(bar + 1) * step}" for bar in range(last)] + [f"over {last * step}"]
    bars = [(name, counts[bar], bar * step + 1 > max_length) for bar, name in enumerate(names)]
    return bars if counts[last] else bars[:-1]
