"""What fails alike is not begun for ever: counted before it begins, forgotten when anything has changed."""

import subprocess
import sys

import pytest

from flows import attempts
from tasks import files
from tasks.artifacts import Sources
from tasks.errors import DataError, TrackingError

DIES = """
import os, sys
from pathlib import Path
from flows import attempts
with attempts.counted(Path(sys.argv[1])):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def root(tmp_path):
    _have(tmp_path, "sha256:1")
    (tmp_path / "params.yaml").write_text("finetuning: {seed: 1}\n")
    return tmp_path


def _have(root, text):
    with files.replace_directory(Sources.folder(root)) as draft:
        Sources.save(draft, text=text, checkpoint="sha256:2")


def _fail(root, error):
    with pytest.raises(type(error)), attempts.counted(root):
        raise error


def test_what_would_fail_alike_is_held_at_once_until_the_data_change(root):
    assert attempts.given_up(root) is None
    _fail(root, DataError("label x has one row: add more"))
    reason = attempts.given_up(root)
    assert reason.startswith("tried once on this very data, params and code: label x has one row: add more;")
    assert "again: true" in reason
    _have(root, "sha256:3")
    assert attempts.given_up(root) is None


@pytest.mark.parametrize("name", ["params.yaml", "forgotten.txt"])
def test_what_a_person_edits_counts_as_a_change(root, name):
    _fail(root, DataError("no"))
    (root / name).write_text("another")
    assert attempts.given_up(root) is None


def test_changed_code_counts_as_a_change(root):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost", "-C", str(root)]
    (root / "dvc.yaml").write_text("stages: {}\n")
    for words in (["init", "-q"], ["add", "dvc.yaml"], ["commit", "-q", "-m", "Start"]):
        subprocess.run([*git, *words], check=True)
    _fail(root, DataError("no"))
    (root / "notes.txt").write_text("no stage reads this")
    assert attempts.given_up(root)
    (root / "dvc.yaml").write_text("stages: {one: {cmd: two}}\n")
    assert attempts.given_up(root) is None


def test_what_another_try_may_mend_is_tried_three_times(root):
    for number in range(attempts.TRIES):
        assert attempts.given_up(root) is None, number
        _fail(root, TrackingError("MLflow is away"))
    assert attempts.given_up(root).startswith("tried 3 times on")


def test_a_killed_process_has_tried_too(root):
    done = subprocess.run([sys.executable, "-c", DIES, str(root)], check=False)
    assert done.returncode == -9
    assert attempts.last(root).tries == 1
    assert attempts.last(root).said == "its process ended without a word"


def test_one_that_ends_well_begins_a_new_count(root):
    _fail(root, TrackingError("MLflow is away"))
    with attempts.counted(root):
        pass
    assert attempts.last(root) == attempts.Attempt()


def test_people_are_told_once_of_one_reason(root):
    assert [attempts.held(root, reason).name for reason in ("one", "one", "two")] == [
        "Held",
        "Skipped",
        "Held",
    ]
    with attempts.counted(root):
        held = attempts.held(root, "two")
    assert (held.name, attempts.held(root, "two").name) == ("Skipped", "Skipped")


def test_a_damaged_file_counts_nothing(root):
    (root / attempts.FILE).parent.mkdir()
    (root / attempts.FILE).write_text("{half")
    assert attempts.given_up(root) is None
