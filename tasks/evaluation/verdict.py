"""Whether a candidate is good enough: paired tests on the same test rows, and a gate that fails closed.

A refusal is a value. Nothing is promoted that could not be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Literal

import numpy as np
from scipy.stats import binomtest, norm

from tasks.evaluation.predictions import Predictions, Probabilities

Outcome = Literal["promote", "hold", "reject"]


@dataclass(frozen=True)
class Comparison:
    """A candidate against another contestant on the same rows."""

    rows: int
    accuracy: float  # the candidate's
    other: float  # the other's accuracy
    wins: int  # rows that only the candidate has right
    losses: int  # rows that only the other has right
    difference: float  # accuracy - other
    low: float  # paired bootstrap interval of the difference
    high: float
    confidence: float
    p_value: float  # exact McNemar, two-sided
    detectable: float  # smallest true difference that would be found 4 times out of 5

    def better(self, alpha: float) -> bool:
        return self.difference > 0 and self.p_value <= alpha

    def worse(self, alpha: float) -> bool:
        return self.difference < 0 and self.p_value <= alpha


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

    Beating means a higher accuracy on the same rows with p <= alpha, two-sided. All tests must succeed, so
    that several of them do not raise the chance of a false promotion (intersection-union test, Berger 1982).
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
    """Paired comparison of accuracy: exact McNemar test and bootstrap interval of the difference.

    Raises ValueError where the two did not answer the same rows, or none.
    """
    if faults := [*_unfit("the candidate", candidate), *_incomparable(other.contestant, candidate, other)]:
        raise ValueError("; ".join(faults))
    ours, theirs = candidate.correct, other.correct
    rows, wins, losses = len(ours), int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    low, high = difference_interval(rows, wins, losses, confidence=confidence, resamples=resamples, seed=seed)
    return Comparison(
        rows=rows,
        accuracy=float(ours.mean()),
        other=float(theirs.mean()),
        wins=wins,
        losses=losses,
        difference=(wins - losses) / rows,
        low=low,
        high=high,
        confidence=confidence,
        p_value=mcnemar(wins, losses),
        detectable=detectable(rows, wins + losses, alpha=1 - confidence),
    )


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p of equal accuracy: discordant pairs fall either way like a fair coin (McNemar 1947).

    The exact binomial form; without a discordant pair, 1.
    """
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def difference_interval(
    rows: int, wins: int, losses: int, *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of (wins - losses) / rows over rows drawn with replacement, in pairs.

    A drawn row is a win, a loss or neither, so a resample's counts are one multinomial draw: the same law as
    drawing rows one by one (Efron & Tibshirani 1993, chapter 13).
    """
    shares = np.array([wins, losses, rows - wins - losses]) / rows
    counts = np.random.default_rng(seed).multinomial(rows, shares, size=resamples)  # (resamples, 3)
    differences = (counts[:, 0] - counts[:, 1]) / rows
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return float(low), float(high)


def detectable(rows: int, discordant: int, *, alpha: float, power: float = 0.8) -> float:
    """Smallest difference d of accuracy that a paired test at `alpha` finds with probability `power`.

    Connor 1987 (Biometrics 43:207): rows = (z_a sqrt(q) + z_b sqrt(q - d^2))^2 / d^2 with q the share of
    discordant pairs, here the observed one (at least one pair); solved for d. An approximation.
    """
    share = max(discordant, 1) / rows
    z_a, z_b = norm.isf(alpha / 2), norm.isf(1 - power)
    root = sqrt(max(rows + z_b**2 - z_a**2, 0.0))
    return float(min(1.0, sqrt(share) * (z_a * sqrt(rows) + z_b * root) / (rows + z_b**2)))


def sentence(name: str, found: Comparison) -> str:
    """A comparison in words and numbers: accuracy 0.871 < champion 0.884 on the same 2,000 rows, …"""
    sign = ">" if found.difference > 0 else "<" if found.difference < 0 else "="
    return (
        f"accuracy {found.accuracy:.3f} {sign} {name} {found.other:.3f} on the same {found.rows:,} rows, "
        f"paired {100 * found.confidence:g} % interval [{found.low:+.3f}, {found.high:+.3f}], "
        f"{p_text(found.p_value)}"
    )


def p_text(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _judge(comparisons: Mapping[str, Comparison], *, alpha: float) -> Verdict:
    figures = {
        f"{name}.{key}": float(v) for name, found in comparisons.items() for key, v in asdict(found).items()
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
        f"differences from about {found.detectable:.3f}"
    )


def _unfit(name: str, answers: Predictions) -> Iterator[str]:
    rows = len(answers.ids)
    if rows == 0:
        yield f"{name} has no test rows"
        return
    if len(set(answers.ids)) != rows:
        yield f"{name} answers {rows - len(set(answers.ids)):,} of its {rows:,} test rows twice"
    if answers.labels.shape != (rows,) or answers.probabilities.shape[:1] != (rows,):
        sizes = f"{len(answers.labels):,} labels and {len(answers.probabilities):,} answers"
        yield f"{name} has {rows:,} ids, {sizes}"
    elif bad := _not_probabilities(answers.probabilities):
        yield (
            f"{name}: {bad:,} of {rows:,} rows are no probabilities "
            "(not numbers, below 0, or a sum other than 1)"
        )


def _not_probabilities(values: Probabilities) -> int:
    fit = (values >= 0).all(axis=1) & np.isclose(values.sum(axis=1), 1, atol=1e-3)  # NaN is neither
    return int((~fit).sum())


def _incomparable(name: str, candidate: Predictions, rival: Predictions) -> Iterator[str]:
    yield from _unfit(name, rival)
    if candidate.ids != rival.ids:
        shared = len(set(candidate.ids) & set(rival.ids))
        yield (
            f"{name} was evaluated on other test rows: {len(rival.ids):,} against the candidate's "
            f"{len(candidate.ids):,}, {shared:,} shared; evaluate both on the same rows in the same order"
        )
    elif candidate.probabilities.shape[1:] != rival.probabilities.shape[1:]:
        theirs, ours = rival.probabilities.shape[1:], candidate.probabilities.shape[1:]
        yield f"{name} knows {theirs[0]} classes, the candidate {ours[0]}"
    elif not np.array_equal(candidate.labels, rival.labels):
        differ = int((candidate.labels != rival.labels).sum())
        yield f"{name} was evaluated against other labels: {differ:,} of {len(rival.ids):,} rows differ"
