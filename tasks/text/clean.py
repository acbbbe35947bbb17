"""Cleaning steps: pure functions from text to text, applied in the order that params.yaml gives.

The order matters. Entities may stand for any character, the halves of mojibake among them, so `html` comes
first; mojibake hides combining marks and control characters from the steps that look for them, so it is next.
"""

import html as entities
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import NamedTuple

import ftfy
import pyarrow as pa

from tasks.errors import ParamsError, did_you_mean

Step = Callable[[str], str]

CHARACTERS = 280  # of an example, before and after
LEAD = 8  # words shown before the first change of a longer text

# What ftfy may touch: wrong decodings, and nothing that would change what a text says or what another step
# does. `explain` stays on: ftfy 6.3.1 forgets the second group of options without it.
ENCODING_ONLY = ftfy.TextFixerConfig(
    fix_encoding=True,
    fix_c1_controls=True,  # \x92 is an apostrophe of Windows-1252; `control` would lose it
    restore_byte_a0=True,  # "voilÃ le" is "voilà le": the byte A0 became a space on the way
    decode_inconsistent_utf8=True,  # mends "â€™" beside text that is right
    replace_lossy_sequences=True,  # "â€�" is one lost character, "�"; without it ftfy loses every U+FFFD
    unescape_html=False,  # is the step `html`
    remove_terminal_escapes=False,  # is the step `control`
    remove_control_chars=False,
    fix_surrogates=False,
    fix_line_breaks=False,  # is the step `whitespace`
    normalization=None,  # is the step `unicode`
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    explain=True,
)
# Colours and cursor moves of a terminal; control characters and surrogates that are not white space; the BOM.
CONTROL = re.compile(r"\x1b\[[\d;]*[A-Za-z]|[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]")
# With its semicolon: HTML allows `&copy` without, which would rewrite the address ?a=1&copy=2.
ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,31};")
URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
MENTION = re.compile(r"(?<!\w)@\w+")
EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")


@dataclass(frozen=True)
class Example:
    """A text that cleaning changed, around its first change; `content` is the row's hash."""

    place: str
    before: str
    after: str
    content: int
    only_spaces: bool = False


class Cleaned(NamedTuple):
    table: pa.Table
    changed: Counter[str]  # step -> rows
    examples: tuple[Example, ...]


def mojibake(text: str) -> str:
    """Text that was decoded with the wrong encoding, as it was meant ("cafÃ©" is "café"), by ftfy.

    Every wrong decoding leaves characters beyond ASCII, so ASCII is passed by; U+FFFD alone says nothing.
    """
    if text.isascii() or text.replace("\ufffd", "").isascii():
        return text
    return ftfy.fix_text(text, ENCODING_ONLY)


def unicode(text: str) -> str:
    """Canonical composition (NFC): one spelling for an accented letter."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def html(text: str) -> str:
    """Entities as the characters they stand for; once, so that `&amp;lt;` becomes `&lt;`."""
    return ENTITY.sub(lambda found: entities.unescape(found[0]), text) if "&" in text else text


def control(text: str) -> str:
    """No control characters; white space stays."""
    return text if text.isprintable() else CONTROL.sub("", text)


def whitespace(text: str) -> str:
    """Every run of white space becomes one space, none at the ends."""
    plain = text.isprintable() and "  " not in text and text[:1] != " " != text[-1:]
    return text if plain else " ".join(text.split())


def mask_urls(text: str) -> str:
    return URL.sub("<url>", text)


def mask_mentions(text: str) -> str:
    return MENTION.sub("<user>", text) if "@" in text else text


def mask_emails(text: str) -> str:
    return EMAIL.sub("<email>", text) if "@" in text else text


def accents(text: str) -> str:
    """Letters without their accents; what does not decompose (ø, ß) stays."""
    if text.isascii():
        return text
    bare = (c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return unicodedata.normalize("NFC", "".join(bare))


def clean(table: pa.Table, steps: Sequence[str], columns: Sequence[str], *, shown: int = 10) -> Cleaned:
    """`table` (shards.DOCUMENT and more) with `steps` applied in order to the string `columns`.

    A row counts for a step once, however many of its columns the step altered. The examples are the `shown`
    most telling changes of the column `text`. Raises ParamsError for an unknown step.
    """
    chosen, altered = _chosen(steps), {name: set[int]() for name in steps}
    before = {name: table[name].to_pylist() for name in columns}
    after = {name: _apply(values, chosen, altered) for name, values in before.items()}
    for name in columns:
        if after[name] != before[name]:
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(name), pa.array(after[name], pa.string()))
    examples = _examples(table, before["text"], after["text"], shown) if "text" in before else ()
    return Cleaned(table, Counter({name: len(rows) for name, rows in altered.items()}), examples)


def text(value: str, steps: Sequence[str]) -> str:
    """One text with `steps` applied in order. Raises ParamsError for an unknown step."""
    for _, step in _chosen(steps):
        value = step(value)
    return value


def best(examples: Iterable[Example], shown: int) -> tuple[Example, ...]:
    """The `shown` most telling of all shards' examples, whatever the shards' size: first those changed in
    more than white space, then by hash."""
    return tuple(nsmallest(shown, examples, key=lambda e: (e.only_spaces, e.content, e.place)))


def _chosen(steps: Sequence[str]) -> list[tuple[str, Step]]:
    for name in steps:
        if name not in STEPS:
            raise ParamsError(f"preparation.clean: unknown step {name!r}; {did_you_mean(name, STEPS)}")
    return [(name, STEPS[name]) for name in steps]


def _apply(
    values: list[str], steps: Iterable[tuple[str, Step]], altered: Mapping[str, set[int]]
) -> list[str]:
    """Adds to `altered` the rows that each step changed."""
    for name, step in steps:
        before, values = values, [step(value) for value in values]
        if values != before:
            altered[name].update([row for row, old in enumerate(before) if old != values[row]])
    return values


def _examples(table: pa.Table, before: list[str], after: list[str], shown: int) -> tuple[Example, ...]:
    places, contents = table["place"].to_pylist(), table["content"].to_pylist()
    rows = zip(places, before, after, contents, strict=True)
    changed = (
        Example(place, old, new, content, old.split() == new.split())
        for place, old, new, content in rows
        if old != new
    )
    return tuple(_cut(example) for example in best(changed, shown))


def _cut(example: Example) -> Example:
    """At most CHARACTERS of either text, a few words before the first change."""
    separator = " " if example.only_spaces else None
    before, after = example.before.split(separator), example.after.split(separator)
    pairs = zip(before, after, strict=False)
    same = next((n for n, (old, new) in enumerate(pairs) if old != new), min(len(before), len(after)))
    lead = max(0, same - LEAD)
    old, new = (_from_word(text, lead, separator) for text in (example.before, example.after))
    return Example(example.place, old, new, example.content, example.only_spaces)


def _from_word(text: str, lead: int, separator: str | None) -> str:
    if len(text) <= CHARACTERS or not lead:
        return text[:CHARACTERS]
    rest = text.split(separator, lead)[lead:]
    return ("… " + "".join(rest))[:CHARACTERS]


STEPS: Mapping[str, Step] = {
    "html": html,
    "mojibake": mojibake,
    "unicode": unicode,
    "control": control,
    "whitespace": whitespace,
    "mask_urls": mask_urls,
    "mask_mentions": mask_mentions,
    "mask_emails": mask_emails,
    "accents": accents,
}
