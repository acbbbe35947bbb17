"""What old work leaves behind goes; what a champion is made of stays."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.checkout import workspace
from flows.commands import housekeeping, reproduction
from tasks import params as parameters
from tasks.errors import InputError, WorkspaceError
from tasks.tracking import server

CLEAN = (sys.executable, "-m", "flows.cli", "clean")
DAY = 86400


def age(*folders, days=40):
    """As if nobody had touched these for so long."""
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            os.utime(path, (then, then), follow_symlinks=False)


def kind(found, name):
    return next(one for one in found if one.name == name)


def names(found, name):
    return [one.name for one in kind(found, name).leftovers]


def ground(root, older_than="30d"):
    return housekeeping.ground(root, older_than, champions_only=False)


def filled(folder):
    folder.mkdir(parents=True)
    (folder / "states.npy").write_bytes(b"x" * 10_000)
    return folder


@pytest.fixture
def git(project):
    def run(*words, cwd=project):
        done = subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return run


def test_what_nobody_touched_for_long_goes_and_the_rest_stays(project):
    hidden = project / ".regraft"
    old = [filled(hidden / "resume" / "a"), filled(hidden / "states" / "b"), filled(hidden / "runs" / "torn")]
    age(*old)
    young = [filled(hidden / "resume" / "c"), filled(hidden / "states" / "d")]
    found = list(housekeeping.look(ground(project)))
    assert names(found, "workspaces") == [".regraft/runs/torn"]
    assert names(found, "resume points and hidden states") == [".regraft/states/b", ".regraft/resume/a"]
    assert all(one.size >= 10_000 for one in kind(found, "workspaces").leftovers)
    assert all(path.is_dir() for path in old)
    gone = list(housekeeping.carry_out(ground(project)))
    assert names(gone, "workspaces") == [".regraft/runs/torn"]
    assert [path.is_dir() for path in old + young] == [False, False, False, True, True]
    assert not any(one.leftovers for one in housekeeping.carry_out(ground(project)))


def test_what_is_in_use_stays_and_is_told(project):
    from filelock import FileLock

    used = filled(project / ".regraft" / "states" / "used")
    age(used)
    with FileLock(project / ".regraft" / "states" / "used.lock"):
        found = kind(list(housekeeping.carry_out(ground(project))), "resume points and hidden states")
    assert found.fault
    assert "states/used stays: " in found.told[0]
    assert used.is_dir()


def test_a_workspace_is_removed_as_git_knows_it(project, git):
    params = parameters.load(project / "params.yaml")
    old, young = workspace.create(project, params), workspace.create(project, params)
    age(old)
    list(housekeeping.carry_out(ground(project)))
    assert (old.exists(), young.exists()) == (False, True)
    assert str(old) not in git("worktree", "list")


def test_a_workspace_whose_commit_a_version_needs_stays_until_a_branch_holds_it(project, git, monkeypatch):
    (project / "prefect.yaml").write_text("not committed")
    place = workspace.create(project, parameters.load(project / "params.yaml"))
    age(place)
    commit = git("rev-parse", "HEAD", cwd=place)
    monkeypatch.setattr("tasks.tracking.retention.commits", lambda root, model: {commit: "3"})
    found = kind(housekeeping.look(ground(project)), "workspaces")
    assert found.leftovers == ()
    assert f"reviews version 3 was made; `git branch reviews-3 {commit[:12]}` lets it go" in found.told[0]
    git("branch", "reviews-3", commit)
    assert len(kind(housekeeping.look(ground(project)), "workspaces").leftovers) == 1


def test_nothing_is_deleted_while_a_stage_runs(project):
    old = filled(project / ".regraft" / "states" / "b")
    age(old)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (project / ".dvc" / "tmp").mkdir(exist_ok=True)
        noted = {"write": {str(project / "data"): {"pid": other.pid, "cmd": "dvc repro"}}, "read": {}}
        (project / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(noted))
        with pytest.raises(
            WorkspaceError, match=f"process {other.pid} runs `dvc repro`.*nothing was deleted"
        ):
            list(housekeeping.carry_out(ground(project)))
        other.communicate(b"\n")
    list(housekeeping.carry_out(ground(project)))  # a process that is gone holds nothing
    assert not old.exists()


def test_nothing_is_deleted_while_a_process_is_in_a_workspace(project):
    place = workspace.create(project, parameters.load(project / "params.yaml"))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=place) as other:
        with pytest.raises(WorkspaceError, match=f"process {other.pid} is in {place}"):
            list(housekeeping.carry_out(ground(project)))
        other.communicate(b"\n")
    assert housekeeping.at_work(project) == []


def test_what_was_fetched_of_champions_stays_those_of_tasks_too(project, champions, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri(champions))
    params = parameters.override(parameters.load(project / "params.yaml"), ["tasks={careful: {}}"])
    (project / "params.yaml").write_text(parameters.dump(params))
    homes = [project, project / ".regraft" / "tasks" / "careful"]
    for home in homes:
        for name in ("reviews-1-model-a", "reviews-10-model-a", "careful-1-adapter-b", "careful-2-adapter-b"):
            age(filled(home / ".regraft" / "champions" / name))
    found = kind(housekeeping.look(ground(project)), "downloaded champions").leftovers
    assert [Path(one.name).name for one in found] == ["careful-2-adapter-b", "reviews-10-model-a"] * 2


def test_objects_that_nothing_names_leave_the_cache(project, git):
    (project / "dvc.yaml").write_text(
        "stages:\n  preparation:\n    cmd: mkdir -p made && cp text made/a && cp text made/b\n    deps: [text]\n"
        "    outs: [made]\n"
    )

    def make(text):
        (project / "text").write_text(text)
        subprocess.run(["dvc", "repro"], cwd=project, check=True, capture_output=True)

    def cached():
        return {path.read_text() for path in (project / ".dvc/cache/files").rglob("*") if path.is_file()}

    texts = ["committed", "on a branch", "tried and dropped", "in a worktree", "tried lately", "present"]
    make(texts[0])
    git("add", "-A")
    git("commit", "-q", "-m", "Make")
    git("checkout", "-q", "-b", "other")
    make(texts[1])
    git("commit", "-q", "-a", "-m", "Make another")
    git("checkout", "-q", "main")
    make(texts[2])
    make(texts[3])
    place = workspace.create(project, parameters.load(project / "params.yaml"))
    age(project / ".dvc" / "cache")
    make(texts[4])
    make(texts[5])
    for file in (project / ".dvc" / "cache" / "files").rglob("*"):
        if file.is_file() and file.read_text() == texts[4]:
            os.utime(file, (0, 0))  # its directory is young, which needs it
    found = kind(list(housekeeping.look(ground(project))), "DVC's cache")
    assert [one.name for one in found.leftovers] == ["2 objects"]  # the text and the directory
    assert set(texts) <= cached()
    list(housekeeping.carry_out(ground(project)))
    assert set(texts) - cached() == {"tried and dropped"}
    age(place)
    assert names(housekeeping.look(ground(project)), "DVC's cache") == [
        "2 objects"
    ]  # once the workspace is gone
    list(housekeeping.carry_out(ground(project)))
    assert set(texts) - cached() == {"tried and dropped", "in a worktree"}


def test_a_cache_that_others_may_share_is_left_to_a_person(project, tmp_path):
    (project / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    found = kind(list(housekeeping.look(ground(project))), "DVC's cache")
    assert found.leftovers == ()
    assert "may serve other projects" in found.told[0]


@pytest.mark.parametrize("told", ["30", "d", "-3d", "3 weeks"])
def test_an_age_that_is_none_is_refused(project, told):
    with pytest.raises(InputError, match="write days or hours, such as 30d or 12h"):
        ground(project, told)


def test_a_workspace_is_not_cleaned_for_itself(project):
    place = workspace.create(project, parameters.load(project / "params.yaml"))
    with pytest.raises(InputError, match="clean its checkout"):
        ground(place)


@pytest.mark.e2e
def test_a_champion_can_be_checked_out_and_made_again_after_everything_went(reproduced, command):
    """Nothing but the champion and what is present is young enough: every kind has something to lose."""
    trial = workspace.create(reproduced, parameters.load(reproduced / "params.yaml"))
    (reproduced / ".dvc/cache/files/md5/00").mkdir(parents=True, exist_ok=True)
    (reproduced / ".dvc/cache/files/md5/00" / ("0" * 30)).write_text("of a trial")
    shown = command(*CLEAN, "--older-than", "0h", "--keep-champions").stdout
    assert "nothing was deleted: --yes deletes" in shown
    assert trial.exists()
    told = command(*CLEAN, "--older-than", "0h", "--keep-champions", "--yes").stdout
    assert f"runs/{trial.name}: untouched for 0 hours" in told
    assert " objects: named by no commit" in told
    assert "MLflow runs\n  nothing" in told
    assert told.rstrip().endswith("freed")
    shutil.rmtree(reproduced / "data" / "finetuning")
    with Repo(str(reproduced)) as repo:
        assert repo.status() != {}
    command("dvc", "checkout", "-f")
    assert (reproduced / "data" / "finetuning" / "model" / "model.safetensors").exists()
    compared = reproduction.rebuild("models:/reviews@champion", reproduced, print)
    assert compared
    assert all(one.agrees for one in compared)
