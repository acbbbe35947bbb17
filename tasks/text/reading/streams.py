"""From a file's bytes to lines of text: unpacking under a cap, and one encoding for a whole file.

A byte that is no character in that encoding becomes a lone surrogate (as PEP 383 does), so that it condemns
its own row alone and the bytes can be had back.
"""

import codecs
import io
import logging
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from tasks.errors import ParamsError, SourceError

AUTO = "auto"
PACKED = {".gz": "gzip", ".zst": "zstd"}
SAMPLE = 2**20  # bytes by which an encoding is told
BUFFER = 2**18
DOUBT = 0.05  # of charset_normalizer's measure of mess: measured 0.02 between two readings of one French text
TORN = "regraft.torn"  # the name of our way with undecodable bytes among Python's
TORN_CHARACTER = re.compile("[\ud800-\udfff]")
BYTE_ORDER_MARKS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NO_TABLES = {
    b"version https://git-lfs.github.com/spec/": "a git-LFS pointer, not the data: run `git lfs pull`",
    b"PK\x03\x04": "a zip or Excel file: unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel file: save the sheet as CSV",
    b"%PDF": "a PDF: bring its text as CSV or as text files",
    b"SQLite format 3": "a SQLite database: export the table as CSV",
}
NOT_THIS_SUFFIX = {  # readable, but by another reader
    b"PAR1": ("a Parquet file", (".parquet", ".pq")),
    b"ARROW1": ("an Arrow file", (".arrow", ".feather", ".ipc")),
    b"\x1f\x8b": ("gzip-compressed", (".gz",)),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", (".zst",)),
}
HTML = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
TAR = slice(257, 262)  # where a tar archive says "ustar"

log = logging.getLogger(__name__)


def suffix(path: Path) -> str:
    """The suffix that says what is inside, in lower case: `.csv` of `a.CSV.gz`."""
    inner = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return inner.suffix.lower()


def unpacked(path: Path, maximum_bytes: int) -> BinaryIO:
    """The file's bytes, decompressed as its suffix says, never more than a buffer of them at once.

    Reading raises SourceError past `maximum_bytes` of unpacked bytes, and for a torn archive.
    """
    codec = PACKED.get(path.suffix.lower())
    if codec is None:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path, codec, maximum_bytes), BUFFER))


class _Unpacked(io.RawIOBase):
    def __init__(self, path: Path, codec: str, maximum_bytes: int) -> None:
        self._path, self._maximum, self._given = path, maximum_bytes, 0
        self._stream = pa.input_stream(str(path), compression=codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(f"{self._path.name} cannot be unpacked: {error}; fetch it again") from None
        self._given += len(data)
        if self._given > self._maximum:
            raise SourceError(
                f"{self._path.name} unpacks to more than {self._maximum} bytes: if that is no mistake, "
                "raise sources.text.maximum_bytes"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def refuse_other_formats(path: Path, maximum_bytes: int) -> None:
    """Raises SourceError naming what the file is, where it is no text and not what its suffix says."""
    with path.open("rb") as stream:
        _refuse(path, stream.read(512))
    if path.suffix.lower() in PACKED:
        with unpacked(path, maximum_bytes) as stream:
            _refuse(path, stream.read(512))


def _refuse(path: Path, start: bytes) -> None:
    for magic, what in NO_TABLES.items():
        if start.startswith(magic):
            raise SourceError(f"{path.name} is {what}")
    for magic, (found, suffixes) in NOT_THIS_SUFFIX.items():
        if start.startswith(magic) and path.suffix.lower() not in suffixes:
            raise SourceError(f"{path.name} is {found}: give it the suffix {suffixes[0]}")
    if HTML.match(start):
        raise SourceError(f"{path.name} is an HTML page: fetch the file itself, perhaps after signing in")
    if start[TAR] == b"ustar":
        raise SourceError(f"{path.name} is a tar archive: unpack it and name the folder")


def encoding(path: Path, declared: str, maximum_bytes: int) -> str | None:
    """The declared encoding, or for `auto` the file's own, told once from its first MiB; None if none fits.

    A byte order mark decides; then UTF-8, if the sample has more well-formed characters beyond ASCII than
    bytes that are none (in UTF-8 text a stray byte is a fault, in other text nearly all such bytes are); then
    the best guess of charset_normalizer. Raises ParamsError for an encoding that Python does not know.
    """
    if declared != AUTO:
        return _known(declared)
    with unpacked(path, maximum_bytes) as stream:
        sample = stream.read(SAMPLE)
    for mark, name in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark):
            return name
    if _looks_like_utf8(sample):
        return "utf-8"
    guessed = _guess(sample)
    if guessed:
        log.warning("%s is read as %s, a guess: say it in sources.text.encoding", path.name, guessed)
    return guessed


def _guess(sample: bytes) -> str | None:
    """The commonest of the eight-bit encodings has the benefit of the doubt: French is no better Baltic."""
    from charset_normalizer import from_bytes

    found = from_bytes(sample)
    best = found.best()
    for match in found:
        if best and match.encoding == "cp1252" and match.coherence >= best.coherence:
            return "cp1252" if match.chaos <= best.chaos + DOUBT else best.encoding
    return best.encoding if best else None


def _known(name: str) -> str:
    try:
        b"a".decode(name, "replace")
    except LookupError:
        raise ParamsError(f"sources.text.encoding: Python knows no encoding {name!r}; try utf-8") from None
    except UnicodeError as error:
        raise ParamsError(f"sources.text.encoding: {name} decodes no text: {error}") from None
    return name


def _looks_like_utf8(sample: bytes) -> bool:
    """A character cut by the sample's end counts as neither."""
    text = codecs.getincrementaldecoder("utf-8")(_handler()).decode(sample, final=len(sample) < SAMPLE)
    torn = len(TORN_CHARACTER.findall(text))
    return torn == 0 or sum(character > "\x7f" for character in text) - torn > torn


def lines(path: Path, encoding: str, *, ends: str, maximum_row: int, maximum_bytes: int) -> Iterator[str]:
    """Each line with its end. `ends` is open()'s `newline`: "" splits at any of three, "\\n" at that alone.

    Of a line beyond `maximum_row` characters the first `maximum_row` + 1 are given, and the rest is not held.
    """
    with (
        unpacked(path, maximum_bytes) as stream,
        io.TextIOWrapper(stream, encoding, errors=_handler(), newline=ends) as text,
    ):
        try:
            yield from _bounded(text, maximum_row)
        except UnicodeError as error:
            raise SourceError(f"{path.name} does not decode as {encoding}: {error}") from None


def _bounded(text: io.TextIOWrapper, maximum: int) -> Iterator[str]:
    read = partial(text.readline, maximum + 1)
    first = read().removeprefix("\ufeff")
    for line in chain((first,) if first else (), iter(read, "")):
        if len(line) > maximum and not _ended(line):
            while (rest := text.readline(BUFFER)) and not _ended(rest):
                pass
        yield line


def _ended(line: str) -> bool:
    return line.endswith(("\n", "\r"))


def is_torn(text: str) -> bool:
    try:
        text.encode()  # some times quicker than a search for surrogates
    except UnicodeEncodeError:
        return True
    return False


def mend(text: str) -> str:
    """U+FFFD for each byte that was no character."""
    return text if text.isascii() else TORN_CHARACTER.sub("\ufffd", text)


def decode(data: bytes, encoding: str) -> str:
    return data.decode(encoding, _handler()).removeprefix("\ufeff")


def encode(text: str, encoding: str) -> bytes:
    """The bytes that `lines` made `text` of; UTF-8 with escapes where the encoding cannot say."""
    try:
        return text.encode(encoding, _handler())
    except UnicodeError:
        return text.encode("utf-8", "backslashreplace")


def _handler() -> str:
    codecs.register_error(TORN, _escape)
    return TORN


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """As `surrogateescape`, which leaves out the bytes below 128 that UTF-16 and UTF-32 can fail at."""
    if isinstance(error, UnicodeDecodeError):
        torn = error.object[error.start : error.end]
        return "".join(chr(0xDC00 + byte) for byte in torn), error.end
    if isinstance(error, UnicodeEncodeError):
        characters = error.object[error.start : error.end]
        if all("\udc00" <= character <= "\udcff" for character in characters):
            return bytes(ord(character) - 0xDC00 for character in characters), error.end
    raise error
