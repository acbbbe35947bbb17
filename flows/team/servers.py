"""`regraft servers`: one Prefect and one MLflow server for a team, begun, watched and ended together."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy

from flows.addresses import demand_free, loopback
from tasks import environment, files
from tasks.errors import InputError, RegraftError

PATIENCE = 300.0  # seconds for both to answer: a first start creates a hundred tables in each database
GRACE = 20.0  # seconds to end by themselves
SHORTEST = 12  # characters of a secret; MLflow takes no shorter password
WORDS = 3  # lines of a log that an error quotes
PREFECT, MLFLOW = "prefect", "mlflow"  # the databases too
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
SECRETS: Mapping[str, str] = {  # environment variable -> what it is
    "PREFECT_SERVER_API_AUTH_STRING": "USER:PASSWORD, which Prefect asks for",
    PASSWORD: "the password of MLflow's user admin",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "random, with which MLflow signs its forms",
}
KNOWN = ("password1234", "change-me-please")  # MLflow's former default, and the one of examples
THEIRS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI")  # of another server
AUTHENTICATION = """[mlflow]
default_permission = EDIT
database_uri = {database}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True)
class Plan:
    """What to serve, and where. `name` is what other machines call this one."""

    folder: Path
    host: str = "127.0.0.1"
    name: str = ""
    database: str | None = None
    artifacts: str | None = None
    prefect_port: int = 4200
    mlflow_port: int = 5000

    @property
    def protected(self) -> bool:
        """Whether passwords are asked for: always beyond this machine, on it where any is set."""
        return not loopback(self.host) or any(os.environ.get(name) for name in SECRETS)

    @property
    def prefect(self) -> str:
        return f"http://{self._called}:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        return f"http://{self._called}:{self.mlflow_port}"

    @property
    def _called(self) -> str:
        everywhere = self.host == "0.0.0.0"
        return self.name or (socket.gethostname() if everywhere else self.host)


@dataclass(frozen=True)
class Server:
    """A command, what its environment has besides ours, and an address that answers once it is there."""

    title: str
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(hash=False)
    health: str


def serve(plan: Plan, tell: Callable[[str], None]) -> None:
    """Both servers, until this process is interrupted; whatever ends this, none is left.

    Raises InputError where a secret, a driver or a port is missing, RegraftError where a server ends by
    itself.
    """
    _check(plan)
    if plan.database:
        create_databases(plan.database)
    plan.folder.mkdir(parents=True, exist_ok=True)
    plan.folder.chmod(0o700)  # databases, models and logs are for who asks the servers
    if plan.protected:
        _set_password(plan, tell)
    with ExitStack() as running:
        children = {server: running.enter_context(_running(server, plan.folder)) for server in servers(plan)}
        _wait(children, plan.folder)
        for line in told(plan):
            tell(line)
        while True:
            _demand_alive(children, plan.folder)
            time.sleep(0.5)


def servers(plan: Plan) -> Iterator[Server]:
    """What is started, and how; compose.yaml starts the same."""
    here = "127.0.0.1" if plan.host == "0.0.0.0" else plan.host
    python = (sys.executable, "-m")
    yield Server(
        "Prefect",
        (*python, *prefect_command(plan.host, plan.prefect_port)),
        _prefect_variables(plan),
        f"http://{here}:{plan.prefect_port}/api/health",
    )
    yield Server(
        "MLflow",
        (*python, *mlflow_command(plan.host, plan.mlflow_port, protected=plan.protected)),
        _mlflow_variables(plan),
        f"http://{here}:{plan.mlflow_port}/health",
    )


def prefect_command(host: str, port: int) -> tuple[str, ...]:
    return ("prefect", "server", "start", "--host", host, "--port", str(port))


def mlflow_command(host: str, port: int, *, protected: bool) -> tuple[str, ...]:
    """Databases, artifacts and names of hosts stand in the environment: `ps` shows commands to everybody."""
    asking = ("--app-name", "basic-auth") if protected else ()
    return ("mlflow", "server", "--host", host, "--port", str(port), "--workers", "2", *asking)


def _prefect_variables(plan: Plan) -> dict[str, str]:
    found = {"PREFECT_HOME": str(plan.folder / PREFECT), "PREFECT_UI_API_URL": f"{plan.prefect}/api"}
    if plan.database:
        url = _url(plan.database, "postgresql+asyncpg", PREFECT)
        found["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    return found


def _mlflow_variables(plan: Plan) -> dict[str, str]:
    database = _url(plan.database, "postgresql", MLFLOW) if plan.database else _file(plan.folder, "mlflow.db")
    found = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": plan.artifacts or str(plan.folder / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes, for what we do not use
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": plan.mlflow,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(_hosts(plan)),
    }
    if plan.protected:
        found["MLFLOW_AUTH_CONFIG_PATH"] = str(_authentication(plan.folder, _users(plan)))
    return found


def _users(plan: Plan) -> str:
    """The database of MLflow's users."""
    return _url(plan.database, "postgresql", MLFLOW) if plan.database else _file(plan.folder, "users.db")


def _set_password(plan: Plan, tell: Callable[[str], None]) -> None:
    """MLflow itself goes on with the administrator's first password for ever."""
    from tasks.tracking import members  # late: seconds, and alone nobody asks for passwords

    if members.set_password(_users(plan), os.environ[PASSWORD]):
        tell(f"MLflow's user admin has a new password, that of {PASSWORD}")


def _hosts(plan: Plan) -> list[str]:
    """What a request may call us; anything else is a page of another site that knocks."""
    names = dict.fromkeys((plan.mlflow.split("/")[-1].split(":")[0], plan.host, "localhost", "127.0.0.1"))
    return [f"{name}:{plan.mlflow_port}" for name in names if name != "0.0.0.0"]


def _authentication(folder: Path, users: str) -> Path:
    """MLflow's file, without a password: that one comes from the environment."""
    path = folder / "authentication.ini"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(path, AUTHENTICATION.format(database=users.replace("%", "%%")))
    path.chmod(0o600)
    return path


def _file(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / name}"


def told(plan: Plan) -> Iterator[str]:
    yield f"Prefect  {plan.prefect}"
    yield f"MLflow   {plan.mlflow}"
    yield "where work is done:"
    yield f"  export PREFECT_API_URL={plan.prefect}/api"
    yield f"  export MLFLOW_TRACKING_URI={plan.mlflow}"
    if plan.protected:
        yield "  export PREFECT_API_AUTH_STRING=…      # what PREFECT_SERVER_API_AUTH_STRING is here"
        yield "  export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=…"
    yield f"Ctrl-C stops both; logs and files are in {plan.folder}"


def _check(plan: Plan) -> None:
    if plan.protected:
        environment.demand("flask_wtf", extra="servers", wanted="MLflow's authentication")
        _demand_secrets(plan.host)
    if plan.artifacts and plan.artifacts.startswith("s3:"):
        environment.demand("boto3", extra="servers", wanted=f"--artifacts {plan.artifacts}")
        _demand_bucket(plan.artifacts)
    if plan.database:
        environment.demand("psycopg2", extra="servers", wanted="--database")
        _demand_server(plan.database)
    for port in (plan.prefect_port, plan.mlflow_port):
        demand_free(plan.host, port)


def _demand_secrets(host: str) -> None:
    faults = [f"{name} {fault} ({about})" for name, about in SECRETS.items() if (fault := _fault(name))]
    if faults:
        raise InputError(
            f"{host}: servers that others can reach ask for passwords; " + "; ".join(faults) + ". "
            "Set them in the environment, each from `openssl rand -hex 24`"
        )


def _fault(name: str) -> str | None:
    value = os.environ.get(name, "")
    user, colon, password = value.partition(":") if "AUTH_STRING" in name else ("user", ":", value)
    if not value:
        return "is not set"
    if not (user and colon):
        return "has no user before a colon"
    if len(password) < SHORTEST:
        return f"has fewer than {SHORTEST} characters"
    return "is known to everybody" if password in KNOWN else None


def _demand_server(database: str) -> None:
    try:
        url = sqlalchemy.make_url(database)
    except sqlalchemy.exc.ArgumentError:
        raise InputError("--database: write postgresql://USER@HOST:PORT/") from None
    if url.get_backend_name() != "postgresql" or url.database:
        raise InputError(
            f"--database {url}: write postgresql://USER@HOST:PORT/; the databases {PREFECT} and {MLFLOW} are "
            "made there"
        )
    if url.password:
        raise InputError(
            f"--database {url}: everybody on this machine can read a password in a command; put it into "
            "PGPASSWORD or ~/.pgpass"
        )


def _demand_bucket(artifacts: str) -> None:
    """Else the first model of a finished run would be refused, long after the servers have begun."""
    import boto3  # late: an extra of ours
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = artifacts.removeprefix("s3://").partition("/")[0]
    address = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None  # else AWS_ENDPOINT_URL, which boto3 knows
    try:
        boto3.client("s3", endpoint_url=address).head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise InputError(
            f"--artifacts {artifacts}: {' '.join(str(error).split())}. Make the bucket {bucket!r}, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; of a store that is not Amazon's, AWS_ENDPOINT_URL"
        ) from None


def create_databases(database: str) -> None:
    """Those that are missing. Raises RegraftError where the server does not let us."""
    url = sqlalchemy.make_url(_url(database, "postgresql+psycopg2", "postgres"))
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            there = set(connection.scalars(sqlalchemy.text("SELECT datname FROM pg_database")))
            for name in {PREFECT, MLFLOW} - there:
                connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    except sqlalchemy.exc.SQLAlchemyError as error:
        said = " ".join(str(getattr(error, "orig", error)).split())
        raise RegraftError(f"PostgreSQL at {url}: {said}") from None
    finally:
        engine.dispose()


def _url(server: str, driver: str, database: str) -> str:
    return sqlalchemy.make_url(server).set(drivername=driver, database=database).render_as_string()


@contextmanager
def _running(server: Server, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """In a process group of its own, because both start further processes, and Ctrl-C is ours to pass on."""
    inherited = {name: value for name, value in os.environ.items() if name not in THEIRS}
    with _log(folder, server).open("ab") as log:
        process = subprocess.Popen(
            server.command,
            env={**inherited, **server.variables},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(children: Mapping[Server, subprocess.Popen[bytes]], folder: Path) -> None:
    ends = time.monotonic() + PATIENCE
    waiting = list(children)
    while waiting := [server for server in waiting if not _answers(server.health)]:
        _demand_alive(children, folder)
        if time.monotonic() > ends:
            raise RegraftError(f"{_names(waiting)} did not answer within {PATIENCE:g} s; see {folder}/*.log")
        time.sleep(0.3)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _demand_alive(children: Mapping[Server, subprocess.Popen[bytes]], folder: Path) -> None:
    for server, process in children.items():
        if (code := process.poll()) is not None:
            log = _log(folder, server)
            words = " / ".join(log.read_text(encoding="utf-8", errors="replace").split("\n")[-WORDS - 1 :])
            raise RegraftError(
                f"{server.title} ended with {code}; the last words of {log}: {words.strip(' /')}"
            )


def _log(folder: Path, server: Server) -> Path:
    return folder / f"{server.title.lower()}.log"


def _names(waiting: Sequence[Server]) -> str:
    return " and ".join(server.title for server in waiting)
