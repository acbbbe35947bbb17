"""Environment that our entry points set where the user has not: no telemetry, no minutes of retries; where we
are, and how large this process is."""

import os
import sys
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path

from tasks.errors import ParamsError

QUIET: Mapping[str, str] = {
    "DO_NOT_TRACK": "true",  # MLflow honours only the word "true"
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # ours are shown instead
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # told as a message instead
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 hides a dead server for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

TASKS = (".regraft", "tasks")  # where those of params.yaml have their places, each a folder
REBUILDS = (".regraft", "rebuilds")
TRIALS = ((".regraft", "runs"), (".dvc", "tmp", "exps"))


def quiet() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def demand(library: str, *, extra: str, wanted: str) -> None:
    """Raises ParamsError, without importing anything, where the library of an optional extra is missing."""
    if find_spec(library) is None:
        raise ParamsError(f"{wanted} needs {library}, which is not installed: pip install 'regraft[{extra}]'")


def home(root: Path) -> Path:
    """The checkout that `root` belongs to: the one around a workspace, a task's place or a trial of DVC's
    own, else `root` itself, as where a version is reproduced."""
    found = [] if _within(root, (REBUILDS,)) else _within(root, (*TRIALS, TASKS))
    return found[-1] if found else root.resolve()


def is_trial(root: Path) -> bool:
    """Whether something is tried out in `root`: a workspace `.regraft/runs/<id>`, or one of DVC's own."""
    return bool(_within(root, TRIALS))


def _within(root: Path, folders: Collection[tuple[str, ...]]) -> list[Path]:
    """Whatever has one of `folders` around `root`, the innermost first."""
    parents = root.resolve().parents
    return [
        folder.parents[len(inner) - 1]
        for folder in parents
        for inner in folders
        if folder.parts[-len(inner) :] == inner
    ]


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    import resource  # late: native Windows has none, where `regraft doctor` shall say what to do

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
