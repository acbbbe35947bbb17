import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows import cli
from flows.commands import show
from tasks.presets import PRESETS
from tasks.tracking import spool

REPOSITORY = Path(__file__).parents[2]


def _regraft(*words, code):
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def front():
    return _regraft("--help", code=0)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    return tmp_path


def test_the_command_starts_without_the_heavy_libraries():
    heavy = {"torch", "transformers", "prefect", "mlflow", "pandas", "numpy", "dvc", "datasets", "sklearn"}
    code = f"import flows.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "init",
        "doctor",
        "status",
        "plan",
        "run",
        "sweep",
        "compare",
        "drift",
        "promote",
        "rollback",
        "predict",
        "forget",
        "clean",
        "migrate",
        "report",
        "serve",
        "bundle",
        "compose",
        "export",
        "inspect",
        "plan-weights",
        "convert",
    ],
)
def test_help_teaches(command, front):
    assert command in front
    told = CliRunner().invoke(cli.app, [command, "--help"])
    assert told.exit_code == 0
    assert "Usage" in told.output
    assert "." in told.output


def test_exit_codes_are_documented(front):
    assert "3 not promoted" in " ".join(front.split())


def test_an_unknown_override_ends_with_code_2_and_a_suggestion(root):
    text = _regraft("run", "-S", "finetunning.seed=2", "--root", str(root), code=2)
    assert "did you mean 'finetuning'?" in text
    assert "Traceback" not in text


def test_a_broken_params_file_ends_with_code_2_and_its_line(root):
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("save_every:", "save_evry:"))
    text = _regraft("plan", "--root", str(root), code=2)
    assert "did you mean 'save_every'?" in text


def test_init_infers_the_columns_and_keeps_the_rest(root):
    (root / "mail.csv").write_text(
        "id,kind,message\n"
        + "".join(f"{i},{'spam' if i % 3 else 'ham'},message number {i} here\n" for i in range(30))
    )
    text = _regraft("init", "mail.csv", "--root", str(root), code=0)
    assert "text column: message" in text
    assert "label column: kind (2 different values in 30 rows)" in text
    written = yaml.safe_load((root / "params.yaml").read_text())
    assert written["sources"]["text"]["path"] == "mail.csv"
    assert written["promotion"]["model"] == "mail"
    assert written["preparation"]["subset"] == {"train": None, "validation": None, "test": None}
    shipped = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    assert written["finetuning"] == shipped["finetuning"]


def test_init_replaces_a_table_of_ones_own_only_by_force(root):
    (root / "a.csv").write_text("text,label\nhello there,x\nwell now,y\n")
    _regraft("init", "a.csv", "--root", str(root), code=0)
    assert "--force replaces it" in _regraft("init", "a.csv", "--root", str(root), code=2)
    _regraft("init", "a.csv", "--force", "--root", str(root), code=0)


def test_init_names_the_nearest_column(root):
    (root / "a.csv").write_text("text,label\nhello there,x\nwell now,y\n")
    text = _regraft("init", "a.csv", "--label", "lable", "--root", str(root), code=2)
    assert "has no column 'lable'; did you mean 'label'?" in text


def test_init_help_lists_the_presets():
    told = CliRunner().invoke(cli.app, ["init", "--help"]).output
    for name, preset in PRESETS.items():
        assert f"{name}: {preset.summary}" in " ".join(told.split())


def test_a_preset_is_written_without_a_table(root):
    text = _regraft("init", "--preset", "gradual", "--root", str(root), code=0)
    assert "whole: depth all, 2 epochs, learning rate 0.0001" in text
    assert "`regraft plan` shows what would run" in text
    assert "did you mean 'gradual'?" in _regraft("init", "--preset", "gradul", "--root", str(root), code=2)


def test_overrides_are_written_without_a_table_and_comments_stay(root):
    words = ("-S", "finetuning.seed=3", "-S", "finetuning.phases.0.epochs=7", "--root", str(root))
    assert "finetuning.seed=3" in _regraft("init", "--preset", "gradual", *words, code=0)
    text = (root / "params.yaml").read_text()
    written = yaml.safe_load(text)["finetuning"]
    assert (written["seed"], written["phases"][0]["epochs"], len(written["phases"])) == (3, 7, 4)
    assert "# validation figure" in text or "# the validation figure" in text
    assert "did you mean 'seed'?" in _regraft("init", "-S", "finetuning.sed=3", "--root", str(root), code=2)


def test_a_sweep_refuses_what_cannot_be_tried_before_anything_starts(root):
    told = _regraft("sweep", "-S", "finetuning.phases.0.learning_rate=1.0e-3,5", "--root", str(root), code=2)
    assert "finetuning.phases.0.learning_rate" in told
    assert "Traceback" not in told
    assert not (root / ".regraft").exists()


def test_a_run_says_at_its_end_that_something_has_not_reached_mlflow(tmp_path, capsys):
    show.tracking(tmp_path)
    assert capsys.readouterr().out == ""
    waiting = spool.Spool(tmp_path / ".regraft" / "spool" / "1")
    waiting.path.mkdir(parents=True)
    (waiting.path / spool.OPENING).write_text("{}", encoding="utf-8")
    show.tracking(tmp_path)
    assert capsys.readouterr().out.startswith("tracking degraded: the run of 1 stage waits in ")
