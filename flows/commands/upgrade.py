"""`regraft migrate`: a project of a former regraft under this one."""

from collections.abc import Iterator
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from tasks import edit, files
from tasks.errors import ArtifactError, ParamsError
from tasks.stages import STAGES


def migrate(root: Path, *, dry_run: bool) -> Iterator[str]:
    """Write params.yaml under today's names, comments kept; tell what else is not of this version.

    Raises ParamsError, and writes nothing, where params.yaml cannot be read under today's names either.
    """
    path = root / "params.yaml"
    if not path.exists():
        raise ParamsError(f"{path} is missing: `git checkout params.yaml` brings the shipped one back")
    with path.open(encoding="utf-8", newline="") as stream:  # line ends as they are
        text = stream.read()
    new, renamed = edit.migrate(text, name=str(path))
    if renamed and not dry_run:
        files.write_text(path, new)
    verb = "would be" if dry_run else "is now"
    yield from (f"params.yaml: {former} {verb} {now}" for former, now in renamed.items())
    if not renamed:
        yield "params.yaml: every name is of today"
    yield from _stages(root)
    yield from _artifacts(root)


def _stages(root: Path) -> Iterator[str]:
    try:
        with Repo(str(root)) as repo:
            there = {getattr(stage, "name", None) for stage in repo.index.stages}
    except DvcException as error:
        yield f"dvc.yaml cannot be read: {error}"
        return
    if missing := [name for name in STAGES if name not in there]:
        yield (
            f"dvc.yaml lacks {', '.join(missing)}: take the dvc.yaml that came with this regraft (`git "
            "merge` its release), then `dvc repro`"
        )


def _artifacts(root: Path) -> Iterator[str]:
    """Those that are there, and that this version does not read."""
    for record in STAGES.values():
        if record.folder(root).exists():
            try:
                record.load(root)
            except ArtifactError as error:
                yield str(error)
