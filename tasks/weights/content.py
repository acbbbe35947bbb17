"""Show that a file holds what its plan promised, down to the last byte, without loading a model."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ProofError
from tasks.weights import place
from tasks.weights.formats import INDEX
from tasks.weights.formats.entries import TensorEntry
from tasks.weights.formats.header import read_header
from tasks.weights.formats.index import read_shards
from tasks.weights.layout import ITEM
from tasks.weights.plan import Move, Plan, Step
from tasks.weights.rules import KEEP

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE = 2**20  # bytes


def structure(plan: Plan, path: Path) -> str:
    """Every tensor of the plan stands in the file under its name, shape and dtype, and nothing else does.

    path: model.safetensors, or the index of several files. Raises ProofError with every tensor that does not.
    """
    entries = _held(path)
    promised = {move.target: (move.shape, move.dtype) for move in plan.moves}
    held = {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
    wrong = sorted(name for name in promised.keys() | held.keys() if promised.get(name) != held.get(name))
    if wrong:
        lines = [f"- {name}: planned {promised.get(name)}, written {held.get(name)}" for name in wrong]
        raise ProofError(f"{path.name} is not what was planned:\n" + "\n".join(lines))
    starts: dict[str, int] = {}
    for entry in entries.values():
        starts[entry.file.name] = min(entry.start, starts.get(entry.file.name, entry.start))
    for name, start in starts.items():
        if start % ITEM:
            raise ProofError(f"{name}: the data starts at byte {start:,}, not at a multiple of {ITEM}")
    total = sum(entry.stop - entry.start for entry in entries.values())
    return f"{len(entries)} of {len(promised)} tensors as planned, {total:,} bytes, no gap and no rest"


def content(plan: Plan, path: Path, *, finite: bool = True) -> str:
    """Every kept tensor, read backwards through its rule, is the source's, bit for bit; all are `finite`.

    Raises ProofError with every tensor that is not.
    """
    faults = list(_differences(plan, path))
    if finite:
        faults += [fault for entry in _held(path).values() for fault in _wild(entry)]
    if faults:
        raise ProofError(f"{path.name} does not hold what the source held:\n" + "\n".join(faults))
    kept = [move for move in plan.moves if move.source and not move.rule.lossy]
    again = sum(bool(move.source) for move in plan.moves) - len(kept)
    drawn = sum(not move.source for move in plan.moves)
    size = sum(math.prod(move.shape) for move in kept)
    told = f"{len(kept)} tensors ({size:,} parameters) equal the source's byte for byte"
    more = f", {again} made again alike" if again else ""
    return f"{told}{more}, {drawn} initialised as drawn{'; all values finite' * finite}"


def _held(path: Path) -> Mapping[str, TensorEntry]:
    """Every tensor of a file, or of those that an index names."""
    if path.name == INDEX:
        return read_shards(path, suffix=".safetensors", read=read_header)
    return read_header(path)


def _differences(plan: Plan, path: Path) -> Iterator[str]:
    from concurrent.futures import ThreadPoolExecutor  # late: slow to import, and not always needed

    entries = _held(path)
    plain, made = divided(plan)
    with ThreadPoolExecutor() as pool:  # reading leaves the interpreter to others
        same = pool.map(lambda move: copied(move.step.sources[0], entries[move.target]), plain)
        yield from (
            _told(move.step, [move.target]) for move, well in zip(plain, same, strict=True) if not well
        )
    for moves in made:
        if wrong := _wrong(moves, plan, entries):
            yield _told(moves[0].step, wrong)


def divided(plan: Plan) -> tuple[list[Move], list[list[Move]]]:
    """Tensors that only change their names, and what else each step makes."""
    plain, made = [], dict[int, list[Move]]()
    for move in plan.moves:
        if move.source and move.rule.op == KEEP and not move.source.decoded:
            plain.append(move)
        else:
            made.setdefault(id(move.step), []).append(move)
    return plain, list(made.values())


def _told(step: Step, wrong: Sequence[str]) -> str:
    origin = ", ".join(entry.name for entry in step.sources) or "what its seed draws"
    return f"- {', '.join(wrong)} is not {origin}"


def _wrong(moves: Sequence[Move], plan: Plan, held: Mapping[str, TensorEntry]) -> list[str]:
    """Of what one step made; it is undone, whatever runs of bytes it was copied from, and compared then."""
    from tasks.weights import tiles  # late: imports numpy

    step = moves[0].step
    if not step.sources:
        drawn = {m.target: place.initial(m, seed=plan.seed, deviation=plan.deviation) for m in moves}
        return [name for name, array in drawn.items() if not tiles.equal(array, place.array(held[name]))]
    return [*_undone(step, [place.array(held[name]) for name in step.targets])]


def _undone(step: Step, made: "list[NDArray[Any]]") -> Iterator[str]:
    from tasks.weights import tiles

    if step.rule.lossy:
        again = zip(step.targets, place.made(step), made, strict=True)
        yield from (name for name, ours, theirs in again if not tiles.equal(ours, theirs))
    else:
        back = step.rule.op.inverse().forward(made, step.dtype)
        same = all(
            tiles.equal(place.array(entry), array) for entry, array in zip(step.sources, back, strict=True)
        )
        yield from () if same else step.targets


def copied(source: TensorEntry, entry: TensorEntry) -> bool:
    """Whether two tensors have the same bytes, a megabyte at a time, which stays in the processor's cache."""
    if source.nbytes != entry.nbytes:
        return False
    with source.file.open("rb", buffering=0) as theirs, entry.file.open("rb", buffering=0) as ours:
        for start in range(0, entry.nbytes, PIECE):
            size = min(PIECE, entry.nbytes - start)
            piece = os.pread(ours.fileno(), size, entry.start + start)
            if len(piece) != size or piece != os.pread(theirs.fileno(), size, source.start + start):
                return False
    return True


def _wild(entry: TensorEntry) -> Iterator[str]:
    from tasks.weights import values
    from tasks.weights.formats.arrays import read_raw

    starts = range(entry.start, entry.stop, PIECE)
    pieces = ((start, min(start + PIECE, entry.stop)) for start in starts)
    wild = sum(values.not_finite(read_raw(entry.file, *piece, entry.dtype), entry.dtype) for piece in pieces)
    if wild:
        yield f"- {entry.name}: {wild:,} values are infinite or not a number, in the source too"
