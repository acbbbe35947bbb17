"""From what params.yaml names to files on this disk, and from files to what can be compared later.

A reference is one of
    package:NAME==VERSION/path/inside/the/package    a file or directory of an installed distribution
    some/path                                        relative to the project's root, or absolute
    org/name                                         a Hub model or data set id
"""

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tasks import environment, files
from tasks.errors import ArtifactError, CheckpointError, InputError, SourceError, did_you_mean

PACKAGE = re.compile(r"package:(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^/\s]+)/(?P<inside>.+)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".pq", ".arrow", ".feather")
PACKED = (".gz", ".zst")
TABLES_DOWNLOADED = (*(f"*{table}{packed}" for table in TABLES for packed in ("", *PACKED)), "*.txt")
ON_HUB: dict[str, tuple[Sequence[str], str, type[InputError]]] = {
    "model": (DOWNLOADED, "a Hub id", CheckpointError),
    "dataset": (TABLES_DOWNLOADED, "a Hub data set", SourceError),
}

# The files of a checkpoint that decide a result. Pickles are listed so that they can be named and refused.
COUNTED = (
    "config.json", "tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "*.model", "*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth",
)  # fmt: skip


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str  # hexadecimal


def locate(reference: str, *, root: Path, revision: str = "main") -> Path:
    """The directory of a checkpoint; a Hub id is downloaded to the Hub's own cache, or found there.

    Raises CheckpointError where the reference names neither a directory nor a reachable Hub id, InputError
    where a package is missing or of another version.
    """
    found = _inside_package(reference) or _existing(reference, root)
    if found is None:
        found = _from_hub(reference, root, revision, "model")
    if not found.is_dir():
        raise CheckpointError(f"checkpoint {reference} is a file: name the directory that holds config.json")
    return found


def locate_text(reference: str, *, root: Path, revision: str = "main") -> Path:
    """The file or directory of a table of text; a Hub data set is downloaded to the Hub's own cache, or found
    there.

    Raises SourceError where there is no such path and no reachable Hub data set, InputError where a package
    is missing or of another version.
    """
    found = _inside_package(reference) or _existing(reference, root)
    if found is not None:
        return found
    if not is_remote(reference, root=root):
        raise SourceError(_no_such_path(reference, root))
    return _from_hub(reference, root, revision, "dataset")


def is_remote(reference: str, *, root: Path) -> bool:
    """Whether `locate` or `locate_text` would ask the Hub (or its cache on this disk) for it; asks nobody.

    What ends like a table is a file that is missing.
    """
    here = reference.startswith("package:") or _existing(reference, root)
    is_file = Path(reference).suffix.lower() in (*TABLES, *PACKED)
    return not here and not is_file and HUB_ID.fullmatch(reference) is not None


def inventory(path: Path) -> tuple[File, ...]:
    """The file itself, or the files of a checkpoint directory that count, by name, size and content.

    Raises CheckpointError for a directory without any.
    """
    if path.is_file():
        return (_describe(path),)
    counted = [file for file in sorted(path.iterdir()) if file.is_file() and _counts(file.name)]
    if not counted:
        raise CheckpointError(f"{path} holds neither config.json nor weights; {_offer('config.json', path)}")
    return tuple(map(_describe, counted))


def inventory_text(path: Path) -> tuple[File, ...]:
    """The file itself, or every file below a directory by its relative name, without what begins with a dot.

    Raises SourceError for a directory without any.
    """
    if path.is_file():
        return (_describe(path),)
    inside = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    seen = [name for name in sorted(inside) if not name.startswith(".") and "/." not in name]
    if not seen:
        raise SourceError(f"{path} is an empty directory: name a table or a directory that holds one")
    return tuple(_describe(inside[name], name) for name in seen)


def write_listing(target: Path, reference: str, licence: str, listed: Sequence[File], **more: Any) -> None:
    """What `check` and reports read back; no absolute path, so that it is the same on every machine."""
    listing = {"reference": reference, "licence": licence, "files": [asdict(file) for file in listed], **more}
    files.write_text(target, files.canonical_json(listing))


def list_evaluation(reference: str, listed: Sequence[File]) -> dict[str, Any]:
    """An item of `evaluations` in the listing of text."""
    return {"reference": reference, "files": [asdict(file) for file in listed]}


def read_listing(path: Path) -> dict[str, Any]:
    listing: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return listing


def check(path: Path, listing: Path, *, evaluation: str | None = None) -> None:
    """Raises ArtifactError naming every file at `path` that is not what the sources stage saw.

    `listing` is that of a checkpoint or, known by its `evaluations`, of text; `evaluation` is the reference
    of one of these.
    """
    seen = read_listing(listing)
    listed = seen if evaluation is None else _evaluation(seen, evaluation)
    then = {file["name"]: file["sha256"] for file in listed["files"]}
    present = inventory_text(path) if "evaluations" in seen else inventory(path)
    now = {file.name: file.sha256 for file in present}
    if changed := sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name)):
        raise ArtifactError(
            f"{_few(changed)} changed since the sources stage looked: run `dvc repro` from the start"
        )


def _evaluation(listing: dict[str, Any], reference: str) -> dict[str, Any]:
    for item in listing["evaluations"]:
        if item["reference"] == reference:
            found: dict[str, Any] = item
            return found
    raise ArtifactError(f"the sources stage has not seen {reference}: run `dvc repro` from the start")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _inside_package(reference: str) -> Path | None:
    if not reference.startswith("package:"):
        return None
    if not (match := PACKAGE.fullmatch(reference)):
        raise InputError(f"{reference!r} is not of the form package:NAME==VERSION/path/inside/the/package")
    name, version, inside = match["name"], match["version"], match["inside"]
    folder = _package_folder(name, version)
    path = folder / inside
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{reference} leads out of the package")
    if not path.exists():
        raise InputError(f"{name} {version} holds no {inside}; {_offer(Path(inside).name, path.parent)}")
    return path


def _package_folder(name: str, version: str) -> Path:
    """Found by its specification alone: importing a package runs its code."""
    remedy = f"pip install {name}=={version}"
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"the package {name} is not installed: {remedy}") from None
    if installed != version:
        raise InputError(f"{name} {installed} is installed, params.yaml asks for {version}: {remedy}")
    module = re.sub(r"[-.]", "_", name)
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{name} {version} is installed but has no package directory {module}")
    return Path(spec.submodule_search_locations[0])


def _existing(reference: str, root: Path) -> Path | None:
    """Below `root`; a workspace also sees what git does not track and so stayed in its checkout."""
    for folder in (root, environment.home(root)):
        if (path := folder / Path(reference).expanduser()).exists():
            return path
    return None


def _from_hub(reference: str, root: Path, revision: str, kind: str) -> Path:
    patterns, named, failure = ON_HUB[kind]
    if not HUB_ID.fullmatch(reference):
        raise failure(_no_such_path(reference, root))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(reference, revision=revision, allow_patterns=list(patterns), repo_type=kind)
        )
    except (OSError, HFValidationError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise failure(
            f"{_no_such_path(reference, root)}; nor is it reachable as {named} at revision {revision} "
            f"({cause})"
        ) from None


def _no_such_path(reference: str, root: Path) -> str:
    path = root / Path(reference).expanduser()
    if path.parent.is_dir():
        return f"no such path: {reference}; {_offer(path.name, path.parent)}"
    return f"no such path: {reference}; its folder {path.parent} does not exist either"


def _offer(name: str, folder: Path) -> str:
    present = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return did_you_mean(name, present) if present else "the folder is missing or empty"


def _counts(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in COUNTED)


def _describe(path: Path, name: str = "") -> File:
    return File(name or path.name, path.stat().st_size, files.digest_file(path).removeprefix("sha256:"))
