"""Changes of a text that leave its label as it is: what a model should not mind.

The kinds of change are those of CheckList (Ribeiro et al. 2020). A text with nothing to change stays.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

NAMES = (
    "Anna", "Ben", "Carlos", "Emily", "Fatima", "George", "Ivan", "Jamal", "James", "John", "Lakisha",
    "Maria", "Mary", "Michael", "Mohammed", "Olga", "Priya", "Sarah", "Wei", "Yusuf",
)  # fmt: skip
CLOSING = ".!?…"
INSIDE = re.compile(r"(?<=\w)([^\W\d_])([^\W\d_])")  # two letters that do not begin a word
GAP = re.compile(r"(?<=\S) (?=\S)")

Change = Callable[[str, Random, Sequence[str]], str]


@dataclass(frozen=True)
class Perturbation:
    """`change`: a text, what chooses, and names that may stand for one another -> the text changed."""

    told: str
    change: Change


def changed(
    texts: Sequence[str], perturbation: str, *, seed: int, names: Sequence[str] = NAMES
) -> tuple[str, ...]:
    """The texts of one row under a perturbation of this name; the same for the same seed, on any machine."""
    change = PERTURBATIONS[perturbation].change
    return tuple(change(text, Random(f"{seed} {perturbation} {text}"), names) for text in texts)


def typo(text: str, chance: Random, names: Sequence[str]) -> str:
    """Two neighbouring letters change places, within a word."""
    places = [found.start() for found in INSIDE.finditer(text) if found[1] != found[2]]
    if not places:
        return text
    place = chance.choice(places)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def swap_names(text: str, chance: Random, names: Sequence[str]) -> str:
    """Each name becomes the next of the list, so that a person stays one throughout both texts of a pair."""
    following = dict(zip(names, [*names[1:], names[0]], strict=True)) if names else {}
    known = "|".join(map(re.escape, sorted(following, key=len, reverse=True)))
    return re.sub(rf"\b(?:{known})\b", lambda found: following[found[0]], text) if following else text


def end_otherwise(text: str, chance: Random, names: Sequence[str]) -> str:
    """Without the marks that end it, or with a full stop where there are none."""
    bare = text.rstrip(CLOSING)
    return bare if bare and bare != text else f"{text}."


def widen(text: str, chance: Random, names: Sequence[str]) -> str:
    """One space becomes three, and one more stands at the end."""
    gaps = [found.start() for found in GAP.finditer(text)]
    if not gaps:
        return f"{text} "
    place = chance.choice(gaps)
    return f"{text[:place]}   {text[place + 1 :]} "


PERTURBATIONS: Mapping[str, Perturbation] = {
    "typo": Perturbation("two letters within a word change places", typo),
    "upper": Perturbation("all letters are capitals", lambda text, chance, names: text.upper()),
    "lower": Perturbation("no letter is a capital", lambda text, chance, names: text.lower()),
    "name": Perturbation("people bear other names", swap_names),
    "punctuation": Perturbation("the marks at the end go, or a full stop comes", end_otherwise),
    "whitespace": Perturbation("some spaces more", widen),
}
