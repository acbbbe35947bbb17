"""One trial: a copy of the project in which something is due, a run that is struck, and the judgement."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from configparser import ConfigParser
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from dvc.utils.serialize import modify_yaml
from mlflow import MlflowClient

from benchmarks.chaos import attempts, deployed, disk
from benchmarks.chaos.stands import BUCKET, Stand
from benchmarks.chaos.strikes import COMMIT, DISK, DUE, FLOW, NETWORK, STAGE, WORKER, Strike
from flows.commands import housekeeping
from tasks.stages import STAGES
from tasks.tracking import circumstances, spool

SAME = tuple(stage for stage in STAGES if stage != "promotion")  # whose manifest tells versions and dates
ATTEMPTS = 3
WORDS = 1500  # characters of a log that a fault quotes


class Trial(NamedTuple):
    strike: Strike
    attempts: int
    faults: tuple[str, ...]


class Ended(NamedTuple):
    """How many times a run was begun, its last exit code, and what was wrong on the way."""

    attempts: int
    code: int
    faults: tuple[str, ...] = ()


def trial(template: Path, root: Path, strike: Strike, stand: Stand) -> Trial:
    name = f"trial-{strike.seed}"
    with disk.limited(root) if strike.victim == DISK else nullcontext():
        _make_due(template, root, strike, name, stand)
        way = _deployed if strike.victim == WORKER else _by_hand
        done = way(root, strike, stand)
        attempts.await_orphans(root)
        faults = [] if done.code in attempts.ENDS else [f"ended with {done.code}: {_last_words(root)}"]
        client = MlflowClient(tracking_uri=stand.variables["MLFLOW_TRACKING_URI"])
        faults += [*done.faults, *_differing(template, root), *_left(root), *_runs(client, name, strike)]
        faults += _away(root, stand) if stand.link else ()
        return Trial(strike, done.attempts, tuple(faults))


def _make_due(template: Path, root: Path, strike: Strike, name: str, stand: Stand) -> None:
    """A copy in which nobody knows what the stages from `due` on have made, and MLflow nothing at all."""
    shutil.copytree(template, root, symlinks=True, dirs_exist_ok=True)
    _forget(root, list(STAGES)[list(STAGES).index(strike.due) :])
    changes = {"model: small": f"model: {name}"}
    if stand.link:
        changes["commit_lock: false"] = "commit_lock: true"
        _name_remote(root, stand, name)
    params = root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    for former, wanted in changes.items():
        assert former in text
        text = text.replace(former, wanted)
    params.write_text(text, encoding="utf-8")


def _forget(root: Path, stages: list[str]) -> None:
    with modify_yaml(str(root / "dvc.lock")) as lock:
        made = [out["path"] for stage in stages for out in lock["stages"].pop(stage, {}).get("outs", ())]
    for path in (root / one for one in made):
        if path.name != "ledger.parquet":  # remembers who belongs where, by design
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for place in (".dvc/cache/runs", ".regraft/resume", ".regraft/states"):
        shutil.rmtree(root / place, ignore_errors=True)


def _name_remote(root: Path, stand: Stand, name: str) -> None:
    """Empty, and each trial's own."""
    config, path = ConfigParser(), root / ".dvc" / "config"
    config.read(path)
    remote = {"url": f"s3://{BUCKET}/{name}", "endpointurl": stand.remote}
    config.read_dict({"core": {"remote": "store"}, """'remote "store"'""": remote})
    with path.open("w", encoding="utf-8") as stream:
        config.write(stream)


def _deployed(root: Path, strike: Strike, stand: Stand) -> Ended:
    """Nobody gives a command again: the server and a second worker end what the first began."""
    told = deployed.struck(root, strike, stand.variables)
    if told.state == "Completed":
        return Ended(told.begun, 0)
    return Ended(told.begun, 1, (f"the run is {told.state} ({told.message})",))


def _by_hand(root: Path, strike: Strike, stand: Stand) -> Ended:
    """The same command again, until it ends well and nothing waits to be sent."""
    number, (code, faults) = 1, _struck(root, strike, stand)
    while (code not in attempts.ENDS or spool.waiting(root)) and number < ATTEMPTS:
        for service in stand.services.values():
            service.demand()
        number, code = number + 1, attempts.attempt(root, stand.variables)
    return Ended(number, code, tuple(faults))


def _struck(root: Path, strike: Strike, stand: Stand) -> tuple[int, list[str]]:
    """The exit code of a run to which it happens, and what was wrong with how it ended."""
    flow = attempts.begin(root, stand.variables)
    words = f"{DUE[-1]}: done" if strike.stage == COMMIT else f"{strike.stage}: running"
    attempts.await_words(flow, root, words)
    time.sleep(strike.after)
    happen = HAPPENINGS.get(strike.victim, _kill_server)
    return happen(flow, root, strike, stand)


def _kill_server(
    flow: "subprocess.Popen[bytes]", root: Path, strike: Strike, stand: Stand
) -> tuple[int, list[str]]:
    stand.services[strike.victim].kill()
    stand.services[strike.victim].start()
    return attempts.ended(flow), []


def _kill_flow(
    flow: "subprocess.Popen[bytes]", root: Path, strike: Strike, stand: Stand
) -> tuple[int, list[str]]:
    flow.kill()
    return attempts.ended(flow), []


def _kill_stage(
    flow: "subprocess.Popen[bytes]", root: Path, strike: Strike, stand: Stand
) -> tuple[int, list[str]]:
    """Whichever is at work, or the next one."""
    while flow.poll() is None and not (bodies := list(attempts.stages(psutil.Process(flow.pid)))):
        time.sleep(0.05)
    if flow.poll() is None:
        for body in bodies:
            with suppress(psutil.NoSuchProcess):
                body.kill()
    return attempts.ended(flow), []


def _fill_disk(
    flow: "subprocess.Popen[bytes]", root: Path, strike: Strike, stand: Stand
) -> tuple[int, list[str]]:
    """While it is full, the run says so and leaves nothing half-written; or it needed no more."""
    with disk.full(root):
        code = attempts.ended(flow)
        attempts.await_orphans(root)
        faults = [f"on a full disk: {fault}" for fault in _drafts(root)]
    if code not in attempts.ENDS and not any(word in _said(root).lower() for word in disk.WORDS):
        faults.append(f"ended with {code} on a full disk without naming it: {_last_words(root)}")
    return code, faults


def _cut_network(
    flow: "subprocess.Popen[bytes]", root: Path, strike: Strike, stand: Stand
) -> tuple[int, list[str]]:
    assert stand.link
    stand.link.cut()
    time.sleep(strike.lasting)
    stand.link.heal()
    return attempts.ended(flow), []


Happening = Callable[["subprocess.Popen[bytes]", Path, Strike, Stand], tuple[int, list[str]]]
HAPPENINGS: Mapping[str, Happening] = {
    FLOW: _kill_flow,
    STAGE: _kill_stage,
    DISK: _fill_disk,
    NETWORK: _cut_network,
}  # all other victims are servers


def _said(root: Path) -> str:
    return attempts.log(root).read_text(encoding="utf-8", errors="replace")


def _last_words(root: Path) -> str:
    return _said(root)[-WORDS:]


def _differing(template: Path, root: Path) -> Iterator[str]:
    for stage in SAME:
        wanted, found = (circumstances.manifest_digest(place, stage) for place in (template, root))
        if wanted != found:
            yield f"{stage} has {found} and not {wanted}"


def _left(root: Path) -> Iterator[str]:
    """What is half-written, unsent, locked or still at work."""
    yield from _drafts(root)
    yield from (f"{path} was not sent" for path in spool.waiting(root))
    yield from housekeeping.at_work(root)  # whom DVC has locks of; those of the dead it passes over
    yield from (f"process {one.pid} is left" for one in psutil.process_iter() if attempts.works_in(one, root))


def _drafts(root: Path) -> Iterator[str]:
    tops = [root / top for top in ("data", "reports", ".regraft/resume")]
    yield from (f"{path} is left" for top in tops for path in top.rglob(".*.draft"))


def _runs(client: MlflowClient, name: str, strike: Strike) -> Iterator[str]:
    """Each stage that was due must have finished in one run, and no run may seem to be at work."""
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    ended = Counter(run.data.tags["regraft.stage"] for run in found if run.info.status == "FINISHED")
    for stage in DUE[DUE.index(strike.due) :]:
        if ended[stage] != 1:
            yield f"MLflow has {ended[stage]} finished runs of {stage}"
    for run in found:
        if run.info.status not in ("FINISHED", "KILLED", "FAILED"):
            yield f"MLflow has a run of {run.data.tags['regraft.stage']} {run.info.status}"


def _away(root: Path, stand: Stand) -> Iterator[str]:
    """The remote has all that the committed dvc.lock names."""
    for words, wanted in (
        ((sys.executable, "-m", "dvc", "status", "--cloud", "--quiet"), ""),
        (("git", "status", "--porcelain", "dvc.lock"), ""),
        (("git", "log", "-1", "--format=%s"), "Reproduce\n"),
    ):
        env = {**os.environ, **stand.variables}
        done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, check=False)
        if done.returncode or done.stdout != wanted:
            yield f"{' '.join(words[-3:])} ends with {done.returncode}: {done.stdout[-300:]}"
