"""Promotion as a Prefect flow: ask the gate, then a person if wanted, and only then move the alias."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from flows import journal
from flows.pipeline import turn
from flows.team import automations
from tasks import environment
from tasks import params as parameters
from tasks.artifacts import Promotion
from tasks.params import Params
from tasks.stages import promotion

HOURS = 72  # that a weekend and a day of grace take


class Approval(RunInput):
    """The form that a paused run shows."""

    approve: bool = False
    by: Annotated[str, Field(description="who decides; kept in the history")] = ""
    reason: Annotated[str, Field(description="why, in words; kept in the history")] = ""


@flow(name="promote", description=__doc__)
def promote(
    approval: bool = False,
    force: bool = False,
    reason: str = "",
    patience_hours: float = HOURS,
    poll_seconds: int = 10,
    checkout: Path = Path(),
) -> State[str]:
    """Ask the gate about the model in data/finetuning, and make it champion; with `approval` only after a
    person has read the verdict and said yes, within `patience_hours`.

    With `force` whatever the gate says, which needs a reason. Ends as *Promoted*, as *Skipped* where it is
    champion already, or as *Held* or *Refused* with the champion that it was. Meant for
    `promotion.move_alias: false`, where the pipeline only judges.
    """
    environment.quiet()
    journal.keep_logs()
    root = checkout.resolve()
    params = parameters.load(root / "params.yaml")
    with turn(root):
        judged = promotion.judge(params, root)
        _show(root)
    if judged.alias_moved:
        return Completed(name="Skipped", message=f"{judged.model} version {judged.version} is champion")
    if judged.outcome != "promote" and not force:
        return Completed(name="Held", message=_said(judged))
    if not approval:
        return _promoted(params, root, judged, Approval(reason=reason), force=force)
    form = Approval.with_initial_data(description=_question(judged, root), reason=reason)
    answer = pause_flow_run(
        wait_for_input=form, timeout=int(patience_hours * 3600), poll_interval=poll_seconds
    )
    if not answer.approve:
        why = f"{answer.by or 'a person'} said no: {answer.reason or 'no reason given'}"
        return Completed(name="Refused", message=f"{judged.model} version {judged.version}: {why}")
    return _promoted(params, root, judged, answer, force=force)


def _promoted(params: Params, root: Path, judged: Promotion, answer: Approval, *, force: bool) -> State[str]:
    with turn(root):  # a run that rewrites data/evaluation meanwhile would lose a person's yes
        record = promotion.promote_by_hand(
            params,
            root,
            force=force,
            reason=answer.reason,
            by=answer.by or None,
            version=judged.version,
        )
        _show(root)
    automations.verdict(record)
    name = "Promoted" if record.alias_moved else "Held"  # the champion may have changed meanwhile
    return Completed(name=name, message=_said(record))


def _question(judged: Promotion, root: Path) -> str:
    page = (root / "reports" / "promotion.md").read_text(encoding="utf-8")
    return f"Shall {judged.model} version {judged.version} become champion?\n\n{page}"


def _show(root: Path) -> None:
    page = (root / "reports" / "promotion.md").read_text(encoding="utf-8")
    create_markdown_artifact(page, key="promotion-verdict", description="What the gate says")


def _said(record: Promotion) -> str:
    reasons = "; ".join(record.reasons)
    return f"{record.outcome}: {record.model} version {record.version}: {reasons}"
