"""compose.yaml has not been run by its authors: it is held to what `regraft servers` starts, which is tested."""

import re
from pathlib import Path

import pytest
import yaml

from flows.team import servers

REPOSITORY = Path(__file__).parents[3]
TEXT = (REPOSITORY / "compose.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
SECRETS = {*servers.SECRETS, "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"}


@pytest.fixture
def protected(tmp_path, monkeypatch):
    """What `regraft servers` would start in the same place: variables by the name of the server."""
    for name in servers.SECRETS:
        monkeypatch.setenv(name, "team:a-long-password")
    plan = servers.Plan(
        tmp_path, host="0.0.0.0", name="${REGRAFT_NAME}", database="postgresql://regraft@postgres/", artifacts="s3://mlflow/artifacts",
    )  # fmt: skip
    return {server.title.lower(): server for server in servers.servers(plan)}


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_commands_are_those_of_regraft_servers(protected, name):
    assert SERVICES[name]["command"] == ["python", *protected[name].command[1:]]


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_variables_are_those_of_regraft_servers(protected, name):
    wanted = dict(protected[name].variables)
    found = {
        key: re.sub(r"\$\{(\w+):\?[^}]*\}", r"${\1}", value)
        for key, value in SERVICES[name]["environment"].items()
    }
    wanted.pop("PREFECT_HOME", None)
    if wanted.pop("MLFLOW_AUTH_CONFIG_PATH", None):
        assert found["MLFLOW_AUTH_CONFIG_PATH"] in [
            config["target"] for config in SERVICES["mlflow"]["configs"]
        ]
    assert {key: found.get(key) for key in wanted} == wanted


def test_the_file_of_authentication_is_the_same(protected, tmp_path):
    assert COMPOSE["configs"]["authentication"]["content"] == (tmp_path / "authentication.ini").read_text()


def test_no_secret_has_a_value_or_a_default_here():
    used = re.findall(r"\$\{(\w+)([^}]*)\}", TEXT)
    assert {name for name, _ in used} == SECRETS | {"REGRAFT_NAME"}
    assert [rest for _, rest in used if not rest.startswith(":?set it in .env")] == []
    for name in SECRETS:
        for service in SERVICES.values():
            value = service.get("environment", {}).get(name, "${")
            assert value.startswith("${"), f"{name} is written out"


def test_only_what_asks_for_a_password_is_reached_from_outside():
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"prefect", "mlflow"}


def test_each_server_says_whether_it_is_healthy_and_waits_for_what_it_needs():
    for name, service in SERVICES.items():
        assert name == "bucket" or "healthcheck" in service
        assert set(service.get("depends_on", {})) <= set(SERVICES)
