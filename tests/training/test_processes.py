"""What two processes agree on, whichever of them something happens to: real ones, on a small model."""

import os
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path

import psutil
import pytest
import torch

from tasks.errors import TrainingError
from tasks.training import processes
from tasks.training.ranks import ALONE, Ranks

REPOSITORY = Path(__file__).parents[2]
MODULE = '''
import sys
import time

import torch
from torch import nn

from tasks.errors import DataError
from tasks.training import loop, objectives, processes, updates


def train(ranks, fault=""):
    """Weights after two steps on 12 rows each, and the steps."""
    torch.manual_seed(0)
    inputs, labels, model = torch.randn(24, 5), torch.arange(24) % 3, nn.Linear(5, 3)
    second = ranks.rank == ranks.size - 1  # or alone

    def forward(rows):
        if fault == "large" and second and len(rows) > 2:
            raise torch.OutOfMemoryError("in the second process alone")
        if fault == "broken" and second:
            raise DataError("row 7 is broken: mend it")
        if fault == "stuck" and second:
            time.sleep(600)
        wrong = torch.tensor(rows) == 23 if fault == "nan" else torch.zeros(len(rows), dtype=torch.bool)
        return torch.where(wrong[:, None], torch.nan, model(inputs[rows]))

    work = loop.Work(
        forward, lambda rows: labels[rows], objectives.find("label"), objectives.Settings(), "row {}".format,
        accumulation=2, ranks=ranks,
    )
    sgd = updates.optimizer([updates.Group("all", dict(model.named_parameters()), 0.1, 0.0)], kind="sgd")
    batches = [list(range(12)), list(range(12, 24))]
    steps = list(loop.run_phase("all", work, batches, sgd, loop.Pace("constant", 0, 1.0), start=0, stop=2))
    return model.weight.detach(), steps


if __name__ == "__main__":
    order = processes.received(sys.stdin)
    with processes.joined(order) as ranks:
        if order.task["fault"] == "early":
            raise DataError("no rows")
        train(ranks, **order.task)
'''
FIRST = """
import time
from tasks.training import processes
with processes.together(["cpu"] * 2, module="other", task={"fault": "stuck"}):
    print("together", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains in `size` processes, one of which has a fault."""
    (tmp_path / "other.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spec = util.spec_from_file_location("other", tmp_path / "other.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(size, fault, patience=60.0):
        task = {"fault": fault}
        with processes.together(["cpu"] * size, module="other", task=task, patience=patience) as ranks:
            return module.train(ranks, fault)

    return run


@pytest.mark.e2e
def test_where_one_runs_out_of_memory_all_compute_smaller_parts(train):
    alone, _ = train(1, "")
    weights, steps = train(2, "large")
    assert [step.parts for step in steps] == [4, 4], "six rows a process, at most two at once"
    torch.testing.assert_close(weights, alone, rtol=0, atol=1e-6)


@pytest.mark.e2e
def test_a_loss_that_is_no_number_names_the_rows_whoever_computed_them(train):
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan on rows row 21, row 22, row 23: lower"):
        train(2, "nan")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("fault", "patience", "said"),
    [
        ("broken", 60, r"process 1 of 2 has ended with code 1: .*row 7 is broken: mend it; run again"),
        ("early", 60, r"process 1 of 2 has ended with code 1: .*no rows; run again"),
        ("stuck", 8, r"the 2 processes of this training .* did not hear from one another for 8 s"),
    ],
)
def test_a_process_that_is_gone_is_named_with_its_last_words(train, fault, patience, said, started):
    with pytest.raises(TrainingError, match=f"(?s){said}"):
        train(2, fault, patience)
    assert started() == []
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"} & os.environ.keys()


@pytest.mark.e2e
def test_no_process_outlives_the_first(train, tmp_path):
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    words = [sys.executable, "-c", FIRST]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    ) as first:
        assert first.stdout.readline() == "together\n"
        [other] = psutil.Process(first.pid).children()
        first.send_signal(signal.SIGKILL)
    psutil.wait_procs([other], timeout=60)
    assert not other.is_running()


def test_every_row_is_in_one_share_and_few_rows_leave_some_without():
    ranks = Ranks(0, 3)
    assert ranks.shares([4, 9, 2, 7, 5]) == [[4, 9], [2, 7], [5]]
    assert ranks.shares([4]) == [[4], [], []]
    assert ALONE.shares([4, 9]) == [[4, 9]]


def test_alone_nothing_is_begun_and_nothing_waited_for():
    with processes.together(["cpu"], module="none", task={}) as ranks:
        assert ranks.gather([1.0, 2.0]) == [[1.0, 2.0]]
        assert not torch.distributed.is_initialized()
