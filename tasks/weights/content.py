"""Show that a file holds what its plan promised, down to the last byte, without loading a model."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ProofError
from tasks.weights import place
from tasks.weights.formats.entries import TensorEntry
from tasks.weights.formats.header import read_header
from tasks.weights.ops import Range
from tasks.weights.plan import Move, Plan, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE = 2**20  # bytes


def structure(plan: Plan, path: Path) -> str:
    """Every tensor of the plan stands in the file under its name, shape and dtype, and nothing else does."""
    entries = read_header(path)
    promised = {move.target: (move.shape, move.dtype) for move in plan.moves}
    held = {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
    wrong = sorted(name for name in promised.keys() | held.keys() if promised.get(name) != held.get(name))
    if wrong:
        lines = [f"- {name}: planned {promised.get(name)}, written {held.get(name)}" for name in wrong]
        raise ProofError(f"{path.name} is not what was planned:\n" + "\n".join(lines))
    start = min((entry.start for entry in entries.values()), default=0)
    if start % place.ITEM:
        raise ProofError(f"{path.name}: the data starts at byte {start:,}, not at a multiple of {place.ITEM}")
    total = sum(entry.stop - entry.start for entry in entries.values())
    return f"{len(entries)} of {len(promised)} tensors as planned, {total:,} bytes, no gap and no rest"


def content(plan: Plan, path: Path, *, finite: bool = True) -> str:
    """Every kept tensor, read backwards through its rule, is the source's, bit for bit; all are `finite`.

    Raises ProofError with every tensor that is not.
    """
    faults = list(_differences(plan, path))
    if finite:
        faults += [fault for entry in read_header(path).values() for fault in _wild(entry)]
    if faults:
        raise ProofError(f"{path.name} does not hold what the source held:\n" + "\n".join(faults))
    kept = [move for move in plan.moves if move.source and not move.rule.lossy]
    again = sum(bool(move.source) for move in plan.moves) - len(kept)
    drawn = sum(not move.source for move in plan.moves)
    size = sum(math.prod(move.shape) for move in kept)
    told = f"{len(kept)} tensors ({size:,} parameters) equal the source's byte for byte"
    more = f", {again} made again alike" if again else ""
    return f"{told}{more}, {drawn} initialised as drawn{'; all values finite' * finite}"


def _differences(plan: Plan, path: Path) -> Iterator[str]:
    from concurrent.futures import ThreadPoolExecutor  # late: slow to import, and not always needed

    entries = read_header(path)
    steps: dict[int, list[Move]] = {}
    for move in plan.moves:
        steps.setdefault(id(move.step), []).append(move)
    with ThreadPoolExecutor() as pool:  # reading leaves the interpreter to others
        for found in pool.map(lambda moves: list(_faults(moves, plan, entries)), steps.values()):
            yield from found


def _faults(moves: Sequence[Move], plan: Plan, held: Mapping[str, TensorEntry]) -> Iterator[str]:
    """Of what one step made: runs of bytes are compared; the rest is undone, or, where that loses something,
    made again."""
    step = moves[0].step
    copies = step.ranges()
    if copies is not None:
        wrong = [m.target for m in moves if not _copied(copies[m.part], held[m.target])]
    elif not step.sources:
        drawn = {m.target: place.initial(m, seed=plan.seed, deviation=plan.deviation) for m in moves}
        wrong = [name for name, array in drawn.items() if not _equal(array, place.array(held[name]))]
    else:
        wrong = [*_undone(step, [place.array(held[name]) for name in step.targets])]
    origin = ", ".join(entry.name for entry in step.sources) or "what its seed draws"
    if wrong:
        yield f"- {', '.join(wrong)} is not {origin}"


def _undone(step: Step, made: "list[NDArray[Any]]") -> Iterator[str]:
    if step.rule.lossy:
        again = zip(step.targets, place.made(step), made, strict=True)
        yield from (name for name, ours, theirs in again if not _equal(ours, theirs))
    else:
        back = step.rule.op.inverse().forward(made, step.dtype)
        same = all(_equal(place.array(entry), array) for entry, array in zip(step.sources, back, strict=True))
        yield from () if same else step.targets


def _copied(runs: Iterable[Range], entry: TensorEntry) -> bool:
    """Whether `entry` consists of `runs`, a megabyte at a time, which stays in the processor's cache."""
    at = entry.start
    with entry.file.open("rb", buffering=0) as ours:
        for run in runs:
            with run.file.open("rb", buffering=0) as theirs:
                for start in range(run.start, run.stop, PIECE):
                    size = min(PIECE, run.stop - start)
                    piece = os.pread(theirs.fileno(), size, start)
                    if len(piece) != size or piece != os.pread(ours.fileno(), size, at):
                        return False
                    at += size
    return at == entry.stop


def _equal(one: "NDArray[Any]", other: "NDArray[Any]") -> bool:
    """Bit for bit: raw items are integers, so that even what is not a number equals itself."""
    import numpy as np

    return one.shape == other.shape and bool(np.array_equal(one, other))


def _wild(entry: TensorEntry) -> Iterator[str]:
    from tasks.weights import values

    if wild := values.not_finite(place.array(entry), entry.dtype):
        yield f"- {entry.name}: {wild:,} values are infinite or not a number, in the source too"
