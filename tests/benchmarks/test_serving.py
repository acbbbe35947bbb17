"""What adapters on one base cost: every figure is there, and no answer is wrong."""

import json

import pytest

from benchmarks import record, serving

KEYS = {
    "mixed_speedup",
    "swap_over_reload",
    "adapter_bytes_share",
    "resident100_memory_ratio",
    "wrong_answers",
}


@pytest.mark.e2e
def test_a_quick_run_writes_every_figure_and_no_answer_is_wrong(tmp_path, capsys):
    serving.main(["--quick", "--into", str(tmp_path)])
    found = json.loads((tmp_path / "serving-quick.json").read_text(encoding="utf-8"))
    figures = found["figures"]
    assert figures.keys() == KEYS
    assert figures["wrong_answers"] == 0
    assert found["soak_answers"] > 0
    assert figures["adapter_bytes_share"] < 0.03
    assert "answers compared" in capsys.readouterr().out


def test_the_kept_figures_are_of_a_full_run_and_no_answer_was_wrong():
    found = json.loads((record.RESULTS / "serving.json").read_text(encoding="utf-8"))
    assert not found["quick"]
    assert found["figures"].keys() == KEYS
    assert found["figures"]["wrong_answers"] == 0
