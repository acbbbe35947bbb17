"""promotion: an evaluated model in, a verdict out, and the champion alias moved if the gate and you allow it.

The candidate is paired with the champion on the same test rows. What cannot be compared is held.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tasks import environment, files
from tasks.artifacts import EncodedDataset, Evaluation, Promotion, TrainedModel
from tasks.errors import ArtifactError, InputError, RegraftError
from tasks.evaluation import predictions, verdict
from tasks.evaluation.predictions import HEAD, MODEL, Predictions
from tasks.evaluation.verdict import Verdict
from tasks.params import Params
from tasks.stages import Track
from tasks.stages.champion import Champion
from tasks.tracking import runs
from tasks.tracking.registry import Registry, Version

VERDICT = "regraft.verdict"


@dataclass(frozen=True)
class Decision:
    """A verdict in its place; `basis` is the digest of all it rests on, empty if it may differ next time."""

    outcome: str
    reasons: tuple[str, ...]
    figures: Mapping[str, float]
    candidate: str  # version
    champion: str | None  # version that the candidate was judged against
    basis: str = ""
    moved: bool = False  # this verdict has moved the alias, now or before


@dataclass(frozen=True)
class Case:
    """What is to be judged: the model that finetuning left, with its answers on the test rows."""

    root: Path
    params: Params
    registry: Registry
    evaluation: Evaluation
    trained: TrainedModel
    answers: Mapping[str, Predictions]  # contestant -> answers

    @property
    def must_beat(self) -> tuple[str, ...]:
        named = self.params.promotion.must_beat
        return tuple(name for name in self.answers if name not in (MODEL, HEAD)) if named == "auto" else named


def run(params: Params, root: Path, track: Track) -> Promotion:
    case = _open(params, root)
    with case.registry.locked():
        candidate, champion = _register(case), case.registry.champion()
        standing = _standing(case, candidate, champion)
        decision = standing or _judge(case, candidate, champion)
        allowed = params.promotion.move_alias and not _experimental(root)
        if allowed and decision.outcome == "promote" and not decision.moved:
            decision, champion = _move(case, decision, candidate), candidate
        if decision is not standing:
            _note(case, candidate, decision)
    record = _write(case, decision, champion)
    _tell(track, case, decision)
    return record


def promote_by_hand(params: Params, root: Path, *, force: bool, reason: str) -> Promotion:
    """Ask the gate again and move the alias, with `force` whatever the gate says; both stand in the history.

    Raises InputError where `force` comes without a reason.
    """
    if force and not reason.strip():
        raise InputError("--force needs --reason: why should this model be champion against the gate?")
    case = _open(params, root)
    with case.registry.locked():
        candidate, champion = _register(case), case.registry.champion()
        already = _already(case, candidate, champion)
        decision = already or _ask(case, candidate, champion, force=force, reason=reason)
        if decision.outcome == "promote" and not already:
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
    before, after = Registry(root, name).rollback(to=target, reason=told, by=runs.user())
    return f"{name}: version {after} is champion again, version {before} is not"


def _open(params: Params, root: Path) -> Case:
    evaluation, trained = Evaluation.load(root), TrainedModel.load(root)
    if evaluation.model != trained.digest:
        raise ArtifactError(f"{evaluation.path} is about another model: run `dvc repro evaluation`")
    path = evaluation.path / "predictions.parquet"
    answers = predictions.read(path)
    digests = {predictions.digest_rows(found.ids, found.actual) for found in answers.values()}
    if digests != {evaluation.test}:
        raise ArtifactError(
            f"{path} answers other rows than its manifest says: run `dvc repro -f evaluation`"
        )
    if MODEL not in answers:
        raise ArtifactError(f"{path} holds no answers of {MODEL!r}: run `dvc repro -f evaluation`")
    return Case(root, params, Registry(root, params.promotion.model), evaluation, trained, answers)


def _register(case: Case) -> Version:
    """The candidate as a version, with what a later candidate needs to be compared with it."""
    registry, test = case.registry, case.evaluation.test
    about = {"regraft.test": test, "regraft.params": runs.parent_key(case.params, case.root)}
    version = registry.candidate(case.trained.weights) or _new_version(case, about)
    registry.note(version, about)
    if not registry.keeps_predictions(version, test=test):
        registry.keep_predictions(version, case.evaluation.path / "predictions.parquet", test=test)
    return version


def _new_version(case: Case, about: Mapping[str, str]) -> Version:
    directory = case.trained.path / "model"
    if (found := files.digest_file(directory / "model.safetensors")) != case.trained.weights:
        raise ArtifactError(
            f"{directory} holds weights {found}, its manifest says {case.trained.weights}: "
            "run `dvc repro -f finetuning`"
        )
    encoded = EncodedDataset.load(case.root)
    known = {
        "regraft.conversion": case.trained.base,
        "regraft.labels": json.dumps(case.trained.labels, ensure_ascii=False),
        "regraft.max_length": str(encoded.max_length),
        "regraft.kind": json.dumps(encoded.kind),
        "regraft.clean": json.dumps(case.params.preparation.clean),
    }
    run_id = runs.locate(TrainedModel.stage, case.params, case.root)
    return case.registry.register(
        directory,
        run_id=run_id,
        max_length=encoded.max_length,
        kind=encoded.kind,
        tags={**about, **known},
    )


def _standing(case: Case, candidate: Version, champion: Version | None) -> Decision | None:
    """What was decided before and still holds: nothing that it rests on has changed."""
    if already := _already(case, candidate, champion):
        return already
    stored = _stored(candidate)
    if stored and candidate.number in case.registry.rolled_back():
        back = f"version {candidate.number} was champion and was rolled back: ask with `regraft promote`"
        return replace(stored, outcome="hold", reasons=(back, *stored.reasons))
    return stored if stored and stored.basis == _basis(case, champion) else None


def _already(case: Case, candidate: Version, champion: Version | None) -> Decision | None:
    """A champion is not judged against itself: the verdict that made it champion is written again."""
    if champion is None or champion.number != candidate.number:
        return None
    stored = _stored(candidate)
    if stored and stored.moved:
        return stored
    told = f"version {candidate.number} is the champion of {case.registry.name} already, by other hands"
    reasons = (told, *(stored.reasons if stored else ()))
    return Decision("promote", reasons, {}, candidate.number, None, moved=True)


def _ask(case: Case, candidate: Version, champion: Version | None, *, force: bool, reason: str) -> Decision:
    """The gate's verdict, with a person's word before it."""
    found = _judge(case, candidate, champion)
    if force and found.outcome != "promote":
        told = f"by hand, against the verdict {found.outcome!r}: {reason}"
        return replace(found, outcome="promote", reasons=(told, *found.reasons))
    return replace(found, reasons=(f"by hand: {reason}", *found.reasons)) if reason else found


def _judge(case: Case, candidate: Version, champion: Version | None) -> Decision:
    rival, faults = _champions_answers(case, champion) if champion else (None, ())
    found = Verdict("hold", faults, {}) if faults else _gate(case, rival)
    settled = found.outcome == "promote" or bool(found.figures)  # what could not be compared may be next time
    return Decision(
        found.outcome,
        found.reasons,
        {name: float(f"{value:.6g}") for name, value in found.figures.items()},  # a tag must hold them all
        candidate.number,
        champion.number if champion else None,
        _basis(case, champion) if settled else "",
    )


def _gate(case: Case, champion: Predictions | None) -> Verdict:
    settings = case.params.promotion
    return verdict.gate(
        case.answers[MODEL],
        champion,
        {name: found for name, found in case.answers.items() if name != MODEL},
        alpha=settings.alpha,
        must_beat=case.must_beat,
        resamples=case.params.evaluation.resamples,
        seed=case.params.evaluation.seed,
    )


def _basis(case: Case, champion: Version | None) -> str:
    settings = case.params.promotion
    return files.digest_json(
        {
            "champion": [champion.number, champion.weights] if champion else None,
            "test": case.evaluation.test,
            "alpha": settings.alpha,
            "must_beat": list(case.must_beat),
        }
    )


def _champions_answers(case: Case, champion: Version) -> tuple[Predictions | None, tuple[str, ...]]:
    """The champion's answers on the candidate's test rows, kept or made now; else why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        kept = case.registry.predictions(champion, Path(folder), test=case.evaluation.test)
        if kept is not None:
            return replace(predictions.read(kept)[MODEL], contestant="champion"), ()
        try:
            answers = Champion(case.registry, champion, case.params.finetuning.device).answers_to_test(
                case.answers[MODEL], case.evaluation.labels, root=case.root
            )
        except (RegraftError, OSError, ValueError) as error:
            return None, (
                f"champion version {champion.number} was judged on other test rows and cannot answer these: "
                f"{error}",
            )
        path = Path(folder) / "predictions.parquet"
        predictions.write(path, [answers])
        case.registry.keep_predictions(champion, path, test=case.evaluation.test)
    return replace(answers, contestant="champion"), ()


def _move(case: Case, decision: Decision, candidate: Version) -> Decision:
    case.registry.promote(candidate.number, reason="; ".join(decision.reasons)[:400], by=runs.user())
    return replace(decision, moved=True)


def _note(case: Case, candidate: Version, decision: Decision) -> None:
    """Keep the verdict, whatever it is, on the version itself."""
    kept = {key: value for key, value in asdict(decision).items() if key != "figures"}
    tags = {
        VERDICT: json.dumps(kept, ensure_ascii=False),
        "regraft.figures": json.dumps(dict(decision.figures)),
        "regraft.outcome": decision.outcome,
    }
    name, found = next(iter(case.evaluation.metrics[MODEL].items()))
    told = f"test {name.replace('_', ' ')} {verdict.decimal(found['value'])}; "
    case.registry.note(
        candidate, tags, description=f"{told}{decision.outcome}: {'; '.join(decision.reasons)}"
    )


def _stored(version: Version) -> Decision | None:
    if VERDICT not in version.tags:
        return None
    kept = json.loads(version.tags[VERDICT])
    reasons, figures = tuple(kept.pop("reasons")), json.loads(version.tags["regraft.figures"])
    return Decision(**kept, reasons=reasons, figures=figures)


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
    told = {**fields, "figures": dict(decision.figures), "champion_before": decision.champion}
    with files.replace_directory(Promotion.folder(case.root)) as draft:
        files.write_text(draft / "verdict.json", files.canonical_json(told))
        Promotion.save(draft, **fields)
    files.write_text(case.root / "reports" / "promotion.md", _page(decision, case.registry.name, now))
    return Promotion.load(case.root)


def _page(decision: Decision, name: str, now: str | None) -> str:
    after = f"version {now}" if now else "none"
    before = f"version {decision.champion}" if decision.champion else "none"
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
    return (
        f"# {decision.outcome}: {name} version {decision.candidate}\n\n{reasons}\n\n"
        f"Judged against the champion: {before}. Champion now: {after}.\n\n"
        f"{_comparisons(decision.figures)}"
        f"To make the champion before this one champion again: `regraft rollback`.\n"
    )


def _comparisons(figures: Mapping[str, float]) -> str:
    """A table of the paired tests: one line per rival."""
    rivals = [name.removesuffix(".score") for name in figures if name.endswith(".score")]
    if not rivals:
        return ""
    lines = [
        "| against | ours | theirs | difference | interval | p | rows |",
        "|---|---|---|---|---|---|---|",
    ]
    for rival in rivals:
        got = {name.removeprefix(f"{rival}."): value for name, value in figures.items()}
        ours, theirs = (verdict.decimal(got[name]) for name in ("score", "other"))
        apart, low, high = (verdict.decimal(got[name], "+") for name in ("difference", "low", "high"))
        lines.append(
            f"| {rival} | {ours} | {theirs} | {apart} | {low} to {high} | "
            f"{verdict.p_text(got['p_value'])} | {got['rows']:,.0f} |"
        )
    return "\n".join(lines) + "\n\n"


def _tell(track: Track, case: Case, decision: Decision) -> None:
    """The gate's figures, and the test figures once more: evaluation may have come from a cache."""
    values = case.evaluation.metrics[MODEL]
    track.metrics({f"test.{name}": float(found["value"]) for name, found in values.items()})
    track.metrics({f"gate.{name}": value for name, value in decision.figures.items()})
    track.file(case.root / "reports" / "promotion.md")
