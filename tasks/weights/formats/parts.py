"""Checkpoints of which every file holds a part of every tensor: consolidated.00.pth, consolidated.01.pth, …

So Meta writes what was trained on several accelerators (github.com/meta-llama/llama, model parallel). How the
parts join is not in the files: the family's table knows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import Checkpoint, TensorEntry, refuse
from tasks.weights.formats.impostors import inside

PART = re.compile(r"consolidated\.([0-9]{2})\.pth")


def find_parts(directory: Path) -> tuple[str, ...]:
    """The names of such files, from 00 on; none where there is none.

    Raises CheckpointError naming those that are missing before the last.
    """
    found = {int(part[1]) for path in directory.iterdir() if (part := PART.fullmatch(path.name))}
    names = tuple(f"consolidated.{number:02}.pth" for number in range(max(found, default=-1) + 1))
    if missing := [name for number, name in enumerate(names) if number not in found]:
        raise CheckpointError(
            f"{directory} holds {names[-1]} and lacks {', '.join(missing)}: every tensor has a part in each "
            "of them, so fetch what is missing"
        )
    return names


def read_parts(
    directory: Path, names: tuple[str, ...], read: Callable[[Path], Mapping[str, TensorEntry]]
) -> Checkpoint:
    """The parts of every tensor under `0:name`, `1:name`, …; of one file the tensors themselves.

    read: what reads one file. Raises CheckpointError with every tensor that is not in all files.
    """
    held = {name: read(inside(directory, name)) for name in names}
    if len(names) == 1:
        return Checkpoint(directory, held[names[0]], {}, "torch")
    refuse(directory, list(_missing(held)), "fetch the files again, all from one checkpoint")
    entries = {
        f"{number}:{name}": replace(entry, name=f"{number}:{name}")
        for number, part in enumerate(held.values())
        for name, entry in part.items()
    }
    return Checkpoint(directory, entries, {}, "torch", parts=len(names))


def _missing(held: Mapping[str, Mapping[str, TensorEntry]]) -> Iterator[str]:
    for name in dict.fromkeys(name for part in held.values() for name in part):
        if lacking := [file for file, part in held.items() if name not in part]:
            yield f"tensor {name!r} is missing in {', '.join(lacking)}"
