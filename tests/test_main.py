import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tasks import __main__ as entry
from tasks import files, params, progress, stages
from tasks.artifacts import PreparedText, Sources
from tasks.errors import DataError, InputError, ParamsError
from tasks.tracking import server

REPOSITORY = Path(__file__).parents[1]
NO_SPACE = "no space left on /disk/x; nothing half-written is left\n"
HEAVY = ("torch", "mlflow", "transformers", "pandas", "prefect", "dvc", "sklearn", "pyarrow")


@pytest.fixture(autouse=True)
def _as_before():
    handler, variables = signal.getsignal(signal.SIGTERM), dict(os.environ)
    yield
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture
def root(tracked):
    text = params.dump(params.load(REPOSITORY / "params.yaml"))
    (tracked / "params.yaml").write_text(text, encoding="utf-8")
    with files.replace_directory(Sources.folder(tracked)) as draft:
        Sources.save(draft, text="sha256:1", checkpoint="sha256:2")
    return tracked


@pytest.fixture
def body(monkeypatch):
    """Replaces the stages' bodies; the default one prepares seven rows."""

    def put(work):
        monkeypatch.setattr(stages, "run", lambda stage, settings, root, track: work(root, track))

    put(prepare)
    return put


def prepare(root, track):
    track.metrics({"rows": 7})
    with files.replace_directory(PreparedText.folder(root)) as draft:
        PreparedText.save(
            draft,
            kind="label",
            repaired=0,
            contaminated={},
            algorithm="",
            labels=("a", "b"),
            rows_in=9,
            rows={"train": 7},
            dropped={},
            quarantined={},
            changed={},
        )
    return PreparedText.load(root)


def raising(error):
    def work(root, track):
        raise error

    return work


def only_child(root):
    client = MlflowClient(tracking_uri=server.uri(root))
    experiment = client.get_experiment_by_name("tweet-sentiment").experiment_id
    (run,) = client.search_runs([experiment], "tags.`regraft.stage` = 'preparation'")
    return run


def test_help_is_light_and_names_the_stages():
    script = (
        "import sys\n"
        "from tasks.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"sys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "finetuning" in done.stdout
    assert done.stderr == ""


def test_an_unknown_stage_is_told_with_the_nearest_name(root, capsys):
    assert entry.main(["prepration", "--root", str(root)]) == 2
    assert capsys.readouterr().err == "no stage 'prepration'; did you mean 'preparation'?\n"


def test_a_stage_is_run_tracked_timed_and_told(root, body, tmp_path, monkeypatch):
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "messages"))
    assert entry.main(["preparation", "--root", str(root)]) == 0
    run = only_child(root)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["rows"] == 7
    assert run.data.tags["regraft.output"] == PreparedText.load(root).digest
    timings = json.loads((root / "reports" / "timings.json").read_text(encoding="utf-8"))
    assert timings["preparation"]["seconds"] > 0
    assert timings["preparation"]["peak_memory_bytes"] > 2**20
    told = [json.loads(line) for line in (tmp_path / "messages").read_text().splitlines()]
    assert [message["kind"] for message in told] == ["run", "summary"]
    assert told[0] == {
        "kind": "run",
        "stage": "preparation",
        "run_id": run.info.run_id,
        "uri": server.uri(root),
    }
    assert told[1]["figures"]["rows.train"] == 7


def test_what_a_stage_logs_is_told_too(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "messages"))
    logger = logging.getLogger("tasks.training.phases")
    monkeypatch.setattr(logger, "handlers", [progress.Words()])
    logger.warning("going on from phase %s", "head")
    assert json.loads((tmp_path / "messages").read_text()) == {
        "kind": "log", "level": logging.WARNING, "logger": logger.name, "text": "going on from phase head",
    }  # fmt: skip


def test_timings_of_other_stages_stay(root, body):
    (root / "reports").mkdir()
    (root / "reports" / "timings.json").write_text('{"encoding": {"seconds": 3}}', encoding="utf-8")
    entry.execute("preparation", root)
    timings = json.loads((root / "reports" / "timings.json").read_text(encoding="utf-8"))
    assert timings.keys() == {"encoding", "preparation"}
    assert timings["encoding"] == {"seconds": 3}


def test_sources_belong_to_no_run(root, body):
    body(lambda root, track: track.metrics({"rows": 1}) or Sources.load(root))
    assert entry.execute("sources", root) == Sources.load(root)
    assert MlflowClient(tracking_uri=server.uri(root)).get_experiment_by_name("tweet-sentiment") is None


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("row 7 has no label"), 2, "row 7 has no label\n"),
        (OSError(errno.ENOSPC, "full", "/disk/x"), 1, NO_SPACE),
        (OSError(errno.EDQUOT, "quota", "/disk/x"), 1, NO_SPACE),
        (KeyboardInterrupt(), 130, "preparation interrupted; run it again to go on where it stopped\n"),
    ],
)
def test_a_failure_is_a_sentence_and_an_exit_code(
    root, body, capsys, tmp_path, monkeypatch, error, code, message
):
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "messages"))
    body(raising(error))
    assert entry.main(["preparation", "--root", str(root)]) == code
    assert capsys.readouterr().err == message
    last = json.loads((tmp_path / "messages").read_text().splitlines()[-1])
    assert last == {"kind": "error", "text": message.strip()}
    assert only_child(root).info.status == ("KILLED" if code == 130 else "FAILED")
    assert not (root / "reports" / "timings.json").exists()


def test_another_os_error_is_not_called_a_full_disk(root, body):
    body(raising(OSError(errno.EIO, "broken", "/disk/x")))
    with pytest.raises(OSError, match="broken"):
        entry.main(["preparation", "--root", str(root)])


def test_a_missing_permission_is_a_sentence(root, body, capsys):
    body(raising(PermissionError(errno.EACCES, "denied", "/disk/x")))
    assert entry.main(["preparation", "--root", str(root)]) == 1
    assert "/disk/x: permission denied" in capsys.readouterr().err


def test_a_missing_params_file_is_told_before_anything_runs(root, body):
    (root / "params.yaml").unlink()
    with pytest.raises(ParamsError, match="is missing"):
        entry.execute("preparation", root)


def test_a_dead_server_is_told_and_costs_no_stage(root, body, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert entry.main(["preparation", "--root", str(root)]) == 0
    assert "tracking degraded: MLflow at http://127.0.0.1:9" in caplog.text
    assert PreparedText.load(root).rows == {"train": 7}


@pytest.fixture
def handler():
    former = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, former)


def test_a_terminated_stage_ends_its_run_as_killed(root, body, handler):
    released = []

    def work(root, track):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second does not break off what the first lets go of
            released.append(1)

    body(work)
    with pytest.raises(SystemExit) as caught:
        entry.main(["preparation", "--root", str(root)])
    assert (caught.value.code, released) == (143, [1])
    assert only_child(root).info.status == "KILLED"


def test_execute_refuses_an_unknown_stage(root):
    with pytest.raises(InputError, match="did you mean 'encoding'"):
        entry.execute("encodings", root)


STAGE = (
    "import os, sys, time\n"
    "from tasks.__main__ import die_with_caller\n"
    "die_with_caller(every=0.05)\n"
    "sys.stdout.write(f'{os.getpid()}\\n'); sys.stdout.flush()\n"
    "time.sleep(120)"
)
CALLERS = {  # how DVC runs a command, and a caller without a shell
    "shell": "subprocess.run(['/bin/sh', '-c', '\"$0\" -c \"$1\"; true', sys.executable, sys.argv[1]])",
    "direct": "subprocess.run([sys.executable, '-c', sys.argv[1]])",
}


def started(caller, variables):
    """(process that ran the stage, the stage's own process)."""
    script = f"import subprocess, sys; {CALLERS[caller]}"
    process = subprocess.Popen(
        [sys.executable, "-c", script, STAGE], cwd=REPOSITORY, env=os.environ | variables,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process.stdout:
        return process, psutil.Process(int(process.stdout.readline()))


@pytest.mark.parametrize("caller", CALLERS)
def test_a_stage_ends_when_the_one_that_ran_it_is_killed(caller):
    process, stage = started(caller, {"DVC_STAGE": "finetuning"})
    assert stage.is_running()
    process.kill()
    process.wait()
    psutil.wait_procs([stage], timeout=30)
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_always_ends_with_its_caller_does(monkeypatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(
        sys.modules[__name__], "STAGE", STAGE.replace("every=0.05", "every=0.05, always=True")
    )
    process, stage = started("direct", {})
    process.kill()
    process.wait()
    psutil.wait_procs([stage], timeout=30)
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


def test_a_stage_that_a_person_ran_outlives_their_terminal(monkeypatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    process, stage = started("direct", {})
    process.kill()
    process.wait()
    time.sleep(0.5)
    assert stage.is_running()
    stage.kill()
