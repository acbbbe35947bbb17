"""`regraft automations`: what a Prefect server does by itself where a worker died, and whom it tells."""

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event
from prefect.events.actions import ActionTypes, ChangeFlowRunState, SendNotification
from prefect.exceptions import ObjectNotFound

from tasks.artifacts import Promotion
from tasks.errors import InputError

HEARTBEAT = 30  # seconds between two signs of life of a run; Prefect takes no less
SILENCE = timedelta(seconds=4 * HEARTBEAT)  # after which a run is dead
START = timedelta(minutes=10)  # from a worker's taking a run to its first sign of life
ATTEMPTS = 3  # of one run: a run that kills its worker each time shall not do so for ever
OURS = "prefect.tag.regraft"  # of the deployments in prefect.yaml: a server may have other people's runs too
VERDICT, MODEL = "regraft.verdict", "regraft.model."
TOLD = ("Failed", "Crashed", "TimedOut", "Held", "Paused")  # states of runs, some of them ours
RUN = "flow-run {{ flow_run.name }} of {{ deployment.name if deployment else flow.name }}"


def install(notify: str | None, tell: Callable[[str], None]) -> None:
    """Make each automation, or bring the one of the same name up to date; one that was paused stays so.

    `notify` is KIND/NAME of a block that notifies. Raises InputError where there is no server or no such
    block.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError(
            "PREFECT_API_URL is not set: automations belong to a server, such as `regraft servers`"
        )
    kind, name = _reference(notify) if notify else ("", "")
    with get_client(sync_client=True) as client:
        block = _block(client, kind, name) if notify else None
        for wanted in automations(block):
            tell(f"{_put(client, wanted)}: {wanted.name}")


def verdict(record: Promotion) -> None:
    """Tell the server what the gate said, so that it can tell people."""
    emit_event(
        VERDICT,
        resource={
            "prefect.resource.id": f"{MODEL}{record.model}",
            "prefect.resource.name": record.model,
            "regraft.version": record.version,
            "regraft.outcome": record.outcome,
        },
        payload={"reasons": list(record.reasons)},
    )


def automations(block: UUID | None) -> Iterator[AutomationCore]:
    yield _silent()
    yield _never_begun()
    yield _again()
    if block:
        yield from _notifications(block)


def _silent() -> AutomationCore:
    """https://docs.prefect.io/v3/advanced/detect-zombie-flows"""
    return AutomationCore(
        name="regraft: a silent run has crashed",
        description=f"No sign of life for {SILENCE.seconds} s: its worker is gone.",
        trigger=_missing({"prefect.flow-run.heartbeat"}, SILENCE),
        actions=[_crash("no sign of life: its worker is gone")],
    )


def _never_begun() -> AutomationCore:
    return AutomationCore(
        name="regraft: a run that never began has crashed",
        description=f"Taken by a worker {START.seconds // 60} minutes ago: that one is gone.",
        trigger=_missing({"prefect.flow-run.Pending"}, START),
        actions=[_crash("a worker took it and never began it")],
    )


def _again() -> AutomationCore:
    """The same run with its parameters; stages that were done are skipped, fine-tuning goes on."""
    begun = [str(number) for number in range(1, ATTEMPTS)]  # 0 never ran: it would crash at once for ever
    return AutomationCore(
        name="regraft: a crashed run goes on",
        description=f"At most {ATTEMPTS} attempts a run.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match={"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": begun},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            match_related=_ours(),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED, name="AwaitingRetry", message="it had crashed", force=False
            )
        ],
    )


def _missing(after: set[str], within: timedelta) -> EventTrigger:
    """Nothing at all is heard of a run; states have names of ours too, such as Skipped."""
    return EventTrigger(
        after=after,
        expect={"prefect.flow-run.*"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
        match_related=_ours(),
    )


def _ours() -> ResourceSpecification:
    return ResourceSpecification.model_validate({"prefect.resource.id": OURS})


def _crash(message: str) -> ActionTypes:
    return ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)


def _notifications(block: UUID) -> Iterator[AutomationCore]:
    said = "{{ event.resource['regraft.outcome'] }}: {{ event.resource['prefect.resource.name'] }} version "
    yield AutomationCore(
        name="regraft: tell verdicts",
        trigger=EventTrigger(
            expect={VERDICT}, match={"prefect.resource.id": f"{MODEL}*"}, posture=Posture.Reactive
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=said + "{{ event.resource['regraft.version'] }}",
                body="{{ event.payload['reasons'] | join('\n') }}",
            )
        ],
    )
    yield AutomationCore(
        name="regraft: tell what needs a person",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in TOLD},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            posture=Posture.Reactive,
            match_related=_ours(),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=f"{{{{ flow_run.state.name }}}}: {RUN}",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
            )
        ],
    )


def _reference(text: str) -> tuple[str, str]:
    kind, slash, name = text.partition("/")
    if not (kind and slash and name):
        raise InputError(f"--notify {text}: write KIND/NAME of a block, such as slack-webhook/team")
    return kind, name


def _block(client: SyncPrefectClient, kind: str, name: str) -> UUID:
    try:
        found = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        raise InputError(
            f"--notify {kind}/{name}: the server has no such block; make it on its page Blocks, "
            f"`prefect block create {kind}` tells where"
        ) from None
    return found.id


def _put(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    found = client.read_automations_by_name(wanted.name)
    for one in found[1:]:
        client.delete_automation(one.id)
    if not found:
        client.create_automation(wanted)
        return "made"
    kept: Mapping[str, Any] = {"enabled": found[0].enabled}
    client.update_automation(found[0].id, wanted.model_copy(update=kept))
    return "brought up to date"
