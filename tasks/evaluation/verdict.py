"""Whether a candidate is good enough: paired tests on the same test rows, and a gate that fails closed.

A refusal is a value. Nothing is promoted that could not be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from tasks.evaluation import judging
from tasks.evaluation.pairing import Comparison, compare_scores
from tasks.evaluation.predictions import Predictions

Outcome = Literal["promote", "hold", "reject"]


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reasons: tuple[str, ...]
    figures: Mapping[str, float]  # "champion.p_value" and the like


def gate(
    candidate: Predictions,
    champion: Predictions | None,
    baselines: Mapping[str, Predictions],
    *,
    alpha: float,
    must_beat: Sequence[str],
    resamples: int = 1000,
    seed: int = 1,
) -> Verdict:
    """Promote a candidate that beats every baseline of `must_beat` and, if there is one, the champion.

    Beating means a higher mean score (`judging`; accuracy, say) on the same rows with p <= alpha, two-sided.
    All tests must succeed, so that several of them do not raise the chance of a false promotion
    (intersection-union test, Berger 1982).
    Significantly worse than any of them: reject. Not comparable, or not significantly better: hold.
    """
    rivals = {name: baselines[name] for name in must_beat if name in baselines}
    rivals |= {"champion": champion} if champion is not None else {}
    faults = [f"baseline {name!r} was not evaluated" for name in must_beat if name not in baselines]
    faults += [*_unfit("the candidate", candidate)]
    faults += [fault for name, rival in rivals.items() for fault in _incomparable(name, candidate, rival)]
    if faults:
        return Verdict("hold", tuple(faults), {})
    comparisons = {
        name: compare(candidate, rival, confidence=1 - alpha, resamples=resamples, seed=seed)
        for name, rival in rivals.items()
    }
    return _judge(comparisons, alpha=alpha)


def compare(
    candidate: Predictions, other: Predictions, *, confidence: float, resamples: int, seed: int
) -> Comparison:
    """Paired comparison of the two's scores, row by row.

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
    )


def sentence(name: str, found: Comparison) -> str:
    """A comparison in words and numbers: accuracy 0.871 < champion 0.884 on the same 2,000 rows, …"""
    sign = ">" if found.difference > 0 else "<" if found.difference < 0 else "="
    return (
        f"{found.measure} {decimal(found.score)} {sign} {name} {decimal(found.other)} on the same "
        f"{found.rows:,} rows, paired {100 * found.confidence:g} % interval "
        f"[{decimal(found.low, '+')}, {decimal(found.high, '+')}], {p_text(found.p_value)}"
    )


def decimal(value: float, sign: str = "-") -> str:
    """Three decimals, or three digits of what is too large or too small for them."""
    return f"{value:{sign}.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:{sign}.3g}"


def p_text(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _judge(comparisons: Mapping[str, Comparison], *, alpha: float) -> Verdict:
    figures = {
        f"{name}.{key}": float(value)
        for name, found in comparisons.items()
        for key, value in asdict(found).items()
        if not isinstance(value, str)
    }
    if not comparisons:
        return Verdict("promote", ("first version, and must_beat names no baseline to beat",), figures)
    if worse := [name for name, found in comparisons.items() if found.worse(alpha)]:
        return Verdict("reject", tuple(sentence(name, comparisons[name]) for name in worse), figures)
    level = [name for name, found in comparisons.items() if not found.better(alpha)]
    if level:
        return Verdict("hold", tuple(_undecided(name, comparisons[name], alpha) for name in level), figures)
    return Verdict("promote", tuple(sentence(name, found) for name, found in comparisons.items()), figures)


def _undecided(name: str, found: Comparison, alpha: float) -> str:
    return (
        f"{sentence(name, found)}: not significantly better at {alpha:g}; {found.rows:,} rows show "
        f"differences from about {decimal(found.detectable)}"
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
    elif differ := sum(not np.array_equal(a, b) for a, b in zip(candidate.actual, rival.actual, strict=True)):
        yield f"{name} was evaluated against other labels: {differ:,} of {len(rival.ids):,} rows differ"
