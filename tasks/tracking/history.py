"""Which version was champion when, by whom and why: one tag of the registered model for each move."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

PREFIX = "regraft.history."
FORMER = "regraft.history"  # one tag for all moves, as versions before 0.2 wrote it
LONGEST_REASON = 2000  # characters; escaped, they still fit the 5,000 of a tag


@dataclass(frozen=True)
class Move:
    """One line of the history: the alias went to `version`."""

    version: str
    at: str
    by: str
    reason: str
    action: str  # promote | rollback | found: by other hands | broken: the line before it came to nothing


def read(tags: Mapping[str, str]) -> list[Move]:
    """Every move, the first one first. What has not been rewritten yet is read from the one tag."""
    if FORMER in tags:
        return [Move(**line) for line in json.loads(tags[FORMER])]
    lines = sorted(name for name in tags if name.startswith(PREFIX))
    return [Move(**json.loads(tags[name])) for name in lines]


def write(moves: Sequence[Move], *, after: int = 0) -> dict[str, str]:
    """The tags of `moves`, which follow `after` earlier ones."""
    short = [replace(move, reason=move.reason[:LONGEST_REASON]) for move in moves]
    return {
        f"{PREFIX}{number:06}": json.dumps(asdict(move), ensure_ascii=False)
        for number, move in enumerate(short, start=after + 1)
    }


def settled(moves: Sequence[Move], now: str | None, finished: str | None, at: str) -> list[Move]:
    """`moves`, and a line where the last did not bring the alias to `now`; `finished`: where one last did."""
    if moves and now is finished is None and moves[-1].action == "promote":
        return [*moves, Move("", at, "unknown", "no version was champion: that move broke off", "broken")]
    if now is None or (moves and moves[-1].version == now):
        return list(moves)
    if moves and now == finished:
        return [*moves, Move(now, at, "unknown", "the alias had stayed here: that move broke off", "broken")]
    return [
        *moves,
        Move(now, at, "unknown", "the alias was found here: it was moved by other hands", "found"),
    ]


def former(moves: Sequence[Move], now: str) -> str | None:
    """The champion before `now`: a promotion is put on a stack, a rollback takes off all above its target."""
    stack: list[str] = []
    for move in _ended(moves):
        if move.action == "rollback" and move.version in stack:
            del stack[_last(stack, move.version) + 1 :]
        elif not stack or stack[-1] != move.version:
            stack.append(move.version)
    if now in stack:
        place = _last(stack, now)
        return stack[place - 1] if place else None
    return stack[-1] if stack else None  # the alias was moved by other hands


def rolled_back(moves: Sequence[Move]) -> set[str]:
    """The versions that a person took the alias from, and that nobody promoted again since."""
    taken: set[str] = set()
    champion = None
    for move in _ended(moves):
        if move.action == "rollback" and champion is not None:
            taken.add(champion)
        taken.discard(move.version)
        champion = move.version
    return taken


def _ended(moves: Sequence[Move]) -> list[Move]:
    """Without the moves that broke off, and the lines that say so."""
    ended: list[Move] = []
    for move in moves:
        if move.action == "broken":
            ended.pop()
        else:
            ended.append(move)
    return ended


def _last(stack: Sequence[str], version: str) -> int:
    return max(place for place, entry in enumerate(stack) if entry == version)
