"""A training that is really killed, again and again, ends with the weights of one that was left alone."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import params as parameters
from tasks.artifacts import TrainedModel

REPOSITORY = Path(__file__).parents[2]
PHASES = (
    "{name: head, depth: 0, epochs: 2, learning_rate: 1.0e-2}",
    "{name: upper, depth: half, epochs: 2, learning_rate: 1.0e-2, early_stopping: 1}",
    "{name: whole, depth: all, steps: 7, learning_rate: 1.0e-3, schedule: cosine}",
)
CHANGES = {"batch_size": 8, "accumulation": 2, "save_every": 2, "select": "loss"}
TRAIN = """
import os, signal, sys
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook
from tasks import params, progress
from tasks.stages import finetuning

class Silent:
    def metrics(self, values, *, step=0): ...
    def file(self, path, folder=""): ...

left = [int(sys.argv[2])]
def count(*_):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
register_optimizer_step_post_hook(count)
root = Path(sys.argv[1])
finetuning.run(params.parse((root / "params.yaml").read_text()), root, Silent())
"""


def _run(root, kill_after):
    words = [sys.executable, "-c", TRAIN, str(root), str(kill_after)]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.e2e
def test_a_training_killed_at_random_steps_of_every_phase_ends_with_the_same_weights(trainable):
    root = trainable
    shipped = parameters.load(REPOSITORY / "params.yaml")
    chosen = [
        f"finetuning.phases=[{', '.join(PHASES)}]",
        *(f"finetuning.{key}={value}" for key, value in CHANGES.items()),
    ]
    (root / "params.yaml").write_text(parameters.dump(parameters.override(shipped, chosen)))
    assert _run(root, 0).returncode == 0
    expected = TrainedModel.load(root)
    shutil.rmtree(TrainedModel.folder(root))
    shutil.rmtree(root / ".regraft")
    steps, chance, kills = sum(phase["steps"] for phase in expected.phases), random.Random(5), 0
    assert steps >= 25
    while (done := _run(root, chance.randint(3, 9))).returncode:
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (TrainedModel.folder(root) / "manifest.json").exists()
        kills += 1
        assert kills < 15
    assert kills >= 3
    again = TrainedModel.load(root)
    assert (again.weights, again.digest) == (expected.weights, expected.digest)
