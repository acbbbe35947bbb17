"""The hand-over itself, on a DVC remote that is a directory, between two clones with caches of their own."""

import json
import shutil
import subprocess

import pytest
import yaml

from flows import elsewhere
from flows.checkout import handover, workspace
from tasks import params as parameters
from tasks.artifacts import MANIFEST, EncodedDataset
from tasks.errors import InputError, RegraftError, TrainingError, WorkspaceError

pytestmark = pytest.mark.e2e  # a project that has been reproduced is made by `dvc repro`


def _git(root, *words):
    subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


def _change(path):
    path.write_text(path.read_text() + "# changed\n")


def _entries(store):
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("regraft/*/*"))


@pytest.fixture
def store(reproduced, tmp_path, command):
    command("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    _git(reproduced, "commit", "-q", "-am", "Add a remote")
    return tmp_path / "store"


@pytest.fixture
def clone(reproduced, store, tmp_path):
    _git(tmp_path, "clone", "-q", str(reproduced), str(tmp_path / "a clone"))
    return tmp_path / "a clone"


def test_what_is_given_is_taken_and_no_more(reproduced, store, clone):
    """A workspace for one stage: what it reads is there with its entries, and its result comes back."""
    assert elsewhere.needed(reproduced) == ["conversion", "encoding", "sources", "vocabulary"]
    params = (reproduced / "params.yaml").read_text()
    handover.give(reproduced, "run", ["encoding", "vocabulary"], None)
    assert _entries(store) == ["regraft/run/encoding.json", "regraft/run/vocabulary.json"]
    place = workspace.borrow(clone, workspace.committed(reproduced), params)
    handover.take(place, "run", ["encoding", "vocabulary"], "store")
    assert EncodedDataset.load(place).digest == EncodedDataset.load(reproduced).digest
    known = yaml.safe_load((place / "dvc.lock").read_text())["stages"]
    assert known == {
        name: entry
        for name, entry in yaml.safe_load((reproduced / "dvc.lock").read_text())["stages"].items()
        if name in {"encoding", "vocabulary"}
    }
    assert not (place / "data" / "preparation").exists()
    handover.forget(reproduced, "run", None)
    assert _entries(store) == []


def test_an_entry_that_is_missing_is_named(reproduced, store):
    handover.give(reproduced, "run", ["vocabulary"], None)
    before = (reproduced / "dvc.lock").read_text()
    with pytest.raises(WorkspaceError, match=r"has no .*regraft/run/encoding.json: the stage before"):
        handover.take(reproduced, "run", ["vocabulary", "encoding"], None)
    assert (reproduced / "dvc.lock").read_text() == before


def test_data_that_are_missing_are_no_hand_over(reproduced, store, clone):
    handover.give(reproduced, "run", ["vocabulary"], None)
    shutil.rmtree(store / "files")
    with pytest.raises(WorkspaceError, match="DVC remote store"):
        handover.take(clone, "run", ["vocabulary"], None)


def test_a_stage_that_has_not_run_cannot_be_given(reproduced, store):
    (reproduced / "dvc.lock").unlink()
    with pytest.raises(WorkspaceError, match=r"has no vocabulary: run `dvc repro`"):
        handover.give(reproduced, "run", ["vocabulary"], None)


@pytest.mark.parametrize(("remote", "told"), [(None, "no default one"), ("other", "none named other")])
def test_without_a_remote_the_remedy_is_named(reproduced, remote, told):
    with pytest.raises(InputError, match=rf"{told}: `dvc remote add -d NAME URL`"):
        handover.give(reproduced, "run", ["vocabulary"], remote)


@pytest.fixture
def lonely(monkeypatch, tmp_path):
    """No credentials, and no service of a cloud's machine that would give some."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "aws").touch()
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "aws"))


def test_a_storage_librarys_own_error_is_a_sentence_that_names_the_remote(reproduced, command, lonely):
    pytest.importorskip("dvc_s3", reason="S3 comes with regraft[dev]")
    command("dvc", "remote", "add", "bucket", "s3://nobodys/models")
    with pytest.raises(
        WorkspaceError,
        match=r"DVC remote bucket \(nobodys/models\): NoCredentialsError: .*`dvc remote modify bucket",
    ):
        handover.give(reproduced, "run", ["vocabulary"], "bucket")


def test_a_kind_of_remote_whose_library_is_missing_is_told(reproduced, command):
    command("dvc", "remote", "add", "far", "gs://nobodys/models")
    with pytest.raises(InputError, match="DVC remote far: gs is supported, but requires 'dvc-gs'"):
        handover.give(reproduced, "run", ["vocabulary"], "far")


def test_a_commit_that_was_not_pushed_is_named(clone):
    with pytest.raises(
        InputError, match="has no commit 0123456789, and neither have its git remotes: push it"
    ):
        workspace.borrow(clone, "0123456789", "")
    assert not list((clone / ".regraft").glob("runs/*"))


def test_changes_that_are_not_committed_cannot_travel(reproduced):
    """Those of code; params.yaml and dvc.lock go along by themselves. A workspace stands on its checkout's."""
    commit = workspace.committed(reproduced)
    _change(reproduced / "params.yaml")
    place = workspace.create(reproduced, parameters.load(reproduced / "params.yaml"))
    assert workspace.committed(reproduced) == workspace.committed(place) == commit
    _change(reproduced / "tasks" / "files.py")
    (reproduced / "tasks" / "fresh.py").touch()
    place = workspace.create(reproduced, parameters.load(reproduced / "params.yaml"))
    with pytest.raises(InputError, match=r"another machine: tasks/files.py, tasks/fresh.py; commit and push"):
        workspace.committed(reproduced)
    with pytest.raises(InputError, match=r"another machine: tasks/files.py; commit and push"):
        workspace.committed(place)


def test_commits_of_the_lock_alone_need_no_push(clone):
    """Where each night commits dvc.lock and nobody pushes, a worker elsewhere has the commit before all that."""
    pushed = workspace.committed(clone)
    for _ in range(2):
        _change(clone / "dvc.lock")
        workspace.commit(clone, "Reproduce")
    assert workspace.committed(clone) == pushed
    _change(clone / "tasks" / "files.py")
    _git(clone, "commit", "-q", "-am", "Change the code")
    assert workspace.committed(clone) not in ("", pushed), "that one has to be pushed"


def test_a_commit_asks_nobody_for_a_name(clone, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        for key in ("NAME", "EMAIL"):
            monkeypatch.delenv(f"GIT_{role}_{key}", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    table = clone / "data.csv.dvc"
    table.write_text("outs: []\n")
    _git(clone, "add", "-f", "data.csv.dvc")
    workspace.commit(clone, "Reproduce")
    said = subprocess.run(["git", "log", "-1", "--format=%an %s"], cwd=clone, capture_output=True, text=True)
    assert said.stdout.strip() == "regraft Reproduce"
    left = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=clone, capture_output=True, text=True)
    assert left.stdout == "", "the imported table's file goes along"


def test_what_was_made_from_something_else_is_refused(reproduced):
    elsewhere._agree(reproduced)
    path = EncodedDataset.folder(reproduced) / MANIFEST
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "sha256:0"}))
    with pytest.raises(WorkspaceError, match="made from something else than what is here"):
        elsewhere._agree(reproduced)


def test_the_lock_alone_is_committed(reproduced, store):
    lock = reproduced / "dvc.lock"
    head = workspace.committed(reproduced)
    handover.commit(reproduced, None)
    assert list((store / "files").rglob("*")), "what it names is where others find it"
    assert head == workspace.committed(reproduced), "nothing had changed"
    _change(lock)
    _change(reproduced / "README.md")
    _git(reproduced, "add", "README.md")
    handover.commit(reproduced, None)
    assert workspace.committed(reproduced) != head
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=reproduced, capture_output=True, text=True, check=True
    ).stdout
    assert changed == "M  README.md\n"


@pytest.mark.parametrize(
    ("name", "kind", "lasting"),
    [("DataError", InputError, True), ("TrainingError", TrainingError, True), ("Failed", RegraftError, False),
     ("Crashed", RegraftError, False)],
)  # fmt: skip
def test_a_failure_keeps_its_meaning(name, kind, lasting):
    from prefect.states import Failed

    with pytest.raises(kind, match="row 7 is broken") as caught:
        elsewhere._raise("finetune/gpu", Failed(name=name, message="row 7 is broken"))
    assert caught.value.lasting() == lasting


def test_a_training_that_somebody_cancelled_is_not_begun_again():
    from prefect.states import Cancelled

    with pytest.raises(TrainingError, match="finetune/gpu was cancelled"):
        elsewhere._raise("finetune/gpu", Cancelled())


def test_a_remote_that_went_away_hides_nothing(reproduced, caplog):
    elsewhere._forget(reproduced, "run", "gone")
    assert "regraft/run stays on the remote" in caplog.text
