import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.checkout import forkserver
from flows.checkout.forkserver import LIBRARIES, ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone forks")
STAGE = """
import json, os, signal, sys, time
from pathlib import Path

if __name__ == "__main__":
    told = {"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
    told |= {"ours": sorted(name for name in sys.modules if name.split(".")[0] in ("flows", "tasks"))}
    told |= {"libraries": sorted({"decimal", "fractions", "wave"} & set(sys.modules))}
    told |= {"command": Path("/proc/self/cmdline").read_text().rstrip(chr(0))}
    told |= {"path": sys.path, "file": __file__, "pid": os.getpid()}
    Path("half.json").write_text(json.dumps(told))
    Path("half.json").rename("told.json")
    def save(*_):
        time.sleep(0.5)
        Path("saved").write_text("what it learned")
        sys.exit(143)
    if "save" in sys.argv:
        signal.signal(signal.SIGTERM, save)
        Path("ready").touch()
    try:
        while "wait" in sys.argv:
            time.sleep(0.01)
    except KeyboardInterrupt:
        sys.exit(130)
    if "die" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "fault" in sys.argv:
        raise RuntimeError("no such thing")
    sys.exit(7 if "seven" in sys.argv else 0)
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    (tmp_path / "tasks" / "__main__.py").write_text(STAGE)
    return tmp_path


@pytest.fixture
def server():
    made = ForkServer(os.environ)
    yield made
    made.close()


def _told(checkout):
    return json.loads((checkout / "told.json").read_text())


def _until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.02)


def _begun(server, checkout, *arguments):
    """Runs in a thread; its exit code comes into the list."""
    codes = []

    def run():
        try:
            codes.append(server.run("tasks", arguments, str(checkout), os.environ))
        except ChildProcessError as error:
            codes.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    _until((checkout / "told.json").exists)
    return thread, codes


def test_a_stage_runs_by_the_code_of_its_checkout_with_libraries_at_hand(server, checkout):
    given = {"PATH": os.environ["PATH"], "REGRAFT_MESSAGES": "there"}
    server.load(["decimal"])
    assert server.run("tasks", ["vocabulary"], str(checkout), given, libraries=["wave"]) == 0
    told = _told(checkout)
    assert told["arguments"] == ["vocabulary"]
    assert told["folder"] == str(checkout)
    assert told["file"] == str(checkout / "tasks" / "__main__.py")
    assert told["ours"] == ["tasks"]
    assert told["path"][0] == str(checkout)
    assert not [path for path in told["path"] if path.endswith("checkout")], "names like `locks` are ours"
    assert told["command"] == "python -m tasks vocabulary"
    assert told["libraries"] == ["decimal", "wave"]
    assert {name: told["environment"][name] for name in given} == given
    assert "HOME" not in told["environment"]


def test_one_stage_leaves_nothing_to_the_next(server, checkout):
    for words in ("first", "second"):
        environment = {"PATH": os.environ["PATH"], words.upper(): "1"}
        assert server.run("tasks", [words], str(checkout), environment) == 0
    told = _told(checkout)
    assert told["arguments"] == ["second"]
    assert "FIRST" not in told["environment"]
    assert told["ours"] == ["tasks"]


def test_what_others_need_is_imported_while_one_runs(server, checkout):
    assert server.run("tasks", [], str(checkout), os.environ, meanwhile=["wave"]) == 0
    assert _told(checkout)["libraries"] == []
    assert server.run("tasks", [], str(checkout), os.environ) == 0
    assert _told(checkout)["libraries"] == ["wave"]


@pytest.mark.parametrize(("word", "code"), [("seven", 7), ("die", -9), ("fault", 1), ("", 0)])
def test_how_it_ended_is_told(server, checkout, word, code):
    assert server.run("tasks", [word], str(checkout), os.environ) == code
    assert server.run("tasks", ["again"], str(checkout), os.environ) == 0


def test_ctrl_c_of_a_terminal_is_the_stages_to_answer(server, checkout):
    thread, codes = _begun(server, checkout, "wait")
    child = psutil.Process(_told(checkout)["pid"])
    for process in (child.parent(), child):
        process.send_signal(signal.SIGINT)
    thread.join(20)
    assert codes == [130]
    assert server.run("tasks", [], str(checkout), os.environ) == 0


def test_a_server_that_was_killed_is_told_once_the_stage_has_saved(checkout):
    environment = dict(os.environ)
    made = forkserver.current(environment)
    assert forkserver.current(environment) is made
    thread, codes = _begun(made, checkout, "save", "wait")
    _until((checkout / "ready").exists)
    child = psutil.Process(_told(checkout)["pid"])
    child.parent().kill()
    thread.join(20)
    assert codes == ["what forks the processes of stages ended with -9"]
    assert (checkout / "saved").exists()
    assert not child.is_running()
    with pytest.raises(ChildProcessError, match="ended with -9"):
        made.run("tasks", [], str(checkout), environment)
    assert forkserver.current(environment).run("tasks", [], str(checkout), environment) == 0


def test_who_ends_the_server_ends_the_stage_first(server, checkout):
    thread, codes = _begun(server, checkout, "save", "wait")
    _until((checkout / "ready").exists)
    parent = psutil.Process(_told(checkout)["pid"]).parent()
    parent.terminate()
    thread.join(20)
    assert codes == [143]
    assert (checkout / "saved").exists()
    assert psutil.wait_procs([parent], timeout=20)[1] == []
    assert not server.lives()


def test_a_run_that_was_broken_off_says_nothing_of_the_next(checkout, monkeypatch):
    environment = dict(os.environ)
    made = forkserver.current(environment)

    def broken_off(self):
        raise TimeoutError

    with monkeypatch.context() as patch, pytest.raises(TimeoutError):
        patch.setattr(ForkServer, "_heard", broken_off)
        made.run("tasks", ["seven"], str(checkout), environment)
    assert forkserver.current(environment).run("tasks", [], str(checkout), environment) == 0


def test_the_next_run_waits_until_one_that_was_broken_off_has_saved(checkout, monkeypatch):
    environment = dict(os.environ)
    made = forkserver.current(environment)
    thread, _ = _begun(made, checkout, "save", "wait")
    _until((checkout / "ready").exists)
    monkeypatch.setattr(made, "_heard", lambda: 1 / 0)  # whoever awaits it hears no more
    assert forkserver.current(environment).run("tasks", [], str(checkout), environment) == 0
    assert (checkout / "saved").exists()
    thread.join(20)


def test_a_server_that_was_told_to_end_is_not_asked_again(server, checkout):
    thread, codes = _begun(server, checkout, "save", "wait")
    _until((checkout / "ready").exists)
    psutil.Process(_told(checkout)["pid"]).parent().send_signal(signal.SIGTERM)
    _until(lambda: codes)
    assert not server.lives()
    thread.join(20)


def test_all_that_is_said_at_once_is_heard(server, checkout, monkeypatch):
    """Who is stopped meanwhile, as by a debugger, finds number and code together."""
    receive = ForkServer._receive

    def late(self):
        _until(lambda: len(self._wire.recv(4096, socket.MSG_PEEK).splitlines()) == 2)
        receive(self)

    monkeypatch.setattr(ForkServer, "_receive", late)
    assert server.run("tasks", ["seven"], str(checkout), os.environ) == 7


def test_a_library_that_is_missing_ends_it(server, checkout):
    with pytest.raises(ChildProcessError, match="ended with 1"):
        server.run("tasks", [], str(checkout), os.environ, libraries=["no_such_library"])


def test_another_environment_needs_another_server(monkeypatch):
    environment = dict(os.environ)
    made = forkserver.current(environment)
    assert forkserver.current({**environment, "KMP_INIT_AT_FORK": "FALSE"}) is made
    other = forkserver.current({**environment, "OMP_NUM_THREADS": "7"})
    assert other is not made
    assert not made.lives()
    assert other.lives()


CALLER = """
import os, sys
sys.path.insert(0, {repository!r})
from flows.checkout.forkserver import ForkServer

server = ForkServer({{**os.environ, "PYTHONPATH": {folder!r}}})
print(server._process.pid, flush=True)
server.run("tasks", [{word!r}], {folder!r}, os.environ, libraries={libraries!r})
"""


@pytest.fixture
def caller(checkout):
    """Starts one that has a stage run; returns it and the server's process."""

    def start(word, libraries=()):
        repository = str(Path(__file__).parents[3])
        given = {"repository": repository, "folder": str(checkout), "word": word, "libraries": libraries}
        source = textwrap.dedent(CALLER).format(**given)
        began = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
        started.append(began)
        return began, psutil.Process(int(began.stdout.readline()))

    started = []
    yield start
    for began in started:
        began.kill()
        began.wait()
        began.stdout.close()


def test_server_and_stage_end_with_their_caller(checkout, caller):
    began, server = caller("wait")
    _until((checkout / "told.json").exists)
    child = psutil.Process(_told(checkout)["pid"])
    began.kill()
    began.wait()
    assert psutil.wait_procs([server, child], timeout=20)[1] == []


SLOW = """
import time
from pathlib import Path

Path({folder!r}, "loading").touch()
time.sleep(2)
"""


def test_a_caller_that_is_gone_before_the_libraries_are_there_has_nothing_run(checkout, caller):
    (checkout / "slow.py").write_text(SLOW.format(folder=str(checkout)))
    began, server = caller("wait", ["slow"])
    _until((checkout / "loading").exists)
    began.kill()
    began.wait()
    assert psutil.wait_procs([server], timeout=20)[1] == []
    assert not (checkout / "told.json").exists()


def test_ctrl_c_while_libraries_are_imported_ends_the_caller(checkout, caller):
    (checkout / "slow.py").write_text(SLOW.format(folder=str(checkout)))
    began, server = caller("wait", ["slow"])
    _until((checkout / "loading").exists)
    for process in (server, began):
        process.send_signal(signal.SIGINT)
    assert began.wait(20) not in (0, None)
    assert psutil.wait_procs([server], timeout=20)[1] == []
    assert not (checkout / "told.json").exists()


WORK = """
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet
import torch

rows = pl.DataFrame({"number": range(300_000)})
sums = rows.group_by(pl.col("number") % 7).len().sort("number")
rows.write_parquet("rows.parquet")
table = pyarrow.parquet.read_table("rows.parquet")
product = torch.ones(600, 600) @ torch.ones(600, 600)
Path("told.json").write_text(f"{len(sums)} {table.num_rows} {product.sum().item():.0f}")
"""


@pytest.mark.e2e
def test_libraries_with_threads_of_their_own_work_in_a_fork(checkout):
    (checkout / "tasks" / "__main__.py").write_text(WORK)
    server = ForkServer(os.environ)
    for _ in range(2):
        (checkout / "told.json").unlink(missing_ok=True)
        assert server.run("tasks", [], str(checkout), os.environ, libraries=LIBRARIES) == 0
        assert (checkout / "told.json").read_text() == "7 300000 216000000"
    server.close()


ASKED = """
import sys
from importlib import import_module

import torch

def asked(*given, **more):
    sys.exit("a device was asked for")

for name in ("is_available", "device_count", "_lazy_init", "current_device"):
    setattr(torch.cuda, name, asked)
for library in sys.argv[1:]:
    import_module(library)
"""


@pytest.mark.e2e
def test_no_library_asks_for_a_device_when_it_is_imported():
    subprocess.run([sys.executable, "-c", ASKED, *LIBRARIES], check=True)
