"""A params.yaml changed where it has to be: every other character stays as it stands, comments included."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pydantic import BaseModel

from tasks import params as parameters
from tasks.errors import ParamsError
from tasks.params import Params

Path = tuple[str, ...]


@dataclass(frozen=True, order=True)
class Edit:
    """`new` in the place of the characters from `start` to `stop`."""

    start: int
    stop: int
    new: str


def rewrite(
    text: str, wanted: Params, *, name: str = "params.yaml", comments: Mapping[str, str] | None = None
) -> str:
    """`text` with the keys changed, or added, in which its params differ from `wanted`.

    comments: dotted key -> what is written behind it, where its value takes several lines.
    Raises ParamsError for a text that is no params.yaml, and for one whose keys cannot be changed one by one,
    as where one value stands for two keys.
    """
    former, tree = parameters.parse(text, name=name), parameters.compose(text)
    before, after = (one.model_dump(mode="json") for one in (former, wanted))
    places = dict.fromkeys(_standing(tree, path) for path in _differences((), before, after))
    edits = [_edit(text, tree, path, wanted, (comments or {}).get(".".join(path), "")) for path in places]
    result = text
    for edit in sorted(edits, reverse=True):
        result = result[: edit.start] + edit.new + result[edit.stop :]
    _demand(result, wanted, name, [".".join(path) for path in places])
    return result


def migrate(text: str, *, name: str = "params.yaml") -> tuple[str, dict[str, str]]:
    """`text` with today's names in the place of former ones, and which these were (former -> today's).

    Raises ParamsError for a text that is no params.yaml under today's names either, and where a name cannot
    be changed in place.
    """
    text += "" if text.endswith("\n") else _newline(text)
    found = {}
    for former, now in reversed([*parameters.FORMER.items()]):  # each goes before its siblings
        if (entry := _entry(text, former)) is not None:
            text, found[former] = _renamed(text, entry, former, now, name), now
    parameters.parse(text, name=name)
    return text, found


def _entry(text: str, dotted: str) -> tuple[Any, Any, Any] | None:
    """The mapping that holds the key, the key and its value, where it is there."""
    *above, last = dotted.split(".")
    node = parameters.compose(text)
    for key in above:
        if key not in _children(node):
            return None
        node = _children(node)[key][1]
    return (node, *_children(node)[last]) if last in _children(node) else None


def _renamed(text: str, entry: tuple[Any, Any, Any], former: str, now: str, name: str) -> str:
    """A key gets another name where it stands; what moves a level down, with the comments right above it,
    becomes the first below its new parent, which is made there if it is missing."""
    holder, key, value = entry
    *_, parent, last = now.split(".")
    if former.count(".") == now.count("."):
        return str(text[: key.start_mark.index] + last + text[key.end_mark.index :])
    above = _children(holder).get(parent)
    if holder.flow_style or (above and getattr(above[1], "flow_style", True)):
        line = key.start_mark.line + 1
        raise ParamsError(f"{name}:{line}: {former} cannot be moved in place: write {now} by hand")
    lines = text.splitlines(keepends=True)
    first, stop = _comments(lines, key.start_mark), text.count("\n", 0, _stop(value)) + 1
    moved = [f"  {line}" if line.strip() else line for line in lines[first:stop]]
    del lines[first:stop]
    if above is None:
        place, moved = first, [f"{' ' * key.start_mark.column}{parent}:{_newline(text)}", *moved]
    else:
        place = above[0].start_mark.line + 1
        place -= len(moved) * (place > first)
    lines[place:place] = moved
    return "".join(lines)


def _comments(lines: list[str], mark: Any) -> int:
    """The first line of the comments that stand right above a key, at its column; else the key's own."""
    first: int = mark.line
    while first and lines[first - 1].startswith(f"{' ' * mark.column}#"):
        first -= 1
    return first


def _demand(result: str, wanted: Params, name: str, keys: list[str]) -> None:
    try:
        same = parameters.parse(result, name=name) == wanted
    except ParamsError:
        same = False
    if not same:
        raise ParamsError(
            f"{name}: {', '.join(keys)} cannot be changed in place: give every key a line and a value of its "
            "own, without anchors, and try again"
        )


def _differences(path: Path, before: Any, after: Any) -> Iterator[Path]:
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            yield from _differences((*path, key), before[key], after[key])
    elif before != after:
        yield path


def _children(node: Any) -> dict[str, tuple[Any, Any]]:
    """Key -> its node and its value's."""
    return {key.value: (key, value) for key, value in node.value} if node.id == "mapping" else {}


def _standing(tree: Any, path: Path) -> Path:
    """`path` up to the first key that is not in the document."""
    for length, key in enumerate(path, start=1):
        if key not in _children(tree):
            return path[:length]
        tree = _children(tree)[key][1]
    return path


def _edit(text: str, tree: Any, path: Path, wanted: Params, comment: str) -> Edit:
    parent = reduce(lambda node, key: _children(node)[key][1], path[:-1], tree)
    value = _plain(reduce(_at, path, wanted))
    if path[-1] not in _children(parent):
        return _addition(text, parent, f"{path[-1]}: {parameters.inline(value)}")
    key, former = _children(parent)[path[-1]]
    if _long(value) and not parent.flow_style:
        lines = [f"{path[-1]}:{f'  # {comment}' if comment else ''}"]
        lines += [f"{' ' * (key.start_mark.column + 2)}- {parameters.inline(item)}" for item in value]
        return Edit(key.start_mark.index, _line_end(text, _stop(former)), _newline(text).join(lines))
    return Edit(key.start_mark.index, _stop(former), f"{path[-1]}: {parameters.inline(value)}")


def _at(holder: Any, key: str) -> Any:
    return holder[key] if isinstance(holder, dict) else getattr(holder, key)


def _addition(text: str, parent: Any, entry: str) -> Edit:
    """`entry` before the other keys of a mapping."""
    start = int(parent.start_mark.index)
    if parent.flow_style:
        return Edit(start + 1, start + 1, f"{entry}, ")
    return Edit(start, start, f"{entry}{_newline(text)}{' ' * parent.start_mark.column}")


def _plain(value: Any) -> Any:
    """As it is written: of the items of a list only what was said of them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return [
            v.model_dump(mode="json", exclude_unset=True) if isinstance(v, BaseModel) else v for v in value
        ]
    return value


def _long(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _stop(node: Any) -> int:
    """Behind a value's last character; a block's own mark is behind the comments that follow it, too."""
    if node.id == "scalar" or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _stop(last[1] if node.id == "mapping" else last)


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end - (text[end - 1] == "\r")


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
