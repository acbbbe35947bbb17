"""Numbers as people read them, in few columns, and write them."""

import math
import re
from decimal import Decimal
from itertools import groupby

from tasks.errors import InputError

SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*((?:[KMGT]?B)?)", re.IGNORECASE | re.ASCII)
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def figure(value: float | None) -> str:
    """Three digits, fewer of what is small: a column stays narrow."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    distance = abs(value)
    if distance >= 999.5:
        return f"{value:,.0f}" if distance < 10**6 else f"{value:.1e}"
    if distance < 0.001:
        return f"{value:.0e}" if value else "0"
    return f"{value:#.3g}".rstrip(".") if distance >= 0.1 else f"{value:.3f}"


def ranges(numbers: tuple[int, ...]) -> str:
    """Whole numbers in rising order as runs: 0–3, 5, 7–9."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda x: x[1] - x[0])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def human(count: int) -> str:
    """22,713,728 as 22.7 M."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return str(count)


def size(count: int) -> str:
    """90,868,376 bytes as 90.9 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 10**3:,.1f} kB"


def read_size(text: str, option: str) -> int:
    """Bytes that a person means by 5GB: decimal units, as huggingface_hub takes them, or none for bytes.

    Raises InputError for anything but a number above 0 and such a unit.
    """
    found = SIZE.fullmatch(text.strip())
    if not found or not (count := int(Decimal(found[1]) * UNITS[found[2].upper()])):
        raise InputError(
            f"{option} {text}: write a number of bytes, such as 5GB or 500MB, in KB, MB, GB or TB"
        )
    return count


def duration(seconds: float) -> str:
    """4,210 seconds as 1 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def share(part: int, whole: int) -> str:
    """In hundredths; all and nothing are said of all and nothing only."""
    hundredths = 100 * part / whole if whole else 0.0
    if 0 < hundredths < 0.1:
        return "<0.1 %"
    return ">99.9 %" if 99.9 < hundredths < 100 else f"{hundredths:.1f} %"
