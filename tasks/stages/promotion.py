"""promotion: an evaluated model in, a verdict out, and the champion alias moved if the gate and you allow it.

The candidate is paired with the champion on the same test rows. What cannot be compared is held.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tasks import environment, files
from tasks.artifacts import EncodedDataset, Evaluation, PreparedText, Promotion, TrainedModel
from tasks.errors import ArtifactError, HeldError, InputError
from tasks.evaluation.gate import verdict, verdict_page
from tasks.evaluation.gate.checks import Resampling, decimal
from tasks.evaluation.predictions import MODEL
from tasks.params import Params
from tasks.stages import Track
from tasks.stages.evidence import Case, gather, open_case
from tasks.stages.ruling import TAG, Ruling
from tasks.tracking import circumstances, figures, runs
from tasks.tracking.registry import Registry, Version
from tasks.tracking.server import failing_closed

AGAINST = "by hand, against the verdict"  # how the first reason of a forced promotion begins
LONGEST = 4500  # characters of a description; databases hold 5,000


@contextmanager
def _failing_closed(root: Path) -> Iterator[None]:
    """What MLflow does not let it finish is a HeldError, and the page tells no former verdict."""
    try:
        with failing_closed():
            yield
    except HeldError as error:
        files.write_text(root / "reports" / "promotion.md", verdict_page.unfinished(str(error)))
        raise


def run(params: Params, root: Path, track: Track) -> Promotion:
    with _failing_closed(root):
        case = open_case(params, root)
        ruling, record = _decide(case, allowed=params.promotion.move_alias and not _experimental(root))
        _tell(track, case, ruling)
        return record


def judge(params: Params, root: Path) -> Promotion:
    """The gate's verdict on what is in data/finetuning, written as ever; the alias stays where it is."""
    with _failing_closed(root):
        _, record = _decide(open_case(params, root), allowed=False)
        return record


def _decide(case: Case, *, allowed: bool) -> tuple[Ruling, Promotion]:
    """The verdict and its record; the alias moves where that is `allowed` and the gate says so."""
    with case.registry.locked():
        candidate, champion = _register(case, serves=allowed), case.registry.champion()
        standing = _standing(case, candidate, champion)
        ruling = standing or _judge(case, candidate, champion)
        if allowed and ruling.outcome == "promote" and not ruling.moved:
            _note(case, candidate, ruling)  # first: an alias never moves without its reasons
            ruling, champion = _move(case, ruling, candidate), candidate
        if ruling is not standing:
            _note(case, candidate, ruling)
    return ruling, _write(case, ruling, champion)


def promote_by_hand(
    params: Params,
    root: Path,
    *,
    force: bool,
    reason: str,
    by: str | None = None,
    version: str | None = None,
) -> Promotion:
    """Ask the gate again and move the alias, with `force` whatever the gate says; both stand in the history.

    by: who decides; None: whose process this is. version: that was decided about; None: whichever it is now.
    Raises InputError where `force` comes without a reason, and where the candidate is another version.
    """
    if force and not reason.strip():
        raise InputError("--force needs --reason: why should this model be champion against the gate?")
    with _failing_closed(root):
        case = open_case(params, root)
        return _asked_again(case, force=force, reason=reason, by=by, version=version)


def _asked_again(case: Case, *, force: bool, reason: str, by: str | None, version: str | None) -> Promotion:
    with case.registry.locked():
        if version is not None:
            _demand_same(case, version)
        candidate, champion = _register(case, serves=not _experimental(case.root)), case.registry.champion()
        already = _already(case, candidate, champion)
        ruling = already or _ask(case, candidate, champion, force=force, reason=reason)
        if ruling.outcome == "promote" and not already:
            _note(case, candidate, ruling)
            ruling, champion = _move(case, ruling, candidate, by=by), candidate
        if not already:
            _note(case, candidate, ruling)
    return _write(case, ruling, champion)


def _demand_same(case: Case, version: str) -> None:
    """Before anything is noted: what a version answers may change with that."""
    known = case.registry.candidate(case.trained.weights, _reading(case))
    if known is None or known.number != version:
        now = f"version {known.number}" if known else "a model without a version"
        raise InputError(
            f"{now} is the candidate now, and version {version} was decided about: nothing is moved, ask "
            "again"
        )


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
    _link(case, version)
    return version


def _link(case: Case, version: Version) -> None:
    """Put the test figures on the model's own page: evaluation ran before there was one."""
    run_id, found = runs.locate(Evaluation.stage, case.params, case.root), case.evaluation
    figures.link(
        _test_figures(case),
        run_id,
        case.root,
        name=case.registry.name,
        version=version,
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
    encoded, adapter = EncodedDataset.load(case.root), case.trained.path / "adapter"
    run_id = runs.locate(TrainedModel.stage, case.params, case.root)
    return case.registry.register(
        directory,
        run_id=run_id,
        max_length=encoded.max_length,
        kind=encoded.kind,
        stride=case.params.encoding.stride,
        reading=_reading(case),
        tags={**about, "regraft.conversion": case.trained.base, **_tokenizer(directory), **_decision(case)},
        card=case.evaluation.path / "README.md",
        adapter=adapter if adapter.exists() else None,
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


def _tokenizer(directory: Path) -> dict[str, str]:
    """What adapters that are served on one base must have alike."""
    return {"regraft.tokenizer": json.dumps(files.digest_file(directory / "tokenizer.json"))}


def _decision(case: Case) -> dict[str, str]:
    """How the version turns probabilities into answers."""
    return {"regraft.decision": json.dumps(case.evaluation.decision)}


def _standing(case: Case, candidate: Version, champion: Version | None) -> Ruling | None:
    """What was decided before and still holds: nothing that it rests on has changed."""
    if already := _already(case, candidate, champion):
        return already
    stored = Ruling.of(candidate)
    if candidate.number in case.registry.rolled_back():
        back = f"version {candidate.number} was champion and was rolled back: ask with `regraft promote`"
        found = stored or Ruling("hold", (), (), candidate.number, None)
        return replace(found, outcome="hold", reasons=(back, *found.reasons))
    return stored if stored and stored.basis == _basis(case, champion) else None


def _already(case: Case, candidate: Version, champion: Version | None) -> Ruling | None:
    """A champion is not judged against itself: the verdict that made it champion is written again."""
    if champion is None or champion.number != candidate.number:
        return None
    stored = Ruling.of(candidate)
    if stored and stored.moved:
        return stored
    if stored and stored.outcome == "promote" and _was_moved(case, candidate):
        return replace(stored, moved=True)  # the alias went, and nobody could write so any more
    told = f"version {candidate.number} is the champion of {case.registry.name} already, by other hands"
    reasons = (told, *(stored.reasons if stored else ()))
    return Ruling("promote", reasons, (), candidate.number, None, moved=True)


def _was_moved(case: Case, candidate: Version) -> bool:
    """Whether the last line of the history is a promotion of this version."""
    last = case.registry.history()[-1:]
    return [(move.version, move.action) for move in last] == [(candidate.number, "promote")]


def _ask(case: Case, candidate: Version, champion: Version | None, *, force: bool, reason: str) -> Ruling:
    """The gate's verdict, with a person's word before it."""
    found = _judge(case, candidate, champion)
    if force and found.outcome != "promote":
        told = f"{AGAINST} {found.outcome!r}: {reason}"
        return replace(found, outcome="promote", reasons=(told, *found.reasons))
    return replace(found, reasons=(f"by hand: {reason}", *found.reasons)) if reason else found


def _judge(case: Case, candidate: Version, champion: Version | None) -> Ruling:
    settings = case.params.evaluation
    found = verdict.gate(
        gather(case, candidate, champion),
        case.params.promotion.gate,
        must_beat=case.must_beat,
        resampling=Resampling(
            alpha=case.params.promotion.alpha, resamples=settings.resamples, seed=settings.seed
        ),
    )
    return Ruling(
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


def _move(case: Case, ruling: Ruling, candidate: Version, *, by: str | None = None) -> Ruling:
    reason = "; ".join(ruling.reasons)
    case.registry.promote(candidate.number, reason=reason, by=by or circumstances.user())
    return replace(ruling, moved=True)


def _note(case: Case, candidate: Version, ruling: Ruling) -> None:
    """Keep the verdict, whatever it is, on the version itself, its outcome on the champion that it met."""
    tags = {
        TAG: ruling.written(),
        "regraft.outcome": ruling.outcome,
    }
    name, found = next(iter(case.evaluation.metrics[MODEL].items()))
    told = f"test {name.replace('_', ' ')} {decimal(found['value'])}; "
    told += f"{ruling.outcome}: {'; '.join(ruling.reasons)}"
    case.registry.note(candidate, tags, description=told[:LONGEST])
    if ruling.champion:
        met = case.registry.version(ruling.champion)
        case.registry.note(met, {f"regraft.challenger.{candidate.number}": ruling.outcome})


def _experimental(root: Path) -> bool:
    """Whether `dvc exp` or a run with overrides tries something out: that must not change what serves."""
    known = any(os.environ.get(name) for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"))
    return known or environment.is_trial(root)


def _write(case: Case, ruling: Ruling, champion: Version | None) -> Promotion:
    """The record and the page: the same for the same ruling and champion, however often it is asked."""
    now = champion.number if champion else None
    fields: dict[str, Any] = {
        "model": case.registry.name,
        "version": ruling.candidate,
        "alias_moved": ruling.moved and now == ruling.candidate,
        "outcome": ruling.outcome,
        "reasons": ruling.reasons,
    }
    told = {
        **fields,
        "checks": [asdict(check) for check in ruling.checks],
        "figures": dict(ruling.figures),
        "champion_before": ruling.champion,
    }
    with files.replace_directory(Promotion.folder(case.root)) as draft:
        files.write_text(draft / "verdict.json", files.canonical_json(told))
        Promotion.save(draft, **fields)
    page = verdict_page.render(
        verdict_page.Facts(
            model=case.registry.name,
            version=ruling.candidate,
            outcome=ruling.outcome,
            reasons=ruling.reasons,
            checks=ruling.checks,
            judged_against=ruling.champion,
            champion=now,
        )
    )
    files.write_text(case.root / "reports" / "promotion.md", page)
    return Promotion.load(case.root)


def _tell(track: Track, case: Case, ruling: Ruling) -> None:
    """The gate's figures, and the test figures once more: evaluation may have come from a cache."""
    track.metrics(_test_figures(case))
    track.metrics({f"gate.{name}": value for name, value in ruling.figures.items()})
    track.file(case.root / "reports" / "promotion.md")


def _test_figures(case: Case) -> dict[str, float]:
    found = case.evaluation.metrics[MODEL]
    return {f"test.{name}": float(one["value"]) for name, one in found.items()}
