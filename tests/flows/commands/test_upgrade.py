import sys
from pathlib import Path

import pytest

from flows.commands import upgrade
from tasks.errors import ParamsError

FORMER = Path(__file__).parents[2] / "former" / "params-6639204.yaml"


@pytest.fixture
def old(project):
    """The project with the params.yaml, the dvc.yaml and an output of former versions."""
    (project / "params.yaml").write_text(FORMER.read_text(encoding="utf-8"))
    (project / "dvc.yaml").write_text("stages:\n  sources:\n    cmd: python -m tasks sources\n")
    (project / "data" / "encoding").mkdir(parents=True)
    (project / "data" / "encoding" / "manifest.json").write_text('{"record": "EncodedDataset", "format": 0}')
    return project


def test_a_project_is_migrated_and_what_is_left_is_told(old, command):
    told = command(sys.executable, "-m", "flows.cli", "migrate", "--dry-run").stdout
    assert "params.yaml: promotion.must_beat would be promotion.gate.must_beat" in told
    assert (old / "params.yaml").read_text() == FORMER.read_text()
    told = command(sys.executable, "-m", "flows.cli", "migrate").stdout
    assert "params.yaml: sources.text.label is now sources.text.columns.label" in told
    assert "dvc.yaml lacks preparation, vocabulary, conversion, encoding," in told
    assert "its format is 0, not 1" in told
    assert "run `dvc repro -f encoding`" in told
    assert next(upgrade.migrate(old, dry_run=False)) == "params.yaml: every name is of today"


def test_a_project_of_today_needs_nothing(project):
    assert list(upgrade.migrate(project, dry_run=False)) == ["params.yaml: every name is of today"]


def test_without_params_the_remedy_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"`git checkout params\.yaml` brings the shipped one back"):
        list(upgrade.migrate(tmp_path, dry_run=False))
