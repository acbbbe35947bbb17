"""What is measured of phases: counts are exact, times merely there."""

import json
import math

import pytest

from tasks.training import energy
from tasks.training.energy import Counter
from tasks.training.events import Change, Finished
from tasks.training.loop import Pace, Step
from tasks.training.meter import Meter
from tasks.training.phases import Planned

DONE = Finished("head", ("head",), 9, 4, 4, {"loss": 1.0})


def _step(number, tokens=30, positions=40):
    return Step("head", number, 1.0, 1e-3, 1.0, 8, 1, tokens, positions)


def _planned():
    return Planned(
        name="head", stack=(), work=lambda: "work", measure=lambda: {"loss": 1.0}, epochs=(),
        learning_rate=1e-3, layer_decay=1.0, pace=Pace("linear", 0.0, 1.0),
    )  # fmt: skip


def _events(planned, *, replayed=()):
    yield from replayed
    assert planned.work() == "work"
    for number in (3, 4):
        yield _step(number)
        yield Change("head", number, {})
    assert planned.measure() == {"loss": 1.0}
    yield DONE


def test_steps_are_counted_and_events_pass_unchanged(tmp_path):
    meter = Meter(tmp_path / "timings.json")
    told = list(meter.follow(_events(meter.around(_planned()))))
    assert told == [_step(3), Change("head", 3, {}), _step(4), Change("head", 4, {}), DONE]
    found = meter.found["head"]
    assert found["steps"] == 2
    assert found["padding"] == 0.25
    assert found["tokens_per_second"] / found["rows_per_second"] == pytest.approx(60 / 16)
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    assert found["seconds"] >= found["frozen_seconds"] + found["validation_seconds"]
    assert found["peak_memory_bytes"] > 2**20


def test_steps_that_are_told_again_do_not_count(tmp_path):
    meter = Meter(tmp_path / "timings.json")
    list(meter.follow(_events(meter.around(_planned()), replayed=[_step(1), _step(2)])))
    assert meter.found["head"]["steps"] == 2


def test_a_training_that_is_only_told_again_keeps_what_was_measured(tmp_path):
    kept = tmp_path / "timings.json"
    first = Meter(kept)
    list(first.follow(_events(first.around(_planned()))))
    assert json.loads(kept.read_text()) == first.found
    again = Meter(kept)
    list(again.follow([_step(1), DONE]))
    assert again.found == first.found


def test_a_counter_that_begins_anew_is_followed(tmp_path):
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "max_energy_range_uj").write_text("100000000\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of it
    found = []
    for held in ("90000000\n", "5000000\n"):
        (package / "energy_uj").write_text(held)
        found.append({name: one for name, one in energy.counters(tmp_path).items() if "rapl" in name})
    assert found[0] == {"intel-rapl:0": Counter(90.0, 100.0)}
    assert energy.spent(*found) == pytest.approx(15.0)


def test_without_counters_nothing_is_made_up(tmp_path, monkeypatch):
    monkeypatch.setattr(energy.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(energy.counters, "__defaults__", (tmp_path / "absent",))
    assert energy.counters() == {}
    meter = Meter(tmp_path / "timings.json")
    list(meter.follow(_events(meter.around(_planned()))))
    assert "joules" not in meter.found["head"]
