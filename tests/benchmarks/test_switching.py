"""What switches weights arrives where it should: within its bound, and beside a control that does not."""

import json

from benchmarks import record, switching

KEYS = {"moe_step0_relative_error", "forced_route_error"}
BOUND = 1e-5


def test_a_quick_run_keeps_its_bounds_where_the_controls_break_them(tmp_path, capsys):
    switching.main(["--quick", "--into", str(tmp_path)])
    found = json.loads((tmp_path / "switching-quick.json").read_text(encoding="utf-8"))
    assert found["figures"].keys() == KEYS
    assert max(found["figures"].values()) <= BOUND
    errors = {line["contestant"]: line["relative_error"] for line in found["contestants"]}
    assert errors["half drawn anew"] > 1000 * BOUND
    assert errors["expert law, the other model"] > 1000 * BOUND
    assert "forced_route_error" in capsys.readouterr().out


def test_the_kept_figures_are_of_a_full_run_and_within_their_bounds():
    found = json.loads((record.RESULTS / "switching.json").read_text(encoding="utf-8"))
    assert not found["quick"]
    assert found["figures"].keys() == KEYS
    assert max(found["figures"].values()) <= BOUND
