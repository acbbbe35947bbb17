"""Whether a candidate is good enough: paired tests on the same test rows, and a gate that fails closed.

A refusal is a value. Nothing is promoted that could not be compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation import judging
from tasks.evaluation.gate import checks, limits, margins
from tasks.evaluation.gate.checks import CHAMPION, Check, Evidence, Outcome, Resampling
from tasks.evaluation.gate.pairing import Comparison, compare_scores
from tasks.evaluation.predictions import Array, Predictions
from tasks.params import GateParams


@dataclass(frozen=True)
class Verdict:
    """Promote if every check does; reject if one of them rejects; else hold."""

    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        found = {check.outcome for check in self.checks}
        return "reject" if "reject" in found else "promote" if found == {"promote"} else "hold"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the checks say that led to the outcome."""
        return tuple(check.sentence for check in self.checks if check.outcome == self.outcome)

    @property
    def settled(self) -> bool:
        """Whether all that stands in the way was measured: what nobody knows may be known next time."""
        return all(check.figures for check in self.checks if check.outcome != "promote")


def gate(
    evidence: Evidence, conditions: GateParams, *, must_beat: Sequence[str], resampling: Resampling
) -> Verdict:
    """Promote a candidate that beats every baseline of `must_beat` and, if there is one, the champion, and
    fulfils the other conditions.

    Beating means a higher mean score (`judging`; accuracy, say), or a higher primary metric where one is
    named, on the same rows with p <= alpha, two-sided. There is one primary, so that nothing asks for Holm's
    correction: all checks must succeed, so that several of them do not raise the chance of a false promotion
    (intersection-union test, Berger 1982). Shown to be worse in any: reject. Not known, or not shown: hold.

    Raises ParamsError for a condition on a metric that rows of this kind do not have.
    """
    if faults := list(_faults(evidence, must_beat)):
        return Verdict(tuple(Check("comparable", "hold", fault) for fault in faults))
    comparisons = {
        name: _compare(evidence, rival, conditions.primary, resampling)
        for name, rival in _rivals(evidence, must_beat).items()
    }
    found = [
        *(
            checks.beats(
                name,
                comparison,
                alpha=resampling.alpha,
                margin=conditions.margin if name == CHAMPION else 0.0,
            )
            for name, comparison in comparisons.items()
        ),
        *checks.not_worse(evidence, conditions.not_worse, resampling),
        *checks.protected(evidence, conditions, resampling),
        *limits.limits(evidence, conditions),
        *limits.proven(evidence, conditions.proofs),
        checks.enough_rows(evidence, comparisons, resampling.alpha),
        limits.judged(evidence.judgements, conditions.judgements, resampling.alpha),
    ]
    return Verdict(tuple(found))


def compare(
    candidate: Predictions,
    other: Predictions,
    *,
    confidence: float,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> Comparison:
    """Paired comparison of the two's scores, row by row; by groups where `groups` (rows,) is equal for rows
    that are not independent.

    Raises ValueError where the two did not answer the same rows, or none.
    """
    if faults := [*_unfit("the candidate", candidate), *_incomparable(other.contestant, candidate, other)]:
        raise ValueError("; ".join(faults))
    judged = judging.find(candidate.kind)
    return compare_scores(
        judging.scores(candidate),
        judging.scores(other),
        measure=judged.measure,
        right_or_wrong=judged.right_or_wrong,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        groups=groups,
    )


def _rivals(evidence: Evidence, must_beat: Sequence[str]) -> dict[str, Predictions]:
    rivals = {name: evidence.baselines[name] for name in must_beat if name in evidence.baselines}
    return rivals | ({CHAMPION: evidence.champion} if evidence.champion is not None else {})


def _compare(evidence: Evidence, rival: Predictions, primary: str, resampling: Resampling) -> Comparison:
    if primary != "auto":
        return margins.metric_comparison(
            evidence.candidate,
            rival,
            primary,
            labels=evidence.labels,
            confidence=1 - resampling.alpha,
            resamples=resampling.resamples,
            seed=resampling.seed,
            groups=evidence.groups,
        )
    return compare(
        evidence.candidate,
        rival,
        confidence=1 - resampling.alpha,
        resamples=resampling.resamples,
        seed=resampling.seed,
        groups=evidence.groups,
    )


def _faults(evidence: Evidence, must_beat: Sequence[str]) -> Iterator[str]:
    """Why there is nothing to judge."""
    yield from (evidence.faults[name] for name in (CHAMPION, "groups") if name in evidence.faults)
    for name in must_beat:
        if name not in evidence.baselines:
            yield f"baseline {name!r} was not evaluated"
    yield from _unfit("the candidate", evidence.candidate)
    if evidence.groups is not None and len(evidence.groups) != len(evidence.candidate.ids):
        yield f"{len(evidence.groups):,} test rows have a group, of {len(evidence.candidate.ids):,}"
    yield from _uniform(evidence.candidate, evidence.labels)
    for name, rival in _rivals(evidence, must_beat).items():
        yield from _incomparable(name, evidence.candidate, rival)


def _uniform(candidate: Predictions, labels: Sequence[str]) -> Iterator[str]:
    """Rows of one class cannot tell a model from one that always names that class."""
    if not judging.find(candidate.kind).right_or_wrong or len(np.unique(candidate.actual)) != 1:
        return
    number = int(candidate.actual[0])
    name = repr(labels[number]) if number < len(labels) else f"number {number}"
    yield (
        f"all {len(candidate.ids):,} test rows have the label {name}: they tell no classes apart; "
        "evaluate on test rows of every class"
    )


def _unfit(name: str, answers: Predictions) -> Iterator[str]:
    rows = len(answers.ids)
    if rows == 0:
        yield f"{name} has no test rows"
        return
    if len(set(answers.ids)) != rows:
        yield f"{name} answers {rows - len(set(answers.ids)):,} of its {rows:,} test rows twice"
    if len(answers.actual) != rows or len(answers.answer) != rows:
        sizes = f"{len(answers.actual):,} labels and {len(answers.answer):,} answers"
        yield f"{name} has {rows:,} ids, {sizes}"
    elif bad := int(judging.find(answers.kind).unfit(answers.actual, answers.answer).sum()):
        yield f"{name}: {bad:,} of {rows:,} rows {judging.find(answers.kind).flaw}"


def _incomparable(name: str, candidate: Predictions, rival: Predictions) -> Iterator[str]:
    yield from _unfit(name, rival)
    if candidate.kind != rival.kind:
        yield f"{name} answered rows of kind {rival.kind}, the candidate rows of kind {candidate.kind}"
    elif candidate.ids != rival.ids:
        shared = len(set(candidate.ids) & set(rival.ids))
        yield (
            f"{name} was evaluated on other test rows: {len(rival.ids):,} against the candidate's "
            f"{len(candidate.ids):,}, {shared:,} shared; evaluate both on the same rows in the same order"
        )
    elif candidate.answer.shape[1:] != rival.answer.shape[1:]:
        theirs, ours = rival.answer.shape[1:], candidate.answer.shape[1:]
        yield f"{name} knows {theirs[0]} classes, the candidate {ours[0]}"
    elif differ := _differing(candidate.actual, rival.actual):
        yield f"{name} was evaluated against other labels: {differ:,} of {len(rival.ids):,} rows differ"


def _differing(ours: Array, theirs: Array) -> int:
    """Rows of which the two say another truth."""
    if ours.dtype == object:  # ragged
        return sum(not np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    if ours.shape != theirs.shape:
        return len(ours)
    return int((ours != theirs).reshape(len(ours), -1).any(axis=1).sum())
