"""`python -m tasks <stage>`: params.yaml and upstream manifests in, the stage's manifest out.

The one way a stage is run, whoever asks: DVC, a flow, a person. Light: a stage's imports wait for its name.
"""

import argparse
import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from tasks import environment, progress, stages
from tasks.artifacts import Artifact
from tasks.errors import InputError, RegraftError, did_you_mean
from tasks.tracking import timings

if TYPE_CHECKING:
    from tasks.params import Params

UNTRACKED = {"sources"}  # what a run is about is known only afterwards: runs are keyed by its digests
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
INTERRUPTED, TERMINATED = 130, 143
PARTING = 60.0  # seconds to save a training whose caller is gone; it writes no output any more


class Silence:
    """A `tasks.stages.Track` for a stage that belongs to no run."""

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None: ...

    def file(self, path: Path, folder: str = "") -> None: ...


def execute(stage: str, root: Path) -> Artifact:
    """Run `stage` on the params.yaml of `root`: tracked, timed, and told to whoever listens.

    Raises InputError for an unknown stage. What MLflow does not take waits in .regraft/spool.
    """
    if stage not in stages.STAGES:
        raise InputError(f"no stage {stage!r}; {did_you_mean(stage, stages.STAGES)}")
    from tasks import params  # its many models take as long as all else here

    root = root.resolve()
    settings = params.load(root / "params.yaml")
    with timings.measured(stage, root):
        record = _silently(stage, settings, root) if stage in UNTRACKED else _tracked(stage, settings, root)
    progress.tell("summary", stage=stage, figures=record.figures())
    return record


def _silently(stage: str, settings: "Params", root: Path) -> Artifact:
    return stages.run(stage, settings, root, Silence())


def _tracked(stage: str, settings: "Params", root: Path) -> Artifact:
    from tasks.tracking import runs

    with runs.open_run(stage, settings, root) as run:
        progress.tell("run", stage=stage, run_id=run.id, uri=run.uri)
        record = stages.run(stage, settings, root, run)
        run.output(record.digest)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    environment.quiet()
    heard = [logging.StreamHandler(), progress.Words()]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=heard)
    logging.getLogger("tasks").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(prog="python -m tasks", description=__doc__)
    parser.add_argument("stage", help=", ".join(stages.STAGES))
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout that holds params.yaml")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    die_with_caller()
    try:
        execute(given.stage, given.root)
    except RegraftError as error:
        return _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _failed(f"{given.stage} interrupted; run it again to go on where it stopped", INTERRUPTED)
    except PermissionError as error:
        return _failed(f"{error.filename}: permission denied; nothing half-written is left", 1)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or given.root.resolve()
        return _failed(f"no space left on {where}; nothing half-written is left", 1)
    return 0


def die_with_caller(*, every: float = 1.0, always: bool = False) -> None:
    """End this process, as SIGTERM does, when the one that ran it is gone, so that a killed `dvc` leaves no
    orphan behind that overwrites the outputs of the next run.

    Only where somebody listens or DVC runs us, or `always`: a person may close the terminal of a stage that
    goes on.
    """
    if not (always or os.environ.get("DVC_STAGE") or os.environ.get(progress.VARIABLE)):
        return
    threading.Thread(target=_watch, args=(_callers(), every), daemon=True).start()


def _callers() -> list[psutil.Process]:
    """Our parent, and its parent where ours is only the shell of a `sh -c`, which dash leaves between."""
    ancestors = psutil.Process().parents()[:2]
    between = bool(ancestors) and "-c" in ancestors[0].cmdline()[:4]
    return ancestors if between else ancestors[:1]


def _watch(callers: Sequence[psutil.Process], every: float) -> None:
    while all(_lives(process) for process in callers):
        time.sleep(every)
    os.kill(os.getpid(), signal.SIGTERM)  # as everybody else would end this: what was learned is saved
    time.sleep(PARTING)
    os._exit(TERMINATED)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(number, lambda *_: None)  # once is enough: what now lets go must not be broken off
    raise SystemExit(TERMINATED)


def _failed(message: str, code: int) -> int:
    progress.tell("error", text=message)
    sys.stderr.write(f"{message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
