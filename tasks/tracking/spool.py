"""What a stage tells while MLflow does not answer: kept in .regraft/spool, in order, until it can be sent.

A spool is a directory of one stage's run: `opening.json`, a line of `events.jsonl` for each thing told, and
copies of the files. It is removed when all of it was sent; one that cannot be sent gets `.refused` behind its
name and `reason.txt`, and a person decides.
"""

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from tasks import environment, files
from tasks.errors import RefusedError

Event = Mapping[str, Any]
REFUSED = ".refused"  # behind the name of a spool that cannot be sent
REASON = "reason.txt"
OPENING = "opening.json"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """All that a stage's run and its pipeline's say from the start, for a server that may be asked later."""

    stage: str
    experiment: str
    key: str
    params: Mapping[str, Any]  # of the stage
    tags: Mapping[str, str]
    parent_key: str
    parent_name: str
    parent_params: Mapping[str, Any]
    parent_tags: Mapping[str, str]
    file: str  # params.yaml, whole
    rows: Mapping[str, str] | None  # the data set that the stage reads, as MLflow describes one
    began: int  # milliseconds since 1970
    process: str
    run_id: str = ""  # known once a server has answered
    parent_id: str = ""
    degraded: bool = field(default=False)


@dataclass(frozen=True)
class Spool:
    path: Path

    @classmethod
    def begin(cls, root: Path, opening: Opening) -> Self:
        """A spool of its own for this run, behind all that there are."""
        name = f"{time.time_ns():020}-{opening.stage}-{secrets.token_hex(3)}"
        found = cls(_folder(root) / name)
        (found.path / "files").mkdir(parents=True)
        found.name(replace(opening, degraded=True))
        return found

    def name(self, opening: Opening) -> None:
        files.write_text(self.path / OPENING, json.dumps(asdict(opening)))

    def opening(self) -> Opening:
        """Raises RefusedError where the file is damaged or has the fields of another version."""
        path = self.path / OPENING
        try:
            return Opening(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:  # no cause: this sentence is what a person is told
            raise RefusedError(
                f"{self.path.stem}/{OPENING} is damaged, or another version of regraft wrote it, which can "
                f"send it: {error}"
            ) from None

    def add(self, event: Event) -> None:
        """Keep an event; of a file its copy."""
        if event["kind"] == "file":
            kept = self.path / "files" / secrets.token_hex(4) / Path(event["path"]).name
            kept.parent.mkdir()
            shutil.copyfile(event["path"], kept)
            event = {**event, "path": str(kept.relative_to(self.path))}
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event) + "\n")

    def events(self) -> Iterator[Event]:
        """In order, without a line that a killed process has not finished.

        A file's path stands in the spool as seen from there: a checkout may be moved.
        """
        path = self.path / "events.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):
                event = json.loads(line)
                yield {**event, "path": str(self.path / event["path"])} if "path" in event else event

    @property
    def complete(self) -> bool:
        """Whether nothing will be added: the stage has ended, or its process has."""
        from tasks.tracking import circumstances  # imports mlflow, and mostly nothing waits

        ended = any(event["kind"] == "end" for event in self.events())
        return ended or not circumstances.alive(self.opening().process, (self.path / OPENING).stat().st_mtime)

    def beat(self) -> None:
        """Say to other machines on this disk that more will come."""
        (self.path / OPENING).touch()

    def remove(self) -> None:
        shutil.rmtree(self.path)

    def set_aside(self, reason: str) -> None:
        """Out of the way of the others, until a person deletes it or takes the suffix away."""
        files.write_text(self.path / REASON, reason)
        self.path.rename(self.path.with_suffix(REFUSED))

    @property
    def reason(self) -> str:
        return (self.path / REASON).read_text(encoding="utf-8")


def waiting(root: Path) -> list[Spool]:
    """Every run of the checkout and its workspaces that is still to be sent, the first one first."""
    return [found for found in _every(root) if found.path.suffix != REFUSED]


def refused(root: Path) -> list[Spool]:
    """Every run that was set aside, the first one first."""
    return [found for found in _every(root) if found.path.suffix == REFUSED]


def locked(root: Path) -> FileLock:
    """Who sends what waits does it alone."""
    return FileLock(_folder(root).with_suffix(".lock"))


def told(root: Path) -> str:
    """A sentence for people where anything waits, else nothing."""
    parts = [_told_refused(found) for found in refused(root)]
    if found := waiting(root):
        runs = "the run of 1 stage waits" if len(found) == 1 else f"the runs of {len(found)} stages wait"
        parts.append(f"{runs} in {_folder(root)} and will be sent when MLflow answers")
    return f"tracking degraded: {'; '.join(parts)}" if parts else ""


def _told_refused(found: Spool) -> str:
    return (
        f"a stage's run cannot be sent ({found.reason}): delete {found.path} to give it up, or take "
        f"{REFUSED} off its name to have it sent again"
    )


def _every(root: Path) -> list[Spool]:
    return [Spool(path) for path in sorted(_folder(root).glob("*/")) if (path / OPENING).exists()]


def _folder(root: Path) -> Path:
    return environment.home(root) / ".regraft" / "spool"
