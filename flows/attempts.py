"""How often a retraining was begun on the same data, params and code: what fails alike is not begun again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.checkout import workspace
from tasks import files
from tasks.artifacts import Sources
from tasks.errors import RegraftError, WorkspaceError

FILE = Path(".regraft") / "retraining.json"
READ = ("params.yaml", "forgotten.txt")  # beside sources and code
TRIES = 3  # of what another try might mend: an hour's look, beside the retries of each stage
REMEDY = (
    "it begins again when data, params or code change; `regraft run`, or retrain with again: true, at once"
)


@dataclass(frozen=True)
class Attempt:
    """of: digest of what it was begun on. lasting: it would fail alike. told: the last reason to hold."""

    of: str = ""
    tries: int = 0
    said: str = ""
    lasting: bool = False
    told: str = ""


def last(root: Path) -> Attempt:
    """An empty one where there was none, or what is there is not readable."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        return Attempt(**json.loads((root / FILE).read_text(encoding="utf-8")))
    return Attempt()


def given_up(root: Path) -> str | None:
    """Why nothing is begun on what lies here; None where it may be."""
    former = last(root)
    if former.of != _digest(root) or not (former.lasting or former.tries >= TRIES):
        return None
    times = "once" if former.tries == 1 else f"{former.tries} times"
    return f"tried {times} on this very data, params and code: {former.said}; {REMEDY}"


@contextmanager
def counted(root: Path) -> Iterator[None]:
    """An attempt, which counts before it begins: a process that is killed says nothing."""
    former, of = last(root), _digest(root)
    tries = former.tries + 1 if former.of == of else 1
    attempt = Attempt(of, tries, "its process ended without a word", told=former.told)
    _keep(root, attempt)
    try:
        yield
    except Exception as error:
        lasting = isinstance(error, RegraftError) and error.lasting()
        _keep(root, replace(attempt, said=str(error) or type(error).__name__, lasting=lasting))
        raise
    _keep(root, Attempt(told=last(root).told))


def held(root: Path, reason: str) -> State[str]:
    """*Held*, of which people are told; *Skipped* where the last look has told the same."""
    former = last(root)
    _keep(root, replace(former, told=reason))
    return Completed(name="Skipped" if former.told == reason else "Held", message=reason)


def _keep(root: Path, attempt: Attempt) -> None:
    files.write_text(root / FILE, json.dumps(asdict(attempt)))


def _digest(root: Path) -> str:
    there = {name: files.digest_file(root / name) for name in READ if (root / name).exists()}
    return files.digest_json({"sources": Sources.load(root).digest, "files": there, "code": _code(root)})


def _code(root: Path) -> str:
    with suppress(WorkspaceError):  # no git, no commit
        return workspace.code(root)
    return ""
