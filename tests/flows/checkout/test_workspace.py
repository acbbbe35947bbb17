import subprocess

import pytest

from flows.checkout import workspace
from tasks import params as parameters
from tasks.errors import WorkspaceError


def test_a_workspace_shares_the_cache_and_leaves_the_checkout_alone(project):
    before = (project / "params.yaml").read_text()
    shipped = parameters.load(project / "params.yaml")
    changed = parameters.override(shipped, ["finetuning.seed=7"])
    (project / "tasks" / "marker.py").write_text("untracked")
    (project / "prefect.yaml").write_text("edited, not committed")
    one, two = workspace.create(project, changed), workspace.create(project, changed)
    assert one != two
    assert parameters.load(one / "params.yaml").finetuning.seed == 7
    assert (project / "params.yaml").read_text() == before
    assert (one / "prefect.yaml").read_text() == "edited, not committed"
    assert not (one / "tasks" / "marker.py").exists()
    cache = subprocess.run(["dvc", "cache", "dir"], cwd=one, capture_output=True, text=True, check=True)
    assert cache.stdout.strip() == str(project / ".dvc" / "cache")
    workspace.remove(project, one)
    assert not one.exists()


def test_settings_of_the_user_come_along(project):
    (project / ".dvc" / "config.local").write_text(
        "['remote \"store\"']\n    url = /elsewhere\n[cache]\n    dir = ../shared\n"
    )
    place = workspace.create(project, parameters.load(project / "params.yaml"))
    text = (place / ".dvc" / "config.local").read_text()
    assert "url = /elsewhere" in text
    assert f"dir = {project / 'shared'}" in text


def test_whoever_meets_another_run_is_refused_and_goes_on_when_that_has_ended(tmp_path, caplog):
    with workspace.alone(tmp_path):
        with (
            caplog.at_level("INFO"),
            pytest.raises(WorkspaceError, match="another run is at work"),
            workspace.alone(tmp_path, wait=0.1),
        ):
            pytest.fail("two at once")
        assert "waiting up to 0.1 s" in caplog.text
        with workspace.alone(tmp_path / ".regraft", wait=0.1):
            pass  # another place is nobody's business
    with workspace.alone(tmp_path, wait=0.1):
        pass


def test_without_a_repository_the_remedy_is_named(tmp_path, project):
    params = parameters.load(project / "params.yaml")
    with pytest.raises(WorkspaceError, match="needs a git repository with at least one commit"):
        workspace.create(tmp_path, params)
