"""Reproduce one stage through DVC: same lock file, run cache and results as by `dvc repro`."""

import json
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import dvc.stage.run
import networkx
import psutil
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage.exceptions import StageCmdFailedError

from flows.checkout import forkserver, locks
from tasks import progress
from tasks.__main__ import execute
from tasks.errors import HeldError, InputError, RegraftError, TrainingError

Leaf = Literal["subprocess", "inprocess"]
Stage = Literal[
    "sources",
    "preparation",
    "vocabulary",
    "conversion",
    "encoding",
    "finetuning",
    "evaluation",
    "promotion",
]
Body = Callable[[str, Path], object]  # does what the stage's command would, for its name and root
Message = Mapping[str, Any]
NEEDED: Mapping[str, Sequence[str]] = {  # by stages that do without the rest
    "sources": (),
    "preparation": forkserver.TRACKING,
    "promotion": forkserver.TRACKING,
}
PARTING = 25.0  # seconds to end; Prefect's worker kills a cancelled flow after 30
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """`ran` is false when DVC found nothing changed or restored the outputs from its cache."""

    stage: str
    ran: bool
    restored: bool
    messages: tuple[Message, ...]


def in_order(root: Path, *, until: str | None = None) -> list[str]:
    """The stages of `root`'s dvc.yaml, each after all that it depends on, otherwise as written; those alone
    that `until` depends on, and itself."""
    with Repo(str(root)) as repo:
        graph = repo.index.graph.reverse()
        written = {stage: place for place, stage in enumerate(repo.index.stages)}
        named = {stage.name: stage for stage in written if getattr(stage, "name", None)}
        needed = set(written) if until is None else networkx.ancestors(graph, named[until]) | {named[until]}
        order = networkx.lexicographical_topological_sort(graph, key=written.get)
        return [stage.name for stage in order if stage in needed and stage in named.values()]


def reproduce(
    stage: str, root: Path, leaf: Leaf | Body, hear: Callable[[Message], None], *, force: bool = False
) -> Outcome:
    """Bring `stage` up to date, passing each message of its body to `hear` as it comes; with `force` its body
    runs, whatever is there or in the run cache.

    Raises InputError when the stage's body refused its input, TrainingError when it would fail alike again,
    HeldError when MLflow did not let a promotion end, RegraftError when it failed otherwise,
    KeyboardInterrupt when it was interrupted. Whatever ends this, no child goes on.
    One at a time in a process: the current directory is `root` meanwhile.
    """
    # DVC looks files up from the current directory, whatever repository it was given.
    with chdir(root), _messages(hear) as heard, _no_orphans(), Repo() as repo, _runner(leaf, root):
        locks.drop_torn(repo)
        try:
            with locks.kept(root, stage):
                done = repo.reproduce(stage, single_item=True, force=force, run_env=_environment())
        except DvcException as error:
            _raise_cause(stage, error, heard)
    told = any(message["kind"] == "summary" for message in heard)
    return Outcome(stage, ran=bool(done) and told, restored=bool(done) and not told, messages=tuple(heard))


def _raise_cause(stage: str, error: DvcException, heard: list[Message]) -> NoReturn:
    """Say why a stage failed: its own error where it ran here, else its exit code and last words."""
    chain = list(_chain(error))
    if own := next((cause for cause in chain if isinstance(cause, RegraftError)), None):
        raise own
    codes = [int(found[1]) for cause in chain if (found := re.search(r"exited with (-?\d+)", str(cause)))]
    if any(isinstance(cause, KeyboardInterrupt) for cause in chain) or set(codes) & {130, -2}:
        raise KeyboardInterrupt from error
    said = [message["text"] for message in heard if message["kind"] == "error"]
    known = (InputError, TrainingError, HeldError)
    kind = next((one for one in known if one.exit_code in codes), RegraftError)
    raise kind(f"stage {stage}: {said[-1] if said else chain[-1]}") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _environment() -> dict[str, str]:
    """`python` in dvc.yaml is the interpreter that runs us, also where its environment is not activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {"PATH": path, **{k: v for k, v in os.environ.items() if k == progress.VARIABLE}}


@contextmanager
def _messages(hear: Callable[[Message], None]) -> Iterator[list[Message]]:
    """Collect what the stage tells through the file named in REGRAFT_MESSAGES."""
    heard: list[Message] = []
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        target = Path(folder) / "messages"
        target.touch()
        os.environ[progress.VARIABLE] = str(target)
        ended = threading.Event()
        listener = threading.Thread(target=_listen, args=(target, heard, hear, ended), daemon=True)
        listener.start()
        try:
            yield heard
        finally:
            ended.set()
            listener.join()
            os.environ.pop(progress.VARIABLE, None)


def _listen(
    target: Path, heard: list[Message], hear: Callable[[Message], None], ended: threading.Event
) -> None:
    with target.open(encoding="utf-8") as stream:
        last, part = False, ""
        while not last:
            last = ended.wait(0.5)
            *lines, part = (part + stream.read()).split("\n")  # a line may be half written
            for line in lines:
                heard.append(json.loads(line))
                hear(heard[-1])


@contextmanager
def _no_orphans() -> Iterator[None]:
    """If the body does not end well (time-out, cancellation), end the processes it started: a training saves
    its step first."""
    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    except BaseException:
        started = set(psutil.Process().children(recursive=True)) - before
        for child in started:
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        for child in psutil.wait_procs(started, timeout=PARTING)[1]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        raise


@contextmanager
def _runner(leaf: Leaf | Body, root: Path) -> Iterator[None]:
    """How DVC runs a stage's command inside: in a fork of what has imported its libraries or, unless `leaf`
    is `subprocess`, as a body that is called here; with `inprocess` the stage's own.

    `dvc.stage.run.cmd_run` is private; dvc is pinned to a minor version and a test holds this contract.
    """
    former, body = dvc.stage.run.cmd_run, execute if leaf == "inprocess" else leaf

    def cmd_run(stage: Any, dry: bool = False, run_env: Mapping[str, str] | None = None) -> None:
        if not isinstance(body, str):
            body(stage.name, root)
        elif forks() and stage.cmd == f"python -m tasks {stage.name}":  # the one that is shipped
            _fork(stage, run_env)
        else:
            former(stage, dry, run_env)

    dvc.stage.run.cmd_run = cmd_run
    try:
        yield
    finally:
        dvc.stage.run.cmd_run = former


def get_ready() -> None:
    """What every stage needs is imported meanwhile; `reproduce` does this itself."""
    if forks():
        _forkserver().load(forkserver.TRACKING)


def forks() -> bool:
    return sys.platform == "linux"


def _forkserver() -> forkserver.ForkServer:
    return forkserver.current({k: v for k, v in os.environ.items() if k != progress.VARIABLE})


def _fork(stage: Any, run_env: Mapping[str, str] | None) -> None:
    """As DVC would run its command. Raises StageCmdFailedError where it did not end well."""
    given = dvc.stage.run.prepare_kwargs(stage, run_env=run_env)
    libraries = NEEDED.get(stage.name, forkserver.LIBRARIES)
    meanwhile = forkserver.LIBRARIES if stage.name == "preparation" else ()  # the others are next
    code = _forkserver().run(
        "tasks", [stage.name], given["cwd"], given["env"], libraries=libraries, meanwhile=meanwhile
    )
    if code:
        raise StageCmdFailedError(stage.cmd, code)
