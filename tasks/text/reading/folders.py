"""Which files of a folder are its tables or texts, and which splits they are named for."""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import SourceError
from tasks.text.reading import streams
from tasks.text.reading.cells import SPLIT_NAMES
from tasks.text.reading.formats import FORMATS
from tasks.text.reading.layout import UNDECODABLE, Layout, Row, Table, Wanted, too_large

SPLIT_OF_FILE = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])")
# What to do with a file of no split beside those of several.
RENAME = (
    "rename it to train…, validation… or test…, take it out of the folder, or name a column in "
    "sources.text.split"
)
MOVE = "put it into folders of its split and its label, or take it out of the folder"


def saved_by_datasets(folder: Path) -> dict[Path, str | None]:
    """The Arrow files of a Dataset or DatasetDict that was saved to disk, with their splits; or none.

    Raises SourceError where it was not saved whole, or names what is no file of the folder.
    """
    if (folder / "state.json").is_file():
        return dict.fromkeys(_arrow_files(folder, set(_visible(folder))))
    if not (folder / "dataset_dict.json").is_file():
        return {}
    splits, inside = _names(folder / "dataset_dict.json", "splits"), set(_visible(folder))
    for split in splits:
        if Path(split).name != split:
            raise SourceError(
                f"{folder}/dataset_dict.json names {split!r}, which is no folder in it: save it again"
            )
    return {file: SPLIT_NAMES.get(split) for split in splits for file in _arrow_files(folder / split, inside)}


def _arrow_files(folder: Path, inside: Collection[Path]) -> list[Path]:
    """Only those `inside` are read: of no other has the sources stage noted what it holds."""
    state = folder / "state.json"
    if state not in inside:
        raise _not_whole(state)
    names = _names(state, "_data_files", "filename")
    for name in names:
        if folder / name not in inside:
            raise SourceError(f"{state} names {name!r}, which is no file of the data set: save it again")
    return [folder / name for name in names]


def _names(listing: Path, key: str, inner: str | None = None) -> list[str]:
    """The texts in the list `key` of a JSON object, or those that its items hold as `inner`."""
    try:
        items = json.loads(listing.read_text(encoding="utf-8"))[key]
        return [os.fspath(item if inner is None else item[inner]) for item in items]
    except (OSError, ValueError, KeyError, TypeError):
        raise _not_whole(listing) from None


def _not_whole(listing: Path) -> SourceError:
    return SourceError(f"{listing.parent} lacks a whole {listing.name}: save the data set again")


def folder_of_tables(folder: Path) -> dict[Path, str | None]:
    """The table files in a folder, with the splits that they are named for; or none.

    Raises SourceError where they are of several formats: they may be the same rows twice.
    """
    found = [path for path in _visible(folder) if streams.suffix(path) in FORMATS]
    others = [path for path in found if streams.suffix(path) != ".json"]  # .json may describe the others
    found = others or found
    if len(formats := sorted({streams.suffix(path) for path in found})) > 1:
        raise SourceError(f"{folder} holds tables as {' and as '.join(formats)}: name one file or folder")
    return {path: _split_of(path, folder) for path in found}


def _split_of(path: Path, folder: Path) -> str | None:
    """As data sets on the Hub are named: train.csv, data/test-00000-of-00001.parquet, train/0000.parquet."""
    for part in reversed(path.relative_to(folder).parts):
        if match := SPLIT_OF_FILE.match(part.lower()):
            return SPLIT_NAMES[match[1]]
    return None


def fixed(found: Mapping[Path, str | None], folder: Path, remedy: str) -> dict[Path, str | None]:
    """The splits that files are named for; none where all are train, for they were not divided yet.

    Raises SourceError, which ends with `remedy`, for a file of no split beside those of several.
    """
    named = sorted({split for split in found.values() if split})
    if len(named) < 2:
        return dict.fromkeys(found)
    if others := [path for path, split in found.items() if not split]:
        lost, splits = name_in(others[0], folder), " and ".join(named)
        raise SourceError(f"{folder} is divided into {splits}, but {lost} is named for no split: {remedy}")
    return dict(found)


def folder_of_texts(folder: Path, wanted: Wanted, layout: Layout) -> Iterator[Table]:
    """label/name.txt, or split/label/name.txt where all first names are splits; one file is one row.

    Raises SourceError where there are none, where some are in several splits and others in none, and where
    more than text and label is wanted.
    """
    files = [path for path in _visible(folder) if path.suffix.lower() == ".txt"]
    if not files:
        known = ", ".join(sorted(FORMATS))
        raise SourceError(f"{folder} holds neither tables ({known}) nor text files in folders of labels")
    if beyond := sorted(wanted.keys() - {"text", "label"}):
        raise SourceError(f"{folder} is a folder of text files, which give text and label, not {beyond[0]}")
    parts = {path: path.relative_to(folder).parts for path in files}
    depth = 2 if "label" in wanted else 1
    splits = {
        path: SPLIT_NAMES.get(steps[0].lower()) if len(steps) > depth else None
        for path, steps in parts.items()
    }
    divided = None not in splits.values()
    for path, split in fixed(splits, folder, MOVE).items():
        steps = parts[path][1:] if divided else parts[path]
        cells = {"label": _shown(steps[0]) if len(steps) > 1 else None}
        row, encoding = _text_file(path, list(wanted), cells, layout)
        yield Table(name_in(path, folder), split, iter((row,)), encoding)


def _text_file(path: Path, roles: Sequence[str], cells: dict[str, Any], layout: Layout) -> tuple[Row, str]:
    encoding = streams.encoding(path, layout.encoding, layout.maximum_bytes)
    with path.open("rb") as stream:
        data = stream.read(layout.maximum_row + 1)
    if len(data) > layout.maximum_row:
        return Row(1, (), data, too_large(layout.maximum_row)), "utf-8"
    text = streams.decode(data, encoding or "utf-8")
    torn = streams.is_torn(text)
    if encoding is None or (torn and layout.undecodable == "quarantine"):
        return Row(1, (), data, UNDECODABLE), "utf-8"
    found = {"text": streams.mend(text), **cells}
    return Row(1, [found[role] for role in roles], data, torn=torn), encoding


def _visible(folder: Path) -> list[Path]:
    """Every file below `folder` by name, without what begins with a dot: the Hub's and git's own."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    named = {path: path.relative_to(folder) for path in found}
    kept = [path for path in found if not any(part.startswith(".") for part in named[path].parts)]
    return sorted(kept, key=lambda path: named[path].as_posix())


def name_in(path: Path, folder: Path) -> str:
    """The name of a file of `folder` in messages and places."""
    return _shown(path.relative_to(folder).as_posix())


def _shown(name: str) -> str:
    """A file's name may hold bytes of no character, which no table of ours could store."""
    return os.fsencode(name).decode("utf-8", "replace")
