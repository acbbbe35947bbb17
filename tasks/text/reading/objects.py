"""Read JSON lines: one object a line, and a faulty line costs itself."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from tasks.errors import SourceError
from tasks.text.reading import streams
from tasks.text.reading.cells import Fault
from tasks.text.reading.layout import UNDECODABLE, Layout, Row, check_columns, is_too_large, lines, too_large

LOOKED_AT = 1000  # rows in one of which a column must occur


class _Object(NamedTuple):
    line: int
    value: dict[str, Any] | None
    raw: str
    fault: tuple[str, str] | None
    torn: bool


def rows(path: Path, encoding: str, columns: Sequence[str], layout: Layout) -> Iterator[Row]:
    """The values of `columns`, null where an object has none.

    Raises SourceError for an empty file, an array, and a column that is in none of the first objects.
    """
    objects = _objects(path, encoding, layout)
    first = list(islice(objects, LOOKED_AT))
    if not first:
        raise SourceError(f"{path.name} is empty")
    known = {key for item in first if item.value is not None for key in item.value}
    if known:
        check_columns(columns, sorted(known), path.name)
    for line, value, raw, fault, torn in chain(first, objects):
        cells = () if value is None else [value.get(column) for column in columns]
        yield Row(line, cells, raw, fault, torn)


def columns(path: Path, encoding: str, layout: Layout) -> list[str]:
    """The keys of the first objects, in the order in which they come."""
    found = islice(_objects(path, encoding, layout), LOOKED_AT)
    return list(dict.fromkeys(key for item in found if item.value is not None for key in item.value))


def _objects(path: Path, encoding: str, layout: Layout) -> Iterator[_Object]:
    found = lines(path, encoding, layout, ends="\n")
    if streams.suffix(path) == ".json":
        found = _without_array(found, path.name)
    maximum, replace = layout.maximum_row, layout.undecodable == "replace"
    for line, raw in enumerate(found, 1):
        if raw.isspace():
            continue
        torn = streams.is_torn(raw)
        if torn and not replace:
            yield _Object(line, None, raw, UNDECODABLE, False)
        elif is_too_large(raw, maximum):
            yield _Object(line, None, raw, too_large(maximum), False)
        else:
            yield _object(line, raw, torn)


def _without_array(found: Iterator[str], name: str) -> Iterator[str]:
    first = next(found, "")
    if first.lstrip().startswith("["):
        raise SourceError(
            f"{name} is one JSON array; JSON lines are wanted, one object a line: "
            "`jq -c '.[]' in.json > out.jsonl` makes them"
        )
    return chain((first,) if first else (), found)


def _object(line: int, raw: str, torn: bool) -> _Object:
    try:
        value = DECODER.decode(streams.mend(raw) if torn else raw)
    except Fault as fault:
        return _Object(line, None, raw, (fault.reason, fault.detail), False)
    except (ValueError, RecursionError) as error:
        return _Object(line, None, raw, ("malformed", f"no JSON: {error}"), False)
    if not isinstance(value, dict):
        return _Object(line, None, raw, ("malformed", f"a {type(value).__name__}, not an object"), False)
    return _Object(line, value, raw, None, torn)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers disagree which of two equal keys counts, so none does."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Fault("duplicate_key", f"{next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
