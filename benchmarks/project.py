"""A small project to run whole: this repository, a few tweets, the default checkpoint, one epoch of a head.

`python -m benchmarks.project` in it calls the bodies of its stages one after the other, and nothing else.
"""

import csv
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import corpus, record
from tasks import environment, params, stages
from tasks.__main__ import execute

REPOSITORY = Path(__file__).parents[1]
SKIPPED = ("tests/", "reports/", "benchmarks/results/", "dvc.lock")
ROWS = 300
SMALL = (
    "sources.text.path=tweets.csv",
    "sources.text.columns={text: text, label: label}",
    "sources.text.encoding=utf-8",
    "preparation.subset={train: 120, validation: 40, test: 60}",
    "finetuning.phases=[{name: head, depth: 0, epochs: 1, learning_rate: 1.0e-3}]",
    "evaluation.resamples=100",
    "promotion.model=small",
)
PEOPLE = {f"GIT_{role}_{key}": "benchmark" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}


class Cost(NamedTuple):
    """Of a command and all that it waited for, in seconds."""

    wall: float
    cpu: float


def make(folder: Path, changes: Sequence[str] = SMALL) -> Path:
    """The project in the new directory `folder`, committed, never run."""
    names = ["--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(["git", "ls-files", *names], cwd=REPOSITORY, check=True, capture_output=True)
    for name in listed.stdout.decode().split("\0"):
        if name and not name.startswith(SKIPPED) and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    (folder / "reports").mkdir()
    _write_table(folder / "tweets.csv")
    changed = params.override(params.load(REPOSITORY / "params.yaml"), list(changes))
    (folder / "params.yaml").write_text(params.dump(changed), encoding="utf-8")
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Start"]):
        subprocess.run(["git", *words], cwd=folder, check=True, env=variables())
    return folder


def timed(command: Sequence[str], folder: Path, *, codes: Sequence[int] = (0,)) -> Cost:
    """Raises RuntimeError, with what it said, where `command` ends with none of `codes`."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=variables(), capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in codes:
        raise RuntimeError(
            f"{' '.join(command)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _write_table(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        writer.writerows((text.text, text.label) for text in corpus.real(ROWS))


def variables() -> dict[str, str]:
    """That of a user who has activated this interpreter's environment; nobody's servers are asked."""
    absent = {"MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in absent}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**kept, **environment.QUIET, **PEOPLE, "PATH": path, "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    environment.quiet()
    for stage in stages.STAGES:
        record.say(stage)
        execute(stage, Path())
