"""What `regraft servers` starts and what it refuses; that it works is in test_team.py."""

import socket
import stat
import subprocess
import sys

import pytest

from flows.team import servers
from flows.team.servers import Plan
from tasks.errors import InputError

GOOD = {
    "PREFECT_SERVER_API_AUTH_STRING": "team:a-long-password-1",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "a-long-password-2",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-long-password-3",
}


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch):
    for name in (*servers.SECRETS, "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(servers.environment, "demand", lambda library, **about: None)


def _set(monkeypatch, **more):
    for name, value in {**GOOD, **more}.items():
        monkeypatch.setenv(name, value)


def _refused(plan):
    with pytest.raises(InputError) as refused:
        servers.serve(plan, print)
    return str(refused.value)


def test_what_others_can_reach_is_refused_without_each_secret(tmp_path):
    said = _refused(Plan(tmp_path / "servers", host="0.0.0.0"))
    assert all(f"{name} is not set" in said for name in servers.SECRETS)
    assert not (tmp_path / "servers").exists()


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("PREFECT_SERVER_API_AUTH_STRING", "a-long-password-1", "has no user before a colon"),
        ("PREFECT_SERVER_API_AUTH_STRING", "team:short", "has fewer than 12 characters"),
        ("PREFECT_SERVER_API_AUTH_STRING", "team:change-me-please", "is known to everybody"),
        ("MLFLOW_AUTH_ADMIN_PASSWORD", "password1234", "is known to everybody"),
        ("MLFLOW_FLASK_SERVER_SECRET_KEY", "short", "has fewer than 12 characters"),
    ],
)
def test_a_weak_or_known_secret_is_refused_by_name_and_not_repeated(
    tmp_path, monkeypatch, name, value, fault
):
    _set(monkeypatch, **{name: value})
    said = _refused(Plan(tmp_path, host="0.0.0.0"))
    assert f"{name} {fault}" in said
    assert value not in said
    assert sum(other in said for other in servers.SECRETS) == 1


def test_one_secret_on_this_machine_alone_asks_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", GOOD["MLFLOW_AUTH_ADMIN_PASSWORD"])
    assert "PREFECT_SERVER_API_AUTH_STRING is not set" in _refused(Plan(tmp_path))


@pytest.mark.parametrize(
    ("host", "secret", "protected"),
    [
        ("127.0.0.1", False, False), ("localhost", False, False), ("127.0.0.1", True, True), ("0.0.0.0", False, True),
        ("10.0.0.7", False, True), ("trainer.example", False, True),
    ],
)  # fmt: skip
def test_who_is_asked_for_a_password(tmp_path, monkeypatch, host, secret, protected):
    if secret:
        _set(monkeypatch)
    assert Plan(tmp_path, host=host).protected is protected


@pytest.mark.parametrize(
    ("database", "fault"),
    [
        ("postgresql://me:planted@db/", "PGPASSWORD"),
        ("postgresql://me@db/mlflow", "are made there"),
        ("mysql://me@db/", "write postgresql://"),
        ("db", "write postgresql://"),
    ],
)
def test_a_database_is_a_postgresql_server_without_a_password(tmp_path, database, fault):
    said = _refused(Plan(tmp_path, database=database))
    assert fault in said
    assert "planted" not in said


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be had" in _refused(Plan(tmp_path, mlflow_port=port))


def test_commands_hold_no_secret_and_no_database(tmp_path, monkeypatch):
    _set(monkeypatch)
    plan = Plan(tmp_path, host="0.0.0.0", name="trainer", database="postgresql://me@db/")
    prefect, mlflow = servers.servers(plan)
    said = " ".join(prefect.command + mlflow.command)
    assert "a-long-password" not in said
    assert "postgresql" not in said
    assert mlflow.command[-2:] == ("--app-name", "basic-auth")
    assert prefect.variables["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg://me@db/prefect"
    assert mlflow.variables["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me@db/mlflow"
    assert mlflow.variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")[0] == "trainer:5000"
    written = tmp_path / "authentication.ini"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert "password" not in written.read_text()


def test_what_is_told_holds_no_secret(tmp_path, monkeypatch):
    _set(monkeypatch)
    said = "\n".join(servers.told(Plan(tmp_path, host="0.0.0.0", name="trainer")))
    assert "export PREFECT_API_URL=http://trainer:4200/api" in said
    assert "export MLFLOW_TRACKING_URI=http://trainer:5000" in said
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert "a-long-password" not in said


def test_a_server_that_ends_takes_the_other_along_and_is_quoted(tmp_path, monkeypatch):
    dying = servers.Server(
        "One", (sys.executable, "-c", "import sys; sys.exit('no room left')"), {}, "http://127.0.0.1:9/"
    )
    staying = servers.Server(
        "Other", (sys.executable, "-c", "import time; time.sleep(600)"), {}, "http://127.0.0.1:9/"
    )
    monkeypatch.setattr(servers, "servers", lambda plan: iter([staying, dying]))
    begun = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        servers.subprocess, "Popen", lambda *words, **more: begun.append(popen(*words, **more)) or begun[-1]
    )
    monkeypatch.setattr(servers, "demand_free", lambda host, port: None)
    with pytest.raises(
        servers.RegraftError, match=r"One ended with 1; the last words of .*one\.log: no room left"
    ):
        servers.serve(Plan(tmp_path), print)
    assert len(begun) == 2
    assert all(process.poll() is not None for process in begun)
