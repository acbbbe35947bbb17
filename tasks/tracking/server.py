"""The MLflow server: where it is, that it answers, and what processes of one machine do to it in turn."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING, getLogger
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException

from tasks import environment
from tasks.errors import HeldError, RefusedError, TrackingError

REFUSALS = (MlflowException, sqlalchemy.exc.SQLAlchemyError, RequestException, ModuleNotFoundError)
LONGEST = 500  # characters of a parameter or message
PASSING = (401, 408, 429)  # statuses that say nothing about what was asked
WAIT = 120.0  # seconds for another process to finish its few requests


def uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file inside the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{environment.home(root)}/.regraft/mlflow.db"


def connect(root: Path) -> MlflowClient:
    """A client whose server has answered.

    Raises TrackingError, within seconds, where there is no server or the address is not one.
    """
    for name in ("alembic", "mlflow"):
        getLogger(name).setLevel(WARNING)
    where = uri(root)
    with asking(where), lock(where, "runs"):
        _probe_database(where)
        client = MlflowClient(tracking_uri=where)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def asking(where: str) -> Iterator[None]:
    """Requests to MLflow are made inside: what fails becomes a TrackingError that names the server.

    It is a RefusedError where a server has answered and would answer the same again.
    """
    try:
        yield
    except REFUSALS as error:
        kind = RefusedError if _refused(error) else TrackingError
        raise kind(
            f"MLflow at {_without_password(where)}: {short(str(error))}. Start the server or correct "
            "MLFLOW_TRACKING_URI; without that variable a file inside the project is used"
        ) from error


def _refused(error: Exception) -> bool:
    """Whether HTTP, or MLflow in its words, puts the fault on the request."""
    status = getattr(getattr(error, "response", None), "status_code", 500)
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    return 400 <= status < 500 and status not in PASSING


@contextmanager
def failing_closed() -> Iterator[None]:
    """Around a promotion: what MLflow does not let it finish is a HeldError."""
    try:
        yield
    except TrackingError as error:
        raise HeldError(f"hold: the promotion did not end: {error}") from error


@contextmanager
def lock(where: str, name: str, *, wait: float = WAIT) -> Iterator[None]:
    """Hold what processes of this machine must do to `where` one at a time."""
    held = FileLock(_lock_path(where, name), timeout=wait)
    try:
        Path(held.lock_file).parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        raise TrackingError(
            f"{held.lock_file} is held by another process for {wait:g} s: is it stuck?"
        ) from None
    except OSError as error:
        raise TrackingError(
            f"MLflow at {where}: {held.lock_file} cannot be written: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        held.release()


def _probe_database(where: str) -> None:
    """One plain connection: MLflow itself would try for two minutes before it gives up on a database."""
    if urlsplit(where).scheme.partition("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql"):
        return
    engine = sqlalchemy.create_engine(where)
    try:
        with engine.connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()
    finally:
        engine.dispose()


def sqlite_file(where: str) -> Path | None:
    if not where.startswith("sqlite"):
        return None
    name = sqlalchemy.make_url(where).database
    return Path(name).resolve() if name else None


def _lock_path(where: str, name: str) -> Path:
    """Beside a database file; for a server, in this machine's directory of temporary files."""
    if database := sqlite_file(where):
        return database.with_name(f"{database.name}.{name}.lock")
    key = hashlib.sha256(f"{where} {name}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"regraft-{os.getuid()}-{key}.lock"


def _without_password(where: str) -> str:
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:…@", where)


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
