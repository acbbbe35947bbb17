"""promotion: an evaluated model in, a verdict out, and the champion alias moved if the gate and you allow it.

The candidate is paired with the champion on the same test rows. What cannot be compared is held.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tasks import environment, files
from tasks.artifacts import EncodedDataset, Evaluation, PreparedText, Promotion, TrainedModel
from tasks.errors import ArtifactError, InputError
from tasks.evaluation.gate import verdict, verdict_page
from tasks.evaluation.gate.checks import Check, Resampling, decimal
from tasks.evaluation.predictions import MODEL
from tasks.params import Params
from tasks.stages import Track
from tasks.stages.evidence import Case, gather, open_case
from tasks.tracking import circumstances, figures, runs
from tasks.tracking.registry import Registry, Version
from tasks.tracking.server import failing_closed

VERDICT = "regraft.verdict"
LARGEST = 50_000  # characters of a verdict kept whole; MLflow takes 100,000
KEPT_PARTS = 50
LONGEST = 4500  # characters of a description; databases hold 5,000


@dataclass(frozen=True)
class Decision:
    """A verdict in its place; `basis` is the digest of all it rests on, empty if it may differ next time."""

    outcome: str
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    candidate: str  # version
    champion: str | None  # version that the candidate was judged against
    basis: str = ""
    moved: bool = False  # this verdict has moved the alias, now or before

    @property
    def figures(self) -> Mapping[str, float]:
        """Under flat names: champion.p_value and the like."""
        return {
            f"{check.name.replace(' ', '_')}.{name}": value
            for check in self.checks
            for name, value in check.figures.items()
        }


@failing_closed()
def run(params: Params, root: Path, track: Track) -> Promotion:
    case = open_case(params, root)
    allowed = params.promotion.move_alias and not _experimental(root)
    with case.registry.locked():
        candidate, champion = _register(case, serves=allowed), case.registry.champion()
        standing = _standing(case, candidate, champion)
        decision = standing or _judge(case, candidate, champion)
        if allowed and decision.outcome == "promote" and not decision.moved:
            _note(case, candidate, decision)  # first: an alias never moves without its reasons
            decision, champion = _move(case, decision, candidate), candidate
        if decision is not standing:
            _note(case, candidate, decision)
    record = _write(case, decision, champion)
    _tell(track, case, decision)
    return record


@failing_closed()
def promote_by_hand(params: Params, root: Path, *, force: bool, reason: str) -> Promotion:
    """Ask the gate again and move the alias, with `force` whatever the gate says; both stand in the history.

    Raises InputError where `force` comes without a reason.
    """
    if force and not reason.strip():
        raise InputError("--force needs --reason: why should this model be champion against the gate?")
    case = open_case(params, root)
    with case.registry.locked():
        candidate, champion = _register(case, serves=not _experimental(root)), case.registry.champion()
        already = _already(case, candidate, champion)
        decision = already or _ask(case, candidate, champion, force=force, reason=reason)
        if decision.outcome == "promote" and not already:
            _note(case, candidate, decision)
            decision, champion = _move(case, decision, candidate), candidate
        if not already:
            _note(case, candidate, decision)
    return _write(case, decision, champion)


def rollback(params: Params, root: Path, *, to: int | None, reason: str) -> str:
    """Make the former champion, or version `to`, champion again; returns what was done as a sentence.

    Raises InputError where there is nothing to go back to.
    """
    name = params.promotion.model
    told = reason or "rolled back by hand"
    target = None if to is None else str(to)
    before, after = Registry(root, name).rollback(to=target, reason=told, by=circumstances.user())
    return f"{name}: version {after} is champion again, version {before} is not"


def _register(case: Case, *, serves: bool) -> Version:
    """The candidate as a version, with what a later candidate needs to be compared with it; only where it
    `serves` may this change how a version answers that is known already."""
    registry, test = case.registry, case.evaluation.test
    about = {"regraft.test": test, "regraft.params": runs.parent_key(case.params, case.root)}
    version = registry.candidate(case.trained.weights, _reading(case)) or _new_version(case, about)
    if serves:
        about |= _decision(case) | registry.committed_since(version)
    registry.note(version, about)
    if not registry.keeps_predictions(version, test=test):
        registry.keep_predictions(version, case.evaluation.path / "predictions.parquet", test=test)
    _link(case)
    return version


def _link(case: Case) -> None:
    """Put the test figures on the model's own page: evaluation ran before there was one."""
    run_id, found = runs.locate(Evaluation.stage, case.params, case.root), case.evaluation
    figures.link(
        _test_figures(case),
        run_id,
        case.root,
        weights=case.trained.weights,
        test=found.test,
        rows=found.rows,
    )


def _new_version(case: Case, about: Mapping[str, str]) -> Version:
    directory = case.trained.path / "model"
    if (found := files.digest_file(directory / "model.safetensors")) != case.trained.weights:
        raise ArtifactError(
            f"{directory} holds weights {found}, its manifest says {case.trained.weights}: "
            "run `dvc repro -f finetuning`"
        )
    encoded = EncodedDataset.load(case.root)
    run_id = runs.locate(TrainedModel.stage, case.params, case.root)
    return case.registry.register(
        directory,
        run_id=run_id,
        max_length=encoded.max_length,
        kind=encoded.kind,
        stride=case.params.encoding.stride,
        reading=_reading(case),
        tags={**about, "regraft.conversion": case.trained.base, **_decision(case)},
        card=case.evaluation.path / "README.md",
    )


def _reading(case: Case) -> dict[str, str]:
    """How the version takes a text, and what its answers are called: with its weights, what it is."""
    encoded = EncodedDataset.load(case.root)
    return {
        "regraft.labels": json.dumps(case.trained.labels, ensure_ascii=False),
        "regraft.max_length": str(encoded.max_length),
        "regraft.kind": json.dumps(encoded.kind),
        "regraft.clean": json.dumps(case.params.preparation.clean),
        "regraft.stride": json.dumps(case.params.encoding.stride),
    }


def _decision(case: Case) -> dict[str, str]:
    """How the version turns probabilities into answers."""
    return {"regraft.decision": json.dumps(case.evaluation.decision)}


def _standing(case: Case, candidate: Version, champion: Version | None) -> Decision | None:
    """What was decided before and still holds: nothing that it rests on has changed."""
    if already := _already(case, candidate, champion):
        return already
    stored = _stored(candidate)
    if candidate.number in case.registry.rolled_back():
        back = f"version {candidate.number} was champion and was rolled back: ask with `regraft promote`"
        found = stored or Decision("hold", (), (), candidate.number, None)
        return replace(found, outcome="hold", reasons=(back, *found.reasons))
    return stored if stored and stored.basis == _basis(case, champion) else None


def _already(case: Case, candidate: Version, champion: Version | None) -> Decision | None:
    """A champion is not judged against itself: the verdict that made it champion is written again."""
    if champion is None or champion.number != candidate.number:
        return None
    stored = _stored(candidate)
    if stored and stored.moved:
        return stored
    if stored and stored.outcome == "promote" and _was_moved(case, candidate):
        return replace(stored, moved=True)  # the alias went, and nobody could write so any more
    told = f"version {candidate.number} is the champion of {case.registry.name} already, by other hands"
    reasons = (told, *(stored.reasons if stored else ()))
    return Decision("promote", reasons, (), candidate.number, None, moved=True)


def _was_moved(case: Case, candidate: Version) -> bool:
    """Whether the last line of the history is a promotion of this version."""
    last = case.registry.history()[-1:]
    return [(move.version, move.action) for move in last] == [(candidate.number, "promote")]


def _ask(case: Case, candidate: Version, champion: Version | None, *, force: bool, reason: str) -> Decision:
    """The gate's verdict, with a person's word before it."""
    found = _judge(case, candidate, champion)
    if force and found.outcome != "promote":
        told = f"by hand, against the verdict {found.outcome!r}: {reason}"
        return replace(found, outcome="promote", reasons=(told, *found.reasons))
    return replace(found, reasons=(f"by hand: {reason}", *found.reasons)) if reason else found


def _judge(case: Case, candidate: Version, champion: Version | None) -> Decision:
    settings = case.params.evaluation
    found = verdict.gate(
        gather(case, candidate, champion),
        case.params.promotion.gate,
        must_beat=case.must_beat,
        resampling=Resampling(
            alpha=case.params.promotion.alpha, resamples=settings.resamples, seed=settings.seed
        ),
    )
    return Decision(
        found.outcome,
        found.reasons,
        found.checks,
        candidate.number,
        champion.number if champion else None,
        _basis(case, champion) if found.settled else "",
    )


def _basis(case: Case, champion: Version | None) -> str:
    settings = case.params.promotion
    return files.digest_json(
        {
            "champion": [champion.number, champion.weights] if champion else None,
            "evaluation": case.evaluation.digest,
            "prepared": PreparedText.load(case.root).digest,  # which rows are near-duplicates
            "alpha": settings.alpha,
            "gate": settings.gate.model_dump(mode="json"),
        }
    )


def _move(case: Case, decision: Decision, candidate: Version) -> Decision:
    case.registry.promote(candidate.number, reason="; ".join(decision.reasons), by=circumstances.user())
    return replace(decision, moved=True)


def _note(case: Case, candidate: Version, decision: Decision) -> None:
    """Keep the verdict, whatever it is, on the version itself, its outcome on the champion that it met."""
    tags = {
        VERDICT: _written(decision),
        "regraft.outcome": decision.outcome,
    }
    name, found = next(iter(case.evaluation.metrics[MODEL].items()))
    told = f"test {name.replace('_', ' ')} {decimal(found['value'])}; "
    told += f"{decision.outcome}: {'; '.join(decision.reasons)}"
    case.registry.note(candidate, tags, description=told[:LONGEST])
    if decision.champion:
        met = case.registry.version(decision.champion)
        case.registry.note(met, {f"regraft.challenger.{candidate.number}": decision.outcome})


def _written(decision: Decision) -> str:
    """As JSON; of many slices only some that reject, where all would be more than a tag holds."""
    whole = json.dumps(asdict(decision), ensure_ascii=False)
    if len(whole) <= LARGEST:
        return whole
    checks = tuple(
        replace(check, parts=tuple(part for part in check.parts if part.outcome == "reject")[:KEPT_PARTS])
        for check in decision.checks
    )
    return json.dumps(asdict(replace(decision, checks=checks)), ensure_ascii=False)


def _stored(version: Version) -> Decision | None:
    if VERDICT not in version.tags:
        return None
    kept = json.loads(version.tags[VERDICT])
    reasons, found = tuple(kept.pop("reasons")), tuple(Check.read(check) for check in kept.pop("checks", ()))
    return Decision(**kept, reasons=reasons, checks=found)


def _experimental(root: Path) -> bool:
    """Whether `dvc exp` or a run with overrides tries something out: that must not change what serves."""
    known = any(os.environ.get(name) for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"))
    return known or environment.home(root) != root.resolve()


def _write(case: Case, decision: Decision, champion: Version | None) -> Promotion:
    """The record and the page: the same for the same decision and champion, however often it is asked."""
    now = champion.number if champion else None
    fields: dict[str, Any] = {
        "model": case.registry.name,
        "version": decision.candidate,
        "alias_moved": decision.moved and now == decision.candidate,
        "outcome": decision.outcome,
        "reasons": decision.reasons,
    }
    told = {
        **fields,
        "checks": [asdict(check) for check in decision.checks],
        "figures": dict(decision.figures),
        "champion_before": decision.champion,
    }
    with files.replace_directory(Promotion.folder(case.root)) as draft:
        files.write_text(draft / "verdict.json", files.canonical_json(told))
        Promotion.save(draft, **fields)
    page = verdict_page.render(
        verdict_page.Facts(
            model=case.registry.name,
            version=decision.candidate,
            outcome=decision.outcome,
            reasons=decision.reasons,
            checks=decision.checks,
            judged_against=decision.champion,
            champion=now,
        )
    )
    files.write_text(case.root / "reports" / "promotion.md", page)
    return Promotion.load(case.root)


def _tell(track: Track, case: Case, decision: Decision) -> None:
    """The gate's figures, and the test figures once more: evaluation may have come from a cache."""
    track.metrics(_test_figures(case))
    track.metrics({f"gate.{name}": value for name, value in decision.figures.items()})
    track.file(case.root / "reports" / "promotion.md")


def _test_figures(case: Case) -> dict[str, float]:
    found = case.evaluation.metrics[MODEL]
    return {f"test.{name}": float(one["value"]) for name, one in found.items()}
