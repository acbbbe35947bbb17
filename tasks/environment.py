"""Environment that our entry points set where the user has not: no telemetry, no minutes of retries; where we
are, and how large this process is."""

import os
import sys
from collections.abc import Mapping
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


def quiet() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def demand(library: str, *, extra: str, wanted: str) -> None:
    """Raises ParamsError, without importing anything, where the library of an optional extra is missing."""
    if find_spec(library) is None:
        raise ParamsError(f"{wanted} needs {library}, which is not installed: pip install 'regraft[{extra}]'")


def home(root: Path) -> Path:
    """The checkout that `root` belongs to: the one around a workspace `.regraft/runs/<id>` or around one of
    DVC's own `.dvc/tmp/exps/…`, else `root` itself."""
    root = root.resolve()
    for folder in root.parents:
        if folder.parts[-2:] == (".regraft", "runs"):
            return folder.parents[1]
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    import resource  # late: native Windows has none, where `regraft doctor` shall say what to do

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
