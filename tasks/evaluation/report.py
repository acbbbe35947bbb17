"""The evaluation as one page of HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from tasks import pages
from tasks.evaluation import confusions, judging
from tasks.evaluation.behaviour import Checked
from tasks.evaluation.decisions import NEVER
from tasks.evaluation.exhibits import EXHIBITS, Classes, cut
from tasks.evaluation.figures.metrics import Interval
from tasks.evaluation.gate.checks import decimal, p_text, sentence
from tasks.evaluation.gate.pairing import Comparison
from tasks.evaluation.k_shot import Found
from tasks.evaluation.pictures import INK, Picture
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.routing import Routes
from tasks.evaluation.slices import Measured
from tasks.evaluation.trust import Trust


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the page says, as plain values."""

    labels: Sequence[str]
    figures: Mapping[str, Mapping[str, Interval]]  # contestant -> metric -> value with interval
    descriptions: Mapping[str, str]  # contestant -> what it is
    comparisons: Mapping[str, Comparison]  # contestant -> the model against it
    confidence: float
    answers: Predictions  # the model's
    texts: Mapping[str, str]  # row id -> text
    pictures: Sequence[Picture]
    sources: Mapping[str, str]  # term -> path and licence
    rows: Mapping[str, int]  # split -> rows used
    subset: Mapping[str, int | None]  # split -> declared limit
    test: str  # digest of the test rows
    groups: int  # of near-duplicates among the test rows; as many as rows where there are none
    slices: Sequence[Measured]
    smallest: int  # rows below which a slice is no evidence
    trust: Trust | None
    wanted: float | None  # accuracy that answered rows must reach
    classes: Classes | None = None
    behaviour: Sequence[Checked] = ()
    prompting: Found | None = None  # among what k_shot chose
    routes: Routes | None = None  # of a mixture of experts


def render(facts: Facts) -> str:
    """The page. Every text is escaped; the pictures alone are taken as they are."""
    alpha = 1 - facts.confidence
    one_label = facts.answers.kind in confusions.KINDS
    judged, exhibit = judging.find(facts.answers.kind), EXHIBITS[facts.answers.kind]
    return pages.render(
        Path(__file__).with_name("report.jinja"),
        facts=facts,
        alpha=alpha,
        confidence=f"{100 * facts.confidence:g} %",
        rows=len(facts.answers.ids),
        headline=headline(facts.comparisons, alpha=alpha),
        metrics={n: judged.metrics[n].higher_is_better for n in next(iter(facts.figures.values()))},
        judged=judged,
        worst=exhibit.worst(facts.answers, facts.texts, facts.labels),
        subset=subset_sentence(facts.subset),
        decision=decision_sentence(facts),
        confused=confusions.pairs(facts.answers) if one_label else [],
        suspects=confusions.suspects(facts.answers) if one_label else [],
        shown=confusions.SUSPECTS,
        failures=[(test.name, failure) for test in facts.behaviour for failure in test.worst],
        cut=cut,
        sliced=next((list(found.figures) for found in facts.slices if found.figures), []),
        p_text=p_text,
        decimal=decimal,
        inline=_inline,
    )


def headline(comparisons: Mapping[str, Comparison], *, alpha: float) -> list[str]:
    """What the evaluation comes to, in sentences: first what the model beats, then all that it does not."""
    beaten = [name for name, found in comparisons.items() if found.better(alpha)]
    rest = [name for name in comparisons if name not in beaten]
    first = (
        [f"The fine-tuned model beats {_and(beaten)} by a paired test at p ≤ {alpha:g}."] if beaten else []
    )
    hardest = min(comparisons, key=lambda name: comparisons[name].difference, default=None)
    if hardest is not None and not rest:
        return [*first, f"The nearest is {hardest}: {sentence(hardest, comparisons[hardest])}."]
    return first + [_without_gain(name, comparisons[name], alpha) for name in rest]


def subset_sentence(subset: Mapping[str, int | None]) -> str:
    """Whether the figures stand for all of the data or for a declared part of it."""
    limits = [f"{count:,} {split}" for split, count in subset.items() if count is not None]
    if not limits:
        return "All rows that preparation kept were used."
    return f"These figures come from a declared subset: at most {_and(limits)} rows, chosen by hash."


def decision_sentence(facts: Facts) -> str:
    """What was chosen on validation rows, and what it comes to on the test rows; empty where nothing was."""
    if facts.trust is None:
        return ""
    decision, decided = facts.trust.decision, facts.trust.decided
    if decision.thresholds:
        limits = (f"{n} {decimal(t)}" for n, t in zip(facts.labels, decision.thresholds, strict=True))
        return f"A label holds from these probabilities on: {', '.join(limits)}."
    if decision.abstain_below is None:
        return "Every row is answered (evaluation.abstain)."
    told = f"Rows below a confidence of {decimal(decision.abstain_below)} are not answered: "
    if decision.abstain_below == NEVER:
        return told + f"no smaller one gives an accuracy of {facts.wanted} on validation rows."
    coverage, accuracy = decided["coverage"], decided["accuracy"]
    return (
        f"{told}above it, validation rows reach an accuracy of {facts.wanted}. Of the test rows "
        f"{100 * coverage.value:.1f} % are answered, with an accuracy of {decimal(accuracy.value)} "
        f"({decimal(accuracy.low)} to {decimal(accuracy.high)})."
    )


def _without_gain(name: str, found: Comparison, alpha: float) -> str:
    if found.worse(alpha):
        return f"It is worse than {name}: {sentence(name, found)}."
    return f"It brings no measurable gain over {name}: {sentence(name, found)}."


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _inline(svg: str) -> Markup:
    """A picture that follows the page's text colour; matplotlib has escaped its texts."""
    return Markup(svg.replace(INK, "currentColor"))
