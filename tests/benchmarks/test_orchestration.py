"""What orchestration costs and what a schedule keeps: the figures are there, and counting counts."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks import orchestration, schedules
from benchmarks.orchestration import Part

KEYS = {
    "help_cpu_s",
    "unchanged_repro_s",
    "overhead_share",
    "chaos_survived_share",
    "scheduled_lost",
    "scheduled_doubled",
}
DUE = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second) for second in range(3)]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        (["20260101T000000 a", "20260101T000001 b", "20260101T000002 c"], (0, 0)),
        (["20260101T000000 a", "20260101T000002 c"], (1, 0)),
        (["20260101T000000 a", "20260101T000000 b", "20260101T000001 c"], (1, 1)),
        (["20260101T000000 a", "20260101T000001 b", "20260101T000002 c", "20260101T000009 d"], (0, 1)),
        ([], (3, 0)),
    ],
)
def test_a_run_that_is_missing_is_lost_and_one_too_many_doubled(marks, expected):
    assert schedules.compare(DUE, marks) == expected


def test_a_part_that_is_run_again_leaves_what_the_others_found(tmp_path):
    target = tmp_path / "orchestration.json"
    first = {
        "costs": Part({"help_cpu_s": 1.0}, [{"contestant": "plain calls"}]),
        "chaos": Part({"old": 1.0}, [{}]),
    }
    orchestration._write(target, first, quick=True)
    orchestration._write(target, {"chaos": Part({"old": 0.5}, [{"contestant": "kill"}])}, quick=True)
    found = json.loads(target.read_text())
    assert found["figures"] == {"help_cpu_s": 1.0, "old": 0.5}
    assert found["contestants"] == [
        {"part": "costs", "contestant": "plain calls"},
        {"part": "chaos", "contestant": "kill"},
    ]
