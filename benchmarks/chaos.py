"""`python -m benchmarks.chaos [--trials 50] [--quick]`: is a run the same after it was struck at random?

A small project runs once undisturbed. In each trial the stages from a random one on are due again in a copy
of it; at a random moment of `regraft run` a victim is killed (SIGKILL): the flow's process, a stage's, the
MLflow server or the Prefect server. A server begins again, and the same command is given until it ends. The
trial is survived if every manifest then has the undisturbed run's digest, MLflow knows one finished run of
each stage that was due, and nothing half-written, unsent or locked is left. Prints what each victim came to
and writes benchmarks/results/chaos.json; a quick run chaos-quick.json. Exit code 1 where a trial failed.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from dvc.utils.serialize import modify_yaml
from mlflow import MlflowClient

from benchmarks import project, record
from flows.commands import housekeeping
from flows.team import servers
from tasks.stages import STAGES
from tasks.tracking import circumstances, spool

LIBRARIES = ("prefect", "dvc", "mlflow", "torch")
FLOW, STAGE, MLFLOW, PREFECT = "flow", "stage", "MLflow", "Prefect"
VICTIMS = (FLOW, STAGE, MLFLOW, PREFECT)
TRIALS, QUICK = 50, 2
DUE = tuple(stage for stage in STAGES if stage != "sources")  # which always runs
SAME = tuple(stage for stage in STAGES if stage != "promotion")  # whose manifest tells versions and dates
ENDS = (0, 3)  # whatever the gate says of a model that learned next to nothing
ATTEMPTS = 3
LASTING = 6.0  # seconds from a stage's turn to the strike, at most: about what a stage takes
PATIENCE = 600.0  # seconds for an attempt, a server's start or a stage's turn, after which the trial is lost
ORPHANS = 90.0  # seconds for what a killed flow leaves to see that and end
COMMAND = (sys.executable, "-m", "flows.cli", "run")  # the project's own code, whichever is installed


class Strike(NamedTuple):
    """Who is killed, `after` seconds from when `stage` is at work; the stages from `due` on are due."""

    seed: int
    victim: str
    due: str
    stage: str
    after: float


class Trial(NamedTuple):
    strike: Strike
    attempts: int
    faults: tuple[str, ...]


class Service:
    """A server in a process group of its own, which may be killed whole and begun again on the same files."""

    def __init__(self, server: servers.Server, folder: Path) -> None:
        self._server, self._log = server, folder / f"{server.title}.log"
        self.start()

    def start(self) -> None:
        variables = {**project.variables(), **self._server.variables}
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._server.command, env=variables, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def demand(self) -> None:
        """Wait until it answers. Raises RuntimeError with its last words where it does not."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(self._server.health, timeout=10):
                return
            time.sleep(0.5)
        raise RuntimeError(f"{self._server.title} does not answer: {self._log.read_text()[-2000:]}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first trial; a trial is repeated by its own"
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} trials: figures to try out")
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        trials = soak(Path(scratch), QUICK if options.quick else options.trials, options.seed)
    for target in record.targets(options.into, "chaos", quick=options.quick):
        record.write(target, figures(trials), lines(trials), libraries=LIBRARIES, quick=options.quick)
    print(record.table(lines(trials)), *map(told, trials), sep="\n")
    sys.exit(1 if any(trial.faults for trial in trials) else 0)


def soak(folder: Path, trials: int, seed: int = 1) -> list[Trial]:
    """What trials with the seeds from `seed` on came to; they share servers and the undisturbed run."""
    with _services(folder / "servers") as (services, variables):
        record.say("the undisturbed run")
        template = project.make(folder / "undisturbed")
        _demand_ends(_attempt(template, variables))
        found = []
        for number in range(seed, seed + trials):
            found.append(_trial(template, folder / "trial", draw(number), services, variables))
            record.say(told(found[-1]))
            shutil.rmtree(folder / "trial")
    return found


def draw(seed: int) -> Strike:
    """Victims take turns; what else there is to choose is drawn."""
    chance = random.Random(seed)
    place = chance.randrange(len(DUE))
    due, after = chance.choice(DUE[: place + 1]), chance.uniform(0, LASTING)
    return Strike(seed, VICTIMS[seed % len(VICTIMS)], due, DUE[place], after)


def figures(trials: Sequence[Trial]) -> dict[str, float]:
    return {"chaos_survived_share": sum(not trial.faults for trial in trials) / len(trials)}


def lines(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A line for each victim that there was."""
    return [
        {
            "contestant": f"kill -9 of {victim}",
            "trials": len(struck),
            "survived": sum(not trial.faults for trial in struck),
            "attempts": sum(trial.attempts for trial in struck),
        }
        for victim in VICTIMS
        if (struck := [trial for trial in trials if trial.strike.victim == victim])
    ]


def told(trial: Trial) -> str:
    strike, result = trial.strike, "; ".join(trial.faults) or f"the same, attempts: {trial.attempts}"
    moment = f"{strike.after:.1f} s into {strike.stage}, due from {strike.due}"
    return f"seed {strike.seed}: {strike.victim} {moment}: {result}"


def _trial(
    template: Path, root: Path, strike: Strike, services: Mapping[str, Service], variables: Mapping[str, str]
) -> Trial:
    name = f"trial-{strike.seed}"
    _make_due(template, root, strike.due, name)
    attempts, code = 1, _struck(root, strike, services, variables)
    while (code not in ENDS or spool.waiting(root)) and attempts < ATTEMPTS:
        for service in services.values():
            service.demand()
        attempts, code = attempts + 1, _attempt(root, variables).returncode
    _await_orphans(root)
    faults = [] if code in ENDS else [f"ended with {code}: {_log(root).read_text()[-1500:]}"]
    client = MlflowClient(tracking_uri=variables["MLFLOW_TRACKING_URI"])
    return Trial(
        strike, attempts, (*faults, *_differing(template, root), *_left(root), *_runs(client, name, strike))
    )


def _make_due(template: Path, root: Path, due: str, name: str) -> None:
    """A copy in which nobody knows what the stages from `due` on have made, and MLflow nothing at all."""
    shutil.copytree(template, root, symlinks=True)
    gone = list(STAGES)[list(STAGES).index(due) :]
    with modify_yaml(str(root / "dvc.lock")) as lock:
        made = [out["path"] for stage in gone for out in lock["stages"].pop(stage, {}).get("outs", ())]
    for path in (root / one for one in made):
        if path.name != "ledger.parquet":  # remembers who belongs where, by design
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for folder in (
        root / ".dvc" / "cache" / "runs",
        root / ".regraft" / "resume",
        root / ".regraft" / "states",
    ):
        shutil.rmtree(folder, ignore_errors=True)
    params = root / "params.yaml"
    params.write_text(
        params.read_text(encoding="utf-8").replace("model: small", f"model: {name}"), encoding="utf-8"
    )


def _struck(root: Path, strike: Strike, services: Mapping[str, Service], variables: Mapping[str, str]) -> int:
    """The exit code of a run to which it happens."""
    flow = _begin(root, variables)
    _await_turn(flow, root, strike.stage)
    time.sleep(strike.after)
    if strike.victim in services:
        services[strike.victim].kill()
        services[strike.victim].start()
    elif strike.victim == FLOW:
        flow.kill()
    else:
        _kill_stage(flow)
    return _ended(flow)


def _await_turn(flow: "subprocess.Popen[bytes]", root: Path, stage: str) -> None:
    ends = time.monotonic() + PATIENCE
    while flow.poll() is None and time.monotonic() < ends:
        if f"{stage}: running" in _log(root).read_text(encoding="utf-8"):
            return
        time.sleep(0.1)


def _kill_stage(flow: "subprocess.Popen[bytes]") -> None:
    """Whichever is at work, or the next one."""
    while flow.poll() is None:
        with suppress(psutil.NoSuchProcess):
            bodies = [one for one in psutil.Process(flow.pid).children(recursive=True) if _is_stage(one)]
            for body in bodies:
                body.kill()
            if bodies:
                return
        time.sleep(0.05)


def _is_stage(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.cmdline()[1:3] == ["-m", "tasks"]
    return False


def _begin(root: Path, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    with _log(root).open("w", encoding="utf-8") as log:
        return subprocess.Popen(COMMAND, cwd=root, env=variables, stdout=log, stderr=log)


def _attempt(root: Path, variables: Mapping[str, str]) -> "subprocess.CompletedProcess[bytes]":
    flow = _begin(root, variables)
    return subprocess.CompletedProcess(COMMAND, _ended(flow), _log(root).read_bytes())


def _ended(flow: "subprocess.Popen[bytes]") -> int:
    """Its exit code; who takes too long is killed, which is a fault."""
    try:
        return flow.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        flow.kill()
        return flow.wait()


def _demand_ends(done: "subprocess.CompletedProcess[bytes]") -> None:
    if done.returncode not in ENDS:
        raise RuntimeError(
            f"the undisturbed run ended with {done.returncode}: {done.stdout[-2000:].decode()}"
        )


def _log(root: Path) -> Path:
    return root.with_name(f"{root.name}.log")


def _await_orphans(root: Path) -> None:
    """What still works in `root` would be told from a leftover by nothing."""
    ends = time.monotonic() + ORPHANS
    while time.monotonic() < ends and any(_works_in(one, root) for one in psutil.process_iter()):
        time.sleep(0.5)


def _works_in(process: psutil.Process, root: Path) -> bool:
    with suppress(psutil.Error, OSError):
        return Path(process.cwd()) == root
    return False


def _differing(template: Path, root: Path) -> Iterator[str]:
    for stage in SAME:
        wanted, found = (circumstances.manifest_digest(place, stage) for place in (template, root))
        if wanted != found:
            yield f"{stage} has {found} and not {wanted}"


def _left(root: Path) -> Iterator[str]:
    """What is half-written, unsent, locked or still at work."""
    tops = [root / top for top in ("data", "reports", ".regraft/resume")]
    yield from (f"{path} is left" for top in tops for path in top.rglob(".*.draft"))
    yield from (f"{path} was not sent" for path in spool.waiting(root))
    yield from housekeeping.at_work(root)  # whom DVC has locks of; those of the dead it passes over
    yield from (f"process {one.pid} is left" for one in psutil.process_iter() if _works_in(one, root))


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


@contextmanager
def _services(folder: Path) -> Iterator[tuple[Mapping[str, Service], Mapping[str, str]]]:
    """Both servers by their names, and the variables of a run that tells them."""
    folder.mkdir(parents=True)
    plan = servers.Plan(folder, prefect_port=_free_port(), mlflow_port=_free_port())
    with ExitStack() as running:
        services = {server.title: Service(server, folder) for server in servers.servers(plan)}
        for service in services.values():
            running.callback(service.kill)
        for service in services.values():
            service.demand()
        where = {"PREFECT_API_URL": f"{plan.prefect}/api", "MLFLOW_TRACKING_URI": plan.mlflow}
        yield services, {**project.variables(), **where}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
