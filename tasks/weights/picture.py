"""The embedding table before and after as two columns of coloured bands, ready to be drawn as SVG."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from tasks.weights.alignment import Alignment

STATES = ("kept", "moved", "new", "unused")  # unused: a row of the checkpoint that no token takes
COLUMN, GAP, TOP, TALLEST = 240, 80, 28, 260  # units of the picture
RUNS, BANDS = 12, 80  # more runs of one state than RUNS are drawn as BANDS of mixed rows
LEAST = 6.0  # height of a run that would be too thin to be seen, width of a share that would
SHOWN = 20  # new tokens


@dataclass(frozen=True)
class Band:
    state: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Table:
    name: str
    rows: int
    columns: int
    left: int
    bands: tuple[Band, ...]


@dataclass(frozen=True)
class Made:
    """A new token, and what the checkpoint knew of it."""

    token: str
    id: int
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """legend: state -> rows, of our table and, for unused ones, of the checkpoint's."""

    tables: tuple[Table, Table]
    legend: Mapping[str, int]
    sentence: str
    words: tuple[Made, ...]
    more: int
    width: int
    height: float


def draw(words: Alignment) -> Picture:
    """Both tables to one scale, their rows in order; the first new tokens with their pieces."""
    old, new = _before(words), words.states
    legend = Counter(new) + Counter({"unused": old.count("unused")})
    tables = (_table("before", old, words, 0), _table("after", new, words, COLUMN + GAP))
    bottom = max(band.top + band.height for table in tables for band in table.bands)
    return Picture(
        tables=tables,
        legend={state: legend[state] for state in STATES},
        sentence=_sentence(words),
        words=tuple(_made(words)),
        more=max(len(words.new) - SHOWN, 0),
        width=2 * COLUMN + GAP,
        height=bottom,
    )


def _before(words: Alignment) -> list[str]:
    """What becomes of each row of the checkpoint: where several tokens take it, kept goes before moved."""
    states = ["unused"] * words.before
    for ours, theirs in words.carried.items():
        states[theirs] = "kept" if ours == theirs or states[theirs] == "kept" else "moved"
    return states


def _table(name: str, states: Sequence[str], words: Alignment, left: int) -> Table:
    scale = TALLEST / max(words.before, words.after)
    runs = [(state, len(list(run))) for state, run in groupby(states)]
    bands = _runs(runs, scale, left) if len(runs) <= RUNS else _mixed(states, scale, left)
    return Table(name, len(states), words.width, left, tuple(bands))


def _runs(runs: Sequence[tuple[str, int]], scale: float, left: int) -> Iterator[Band]:
    top = float(TOP)
    for state, rows in runs:
        height = max(rows * scale, LEAST)
        yield Band(state, left, round(top, 2), COLUMN, round(height, 2))
        top += height


def _mixed(states: Sequence[str], scale: float, left: int) -> Iterator[Band]:
    """Bands of equally many rows, each divided sideways by what its rows are."""
    bands = min(BANDS, len(states))
    edges = [len(states) * band // bands for band in range(bands + 1)]
    for start, stop in pairwise(edges):
        count = Counter(states[start:stop])
        shares = {state: max(count[state] / len(states[start:stop]), LEAST / COLUMN) for state in count}
        place, whole = float(left), sum(shares.values())
        for state in filter(count.__contains__, STATES):
            width = COLUMN * shares[state] / whole
            top, height = TOP + start * scale, (stop - start) * scale
            yield Band(state, round(place, 2), round(top, 2), round(width, 2), round(height, 2))
            place += width


def _sentence(words: Alignment) -> str:
    counts = words.counts
    return (
        f"The table of token embeddings before, {counts['before']:,} rows of {words.width:,}, and after, "
        f"{counts['after']:,} rows: {words.reason}, {counts['kept']:,} kept"
    )


def _made(words: Alignment) -> Iterator[Made]:
    known = {word.source: word.token for word in words.words}
    for word in words.new[:SHOWN]:
        yield Made(word.token, word.id, tuple(known.get(piece, f"row {piece}") for piece in word.pieces))
