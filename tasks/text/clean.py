"""Cleaning steps: pure functions from text to text, applied in the order that params.yaml gives.

The order matters: entities that stand for control characters are only removed by a `control` after `html`.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from tasks.errors import ParamsError, did_you_mean
from tasks.text.sources import Document

# Control characters and surrogates that are not white space, and the byte order mark.
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]")
URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
MENTION = re.compile(r"(?<!\w)@\w+")
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


def unicode(text: str) -> str:
    """Canonical composition (NFC): one spelling for an accented letter."""
    return unicodedata.normalize("NFC", text)


def control(text: str) -> str:
    return CONTROL.sub("", text)


def whitespace(text: str) -> str:
    """Every run of white space becomes one space, none at the ends."""
    return " ".join(text.split())


def mask_urls(text: str) -> str:
    return URL.sub("<url>", text)


def mask_mentions(text: str) -> str:
    return MENTION.sub("<user>", text)


def mask_emails(text: str) -> str:
    return EMAIL.sub("<email>", text)


def accents(text: str) -> str:
    """Letters without their accents; what does not decompose (ø, ß) stays."""
    bare = (c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return unicodedata.normalize("NFC", "".join(bare))


def clean(documents: Iterable[Document], steps: Sequence[str]) -> tuple[tuple[Document, ...], Counter[str]]:
    """The documents with `steps` applied in order, and how many texts each step altered.

    Raises ParamsError for an unknown step.
    """
    chosen, changed = _chosen(steps), Counter(dict.fromkeys(steps, 0))
    cleaned = []
    for document in documents:
        text = document.text
        for name, step in chosen:
            before, text = text, step(text)
            changed[name] += text != before
        cleaned.append(replace(document, text=text))
    return tuple(cleaned), changed


def text(value: str, steps: Sequence[str]) -> str:
    """One text with `steps` applied in order. Raises ParamsError for an unknown step."""
    for _, step in _chosen(steps):
        value = step(value)
    return value


def _chosen(steps: Sequence[str]) -> list[tuple[str, Callable[[str], str]]]:
    for name in steps:
        if name not in STEPS:
            raise ParamsError(f"preparation.clean: unknown step {name!r}; {did_you_mean(name, STEPS)}")
    return [(name, STEPS[name]) for name in steps]


STEPS: Mapping[str, Callable[[str], str]] = {
    "unicode": unicode,
    "html": html.unescape,
    "control": control,
    "whitespace": whitespace,
    "mask_urls": mask_urls,
    "mask_mentions": mask_mentions,
    "mask_emails": mask_emails,
    "accents": accents,
}
