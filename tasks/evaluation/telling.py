"""How answers to rows of each kind are told: a line for a person, columns for a table. One entry a kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tasks.evaluation import calibration, decisions
from tasks.evaluation.decisions import Decision
from tasks.evaluation.predictions import Array

BETWEEN = ";"  # labels of one cell, unless sources.text.separator says otherwise
UNTAGGED = "?"  # a word behind encoding.max_length, or of no token
TEXT, NUMBER, FLAG = pa.string(), pa.float64(), pa.bool_()
Names = Sequence[str]
Columns = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class Telling:
    """How the answer to a text is told, given the label names: in a `line`, and in `cells` of a table under
    `columns`. `between` stands between the values of a cell of text."""

    line: Callable[[Any, Names, Decision, str], str]
    columns: Callable[[Names, Decision], Columns]
    cells: Callable[[Any, Names, Decision], list[Any]]
    between: str | None = None


def tempered(answers: Array, kind: str, decision: Decision) -> Array:
    """Answers as they are told: probabilities at the decision's temperature."""
    if kind not in calibration.LINKS or decision.temperature == 1:
        return answers
    return calibration.tempered(answers, kind, decision.temperature)


def _most_likely(shares: Any, names: Names) -> tuple[str, float]:
    best = int(shares.argmax())
    return names[best], float(shares[best])


def _one_line(shares: Any, names: Names, decision: Decision, text: str) -> str:
    label, probability = _most_likely(shares, names)
    if decision.abstain_below is not None and probability < decision.abstain_below:
        least = f"an answer needs {decision.abstain_below:.3f}"
        return f"no answer (the likeliest is {label}, {probability:.3f}; {least})"
    return f"{label} ({probability:.3f})"


def _one_columns(names: Names, decision: Decision) -> Columns:
    told: Columns = {"prediction": TEXT, "probability": NUMBER}
    return told if decision.abstain_below is None else {**told, "abstained": FLAG}


def _one_cells(shares: Any, names: Names, decision: Decision) -> list[Any]:
    label, probability = _most_likely(shares, names)
    if decision.abstain_below is None:
        return [label, round(probability, 6)]
    abstained = probability < decision.abstain_below
    return [None if abstained else label, round(probability, 6), abstained]


def _held(shares: Any, decision: Decision) -> Any:
    thresholds = decision.thresholds or (decisions.HALF,) * len(shares)
    return decisions.held(shares, thresholds) > 0


def _many_line(shares: Any, names: Names, decision: Decision, text: str) -> str:
    """The labels that hold, the likeliest first; where none does, the likeliest in brackets."""
    ranked = sorted(
        zip(names, shares.tolist(), _held(shares, decision), strict=True), key=lambda one: -one[1]
    )
    held = [f"{name} ({share:.3f})" for name, share, holds in ranked if holds]
    return ", ".join(held) or f"no label (the likeliest is {ranked[0][0]}, {ranked[0][1]:.3f})"


def _many_cells(shares: Any, names: Names, decision: Decision) -> list[Any]:
    held = [name for name, holds in zip(names, _held(shares, decision), strict=True) if holds]
    return [held, *(round(float(share), 6) for share in shares)]


def _many_columns(names: Names, decision: Decision) -> Columns:
    return {"prediction": pa.list_(TEXT)} | {f"probability of {name}": NUMBER for name in names}


def _tag(number: int, names: Names) -> str:
    return names[number] if number >= 0 else UNTAGGED


ONE = Telling(_one_line, _one_columns, _one_cells)
CONTINUED = Telling(
    lambda said, names, decision, text: str(said),
    lambda names, decision: {"prediction": TEXT},
    lambda said, names, decision: [str(said)],
)
ANSWERED = Telling(lambda said, *_: str(said) or "no answer", CONTINUED.columns, CONTINUED.cells)
TELLINGS: Mapping[str, Telling] = {
    "answer": ANSWERED,
    "translation": CONTINUED,
    "prefix-remainder": CONTINUED,
    "text": CONTINUED,
    "completion": CONTINUED,
    "chat": CONTINUED,
    "label": ONE,
    "pair": ONE,
    "labels": Telling(_many_line, _many_columns, _many_cells),
    "score": Telling(
        lambda score, names, decision, text: f"{score:.6g}",
        lambda names, decision: {"prediction": NUMBER},
        lambda score, names, decision: [float(f"{score:.6g}")],
    ),
    "tags": Telling(
        lambda tags, names, decision, text: " ".join(
            f"{word}/{_tag(tag, names)}" for word, tag in zip(text.split(), tags, strict=True)
        ),
        lambda names, decision: {"prediction": pa.list_(TEXT)},
        lambda tags, names, decision: [[_tag(tag, names) for tag in tags]],
        between=" ",
    ),
}
