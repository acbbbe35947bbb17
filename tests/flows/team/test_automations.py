"""What the automations say; that they work on a real server is in test_team.py."""

from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.automations import Posture
from prefect.client.schemas.objects import StateType
from prefect.server.events.schemas.automations import EventTrigger

from flows.team import automations
from tasks.errors import InputError

DEPLOYMENTS = yaml.safe_load((Path(__file__).parents[3] / "prefect.yaml").read_text(encoding="utf-8"))[
    "deployments"
]


def _named(part):
    return next(one for one in automations.automations(uuid4()) if part in one.name)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=[one["name"] for one in DEPLOYMENTS])
def test_every_deployment_shows_signs_of_life_and_is_watched(deployment):
    """A run that beats every 180 s, Prefect's default, would be taken for dead."""
    variables = deployment["work_pool"]["job_variables"]["env"]
    assert variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(automations.HEARTBEAT)
    assert f"prefect.tag.{deployment['tags'][0]}" == automations.OURS


def test_only_runs_of_ours_are_touched():
    """Known by their tag: others may have flows of the same names."""
    for one in automations.automations(uuid4()):
        about = one.trigger.match_related.model_dump() or one.trigger.match.model_dump()
        known = "regraft.model.*" if "verdicts" in one.name else automations.OURS
        assert about == {"prefect.resource.id": known}


def test_a_run_that_ended_is_not_taken_for_silent():
    trigger = _named("silent").trigger
    assert (trigger.posture, trigger.within) == (Posture.Proactive, timedelta(seconds=120))
    served = EventTrigger.model_validate(trigger.model_dump())
    for event in ("heartbeat", "Completed", "Crashed", "Skipped", "Held"):
        assert served.expects(f"prefect.flow-run.{event}"), event
    assert not served.starts_after("prefect.flow-run.Held")


def test_a_run_goes_on_twice_and_one_that_never_ran_does_not():
    again = _named("goes on")
    assert again.trigger.match.model_dump()["prefect.run-count"] == ["1", "2"]
    assert [action.state for action in again.actions] == [StateType.SCHEDULED]


def test_without_a_block_nobody_is_told():
    assert not [one for one in automations.automations(None) if "tell" in one.name]


@pytest.mark.parametrize(
    ("server", "fault"), [(None, "PREFECT_API_URL is not set"), ("http://127.0.0.1:9/api", "KIND/NAME")]
)
def test_what_is_missing_is_said(monkeypatch, server, fault):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    if server:
        monkeypatch.setenv("PREFECT_API_URL", server)
    with pytest.raises(InputError, match=fault):
        automations.install("team", print)
