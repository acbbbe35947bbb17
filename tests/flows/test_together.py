"""Several runs of one clone at once: each in a place of its own, or one after the other; never mixed up."""

import json
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from tasks import params as parameters
from tasks.artifacts import Evaluation, TrainedModel

pytestmark = pytest.mark.e2e
SEEDS = (2, 3, 4, 5)
COMPARED = (2, 5)
ENDS = (0, 3)  # whatever the gate says


@pytest.fixture
def begun(reproduced):
    """Starts `regraft run` in the checkout; whatever is left of it at the end is killed."""
    started = []

    def start(*words, root=reproduced):
        process = subprocess.Popen(
            ["regraft", "run", *words], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def apart(seed_reproduced, tmp_path):
    """Another clone, whose run cache knows nothing of what is done in the first."""
    root = tmp_path / "apart"
    shutil.copytree(seed_reproduced, root, symlinks=True)
    return root


def test_runs_with_other_params_in_one_clone_give_what_each_gives_alone(
    reproduced, apart, begun, command, prefect_server
):
    """Workspaces share DVC's store and MLflow's database, and nothing that is written under a fixed name."""
    before = _everything(reproduced, command)
    running = {seed: begun("-S", f"finetuning.seed={seed}", "--leaf", "inprocess") for seed in SEEDS}
    for process in running.values():
        said, _ = process.communicate()
        assert process.returncode == 0, said
    assert _everything(reproduced, command) == before
    found = _digests(reproduced)
    assert found.keys() == set(SEEDS)
    assert len(set(found.values())) == len(SEEDS), "seeds make models"
    for seed in COMPARED:
        _set_seed(apart, seed)
        for stage in ("finetuning", "evaluation"):
            command("python", "-m", "tasks", stage, cwd=apart)
        assert _made(apart) == found[seed]


def test_a_second_run_in_the_checkout_is_refused_while_the_first_is_at_work(
    reproduced, begun, command, prefect_server
):
    _set_seed(reproduced, 3)
    first = begun()
    _until(lambda: _trains(first), process=first)
    first.send_signal(signal.SIGSTOP)  # at work for as long as this takes
    second = begun()
    said, _ = second.communicate()
    assert second.returncode == 1, said
    assert "another run is at work" in said
    assert "Traceback" not in said
    first.send_signal(signal.SIGCONT)
    said, _ = first.communicate()
    assert first.returncode in ENDS, said
    assert set(_due(command)) == {"sources", "promotion"}, "those always are"


def _trains(process):
    below = psutil.Process(process.pid).children(recursive=True)
    alive = [one for one in below if one.status() != psutil.STATUS_ZOMBIE]
    return any(" ".join(one.cmdline()).split()[-2:] == ["tasks", "finetuning"] for one in alive)


def _due(command):
    return json.loads(command("dvc", "status", "--json").stdout)


def _set_seed(root, seed):
    path = root / "params.yaml"
    changed = parameters.override(parameters.load(path), [f"finetuning.seed={seed}"])
    path.write_text(parameters.dump(changed))


def _digests(root):
    """Seed of each workspace -> what its run has made."""
    places = (root / ".regraft" / "runs").iterdir()
    return {parameters.load(place / "params.yaml").finetuning.seed: _made(place) for place in places}


def _made(root):
    return TrainedModel.load(root).digest, Evaluation.load(root).digest


def _everything(root, command):
    """All that a person has in the checkout: what git tracks, what the stages have made, its branches."""
    files = {
        str(path.relative_to(root)): path.read_bytes()
        for top in ("data", "reports")
        for path in (root / top).rglob("*")
        if path.is_file()
    }
    return files, command("git", "status", "--porcelain").stdout, command("git", "branch", "--list").stdout


def _until(condition, *, process, patience=240.0):
    ends = time.monotonic() + patience
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.1)
