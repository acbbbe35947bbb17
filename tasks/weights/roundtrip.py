"""Two more proofs from bytes alone: the way back to the source, and a SHA-256 for every tensor written."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.errors import ProofError
from tasks.weights import content, place
from tasks.weights.formats import TensorEntry, open_checkpoint
from tasks.weights.plan import Plan, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

Result = TypeVar("Result")

PIECE = 2**20  # bytes

Digests = Mapping[str, str]  # tensor -> SHA-256 of its bytes in the file, as hexadecimal digits


def prove(plan: Plan, directory: Path, levels: Collection[str]) -> tuple[dict[str, str], Digests]:
    """Of `levels` inverse and digests: level -> what it found, and the digests to be recorded.

    directory: holds the converted config.json and weights. Raises ProofError with every tensor that is not
    as planned.
    """
    found, sums = dict[str, str](), dict[str, str]()
    written = open_checkpoint(directory).entries if {"inverse", "digests"} & {*levels} else {}
    if "inverse" in levels:
        found["inverse"] = inverse(plan, written)
    if "digests" in levels:
        sums = digests(plan, written)
        found["digests"] = f"{len(sums)} tensors have the SHA-256 that the plan gives them, kept in plan.json"
    return found, sums


def inverse(plan: Plan, written: Mapping[str, TensorEntry]) -> str:
    """Every tensor of the source that the plan keeps comes back from `written`, bit for bit.

    Every rule is undone whole, also where its result was copied as runs of bytes.
    """
    steps = [step for step in _steps(plan) if step.sources]
    ways = [step for step in steps if not step.rule.lossy]
    if faults := [fault for step in ways for fault in _not_back(step, written)]:
        raise ProofError("the way back does not lead to the source:\n" + "\n".join(faults))
    back = {entry.name for step in ways for entry in step.sources}
    gone = {entry.name for step in steps for entry in step.sources} - back
    lossy = f", {len(gone)} went through a rule without a way back" if gone else ""
    dropped = f", {len(plan.unused)} are not used" if plan.unused else ""
    return f"{len(back)} tensors of the source come back bit for bit{lossy}{dropped}"


def digests(plan: Plan, written: Mapping[str, TensorEntry]) -> dict[str, str]:
    """The SHA-256 of every tensor written; each must be that of what the plan makes of the source."""
    found = _concurrently(lambda name: _hashed(written[name]), sorted(written))
    faults = [
        f"- {name} has {found[name][:12]}…, the plan makes {expected[:12]}…"
        for name, expected in _expected(plan, written).items()
        if found[name] != expected
    ]
    if faults:
        raise ProofError("tensors do not have the SHA-256 that was planned:\n" + "\n".join(faults))
    return found


def _expected(plan: Plan, written: Mapping[str, TensorEntry]) -> dict[str, str]:
    """The digest that the plan gives to each tensor, without those that equal the source's byte for byte."""
    plain, made = content.divided(plan)
    sources = {move.target: move.step.sources[0] for move in plain}
    same = _concurrently(lambda name: content.copied(sources[name], written[name]), list(sources))
    expected = {name: _hashed(sources[name]) for name, well in same.items() if not well}
    for moves in made:
        expected |= zip(moves[0].step.targets, _made(plan, moves[0].step), strict=True)
    return expected


def _concurrently(work: Callable[[str], Result], names: Sequence[str]) -> dict[str, Result]:
    """Reading, comparing and hashing leave the interpreter to other threads."""
    from concurrent.futures import ThreadPoolExecutor  # late: slow to import, and not always needed

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(work, names), strict=True))


def _steps(plan: Plan) -> list[Step]:
    return [*{id(move.step): move.step for move in plan.moves}.values()]


def _not_back(step: Step, written: Mapping[str, TensorEntry]) -> Iterator[str]:
    from tasks.weights import tiles  # late: imports numpy

    made = [place.array(written[name]) for name in step.targets]
    back = step.rule.op.inverse().forward(made, step.dtype)
    for entry, array in zip(step.sources, back, strict=True):
        if not tiles.equal(place.array(entry), array):
            yield f"- {entry.name} does not come back from {', '.join(step.targets)}"


def _made(plan: Plan, step: Step) -> list[str]:
    """The digest of each tensor that a step makes."""
    if step.sources:
        return [_hashed_array(array) for array in place.made(step)]
    drawn = (move for move in plan.moves if move.step is step)
    return [_hashed_array(place.initial(m, seed=plan.seed, deviation=plan.deviation)) for m in drawn]


def _hashed_array(array: "NDArray[Any]") -> str:
    from tasks.weights import tiles  # late: imports numpy

    summed = hashlib.sha256()
    for piece in tiles.pieces(array):
        summed.update(piece.data)
    return summed.hexdigest()


def _hashed(entry: TensorEntry) -> str:
    """Of the bytes in the file, a megabyte at a time."""
    summed = hashlib.sha256()
    with entry.file.open("rb", buffering=0) as stream:
        for start in range(entry.start, entry.stop, PIECE):
            summed.update(os.pread(stream.fileno(), min(PIECE, entry.stop - start), start))
    return summed.hexdigest()
