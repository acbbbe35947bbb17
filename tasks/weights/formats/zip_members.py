"""Where the members of a zip lie, once the zip is shown to mean one thing only.

Readers of zip files differ in what they believe: torch takes the first of two members of one name, Python
the last; one trusts the directory at the end, the other the header before the data. What two readers could
see differently is refused. Format: APPNOTE.TXT 6.3.9 of PKWARE.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import refuse

LOCAL = struct.Struct("<4s5H3I2H")
ENCRYPTED, LATER, UTF8 = 0x41, 0x8, 0x800  # flag bits; LATER: sizes and CRC follow the data
ELSEWHERE = 0xFFFF_FFFF  # the size stands in a zip64 field
CHUNK = 2**20
MOST_UNPACKED = 100  # bytes of a packed one; trained weights hardly shrink, a bomb does by a thousand
SPARE = 16 * 2**20  # bytes that any zip may unpack to
BROKEN = (
    zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, OSError, struct.error,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One member: `file[start:stop]` holds its bytes, packed unless `stored`."""

    name: str
    start: int
    stop: int
    size: int  # bytes when unpacked
    stored: bool


def check(path: Path) -> Mapping[str, Member]:
    """Every member of a zip file by name, after one pass over the file that compares all CRCs.

    Raises CheckpointError listing members that stand twice, overlap, are encrypted, contradict their own
    header or were changed.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            infos = archive.infolist()
            members = [_located(stream, info) for info in infos]
            faults = [*_placement_faults(infos, members, path.stat().st_size), *_header_faults(stream, infos)]
            refuse(path, faults + list(_bomb_fault(members)))
            refuse(path, list(_changed(archive, infos, members)))
    except BROKEN as error:
        raise CheckpointError(f"{path} is a torn or malformed zip ({error}): fetch it again") from None
    return {member.name: member for member in members}


def read_member(path: Path, member: Member, *, most: int) -> bytes:
    """The bytes of a stored member. Raises CheckpointError if they are more than `most`."""
    if not member.stored:
        raise CheckpointError(f"{path} is not usable: member {member.name!r} is compressed")
    if member.size > most:
        raise CheckpointError(
            f"{path} is not usable: member {member.name!r} has {member.size:,} bytes, more than the {most:,} "
            "that are allowed"
        )
    with path.open("rb") as stream:
        stream.seek(member.start)
        return stream.read(member.size)


def _local(stream: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, ...]:
    """Flags, method, CRC, packed size, size, length of the name, length of the extra fields."""
    stream.seek(info.header_offset)
    signature, _, flags, method, _, _, *rest = LOCAL.unpack(stream.read(LOCAL.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no header before {info.orig_filename!r}")
    return flags, method, *rest


def _located(stream: BinaryIO, info: zipfile.ZipInfo) -> Member:
    *_, name, extra = _local(stream, info)
    start = info.header_offset + LOCAL.size + name + extra
    stored = info.compress_type == zipfile.ZIP_STORED
    return Member(info.orig_filename, start, start + info.compress_size, info.file_size, stored)


def _placement_faults(infos: list[zipfile.ZipInfo], members: list[Member], size: int) -> Iterator[str]:
    end = 0
    seen: set[str] = set()
    for info, member in sorted(zip(infos, members, strict=True), key=lambda pair: pair[0].header_offset):
        if member.name in seen:
            yield f"member {member.name!r} stands in it twice"
        seen.add(member.name)
        if info.header_offset < end or member.stop > size:
            yield f"member {member.name!r} overlaps another or ends beyond the file"
        end = max(end, member.stop)
    if all(info.header_offset for info in infos) and infos:
        yield "there are bytes before its first member"


def _header_faults(stream: BinaryIO, infos: list[zipfile.ZipInfo]) -> Iterator[str]:
    for info in infos:
        if info.flag_bits & ENCRYPTED:
            yield f"member {info.orig_filename!r} is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"member {info.orig_filename!r} is packed in a way ({info.compress_type}) that is not read"
        elif info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            yield f"member {info.orig_filename!r} is stored, but claims two sizes"
        elif not _agrees(stream, info):
            yield f"member {info.orig_filename!r} and the header before it disagree"


def _agrees(stream: BinaryIO, info: zipfile.ZipInfo) -> bool:
    """Whether the header before a member says of it what the directory at the end does."""
    flags, method, crc, packed, size, length, _ = _local(stream, info)
    name = stream.read(length).decode("utf-8" if flags & UTF8 else "cp437")
    sizes = packed in (info.compress_size, ELSEWHERE) and size in (info.file_size, ELSEWHERE)
    later = bool(flags & LATER) and (crc, packed, size) in ((0, 0, 0), (0, ELSEWHERE, ELSEWHERE))
    alike = (flags, method, name) == (info.flag_bits, info.compress_type, info.orig_filename)
    return alike and (later or (sizes and crc == info.CRC))


def _bomb_fault(members: list[Member]) -> Iterator[str]:
    packed = sum(member.stop - member.start for member in members)
    unpacked = sum(member.size for member in members)
    if unpacked > MOST_UNPACKED * packed + SPARE:
        yield f"its {packed:,} bytes unpack to {unpacked:,}, which no weights do"


def _changed(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], members: list[Member]) -> Iterator[str]:
    """Members that differ from their CRC: stored ones several at a time, packed ones as they unpack."""
    from concurrent.futures import ThreadPoolExecutor  # late: slow to import, and for zips alone

    from isal.isal_zlib import crc32  # three times as fast as zlib's

    stored = [(info, member) for info, member in zip(infos, members, strict=True) if member.stored]
    path = Path(str(archive.filename))
    with ThreadPoolExecutor() as pool:  # reading and adding up leave the interpreter to others
        found = list(pool.map(lambda pair: _crc(path, pair[1], crc32), stored))
    for (info, _), crc in zip(stored, found, strict=True):
        if crc != info.CRC:
            yield f"member {info.orig_filename!r} was changed or torn (Bad CRC-32): fetch it again"
    yield from _badly_packed(archive, [info for info, m in zip(infos, members, strict=True) if not m.stored])


def _crc(path: Path, member: Member, crc32: Callable[[bytes, int], int]) -> int:
    crc = 0
    with path.open("rb", buffering=0) as stream:
        stream.seek(member.start)
        for start in range(member.start, member.stop, CHUNK):
            crc = crc32(stream.read(min(CHUNK, member.stop - start)), crc)
    return crc


def _badly_packed(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> Iterator[str]:
    for info in infos:
        try:
            with archive.open(info) as stream:
                read = 0
                while chunk := stream.read(CHUNK):
                    read += len(chunk)
        except BROKEN as error:
            yield f"member {info.orig_filename!r} was changed or torn ({error}): fetch it again"
            continue
        if read != info.file_size:
            yield f"member {info.orig_filename!r} holds {read:,} bytes, not {info.file_size:,}"
