"""How answers to rows of each kind are told: a line for a person, columns for a table. One entry a kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tasks.evaluation.deciding import Rule
from tasks.evaluation.predictions import Array

BETWEEN = ";"  # labels of one cell, unless sources.text.separator says otherwise
UNTAGGED = "?"  # a word behind encoding.max_length, or of no token
TEXT, NUMBER, FLAG = pa.string(), pa.float64(), pa.bool_()
Names = Sequence[str]
Columns = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class Telling:
    """How the answer to a text is told, given the label names: in a `line`, and in `cells` of a table under
    `columns`. `decided`: answers under the rule. `between` stands between the values of a cell of text."""

    line: Callable[[Any, Names, Rule, str], str]
    columns: Callable[[Names, Rule], Columns]
    cells: Callable[[Any, Names, Rule], list[Any]]
    decided: Callable[[Array, Rule], Array] = lambda answers, rule: answers
    between: str | None = None


def _most_likely(shares: Any, names: Names) -> tuple[str, float]:
    best = int(shares.argmax())
    return names[best], float(shares[best])


def _one_line(shares: Any, names: Names, rule: Rule, text: str) -> str:
    label, probability = _most_likely(shares, names)
    if probability < rule.abstain_below:
        least = f"an answer needs {rule.abstain_below:.3f}"
        return f"no answer (the likeliest is {label}, {probability:.3f}; {least})"
    return f"{label} ({probability:.3f})"


def _one_columns(names: Names, rule: Rule) -> Columns:
    return {"prediction": TEXT, "probability": NUMBER} | ({"abstained": FLAG} if rule.abstains else {})


def _one_cells(shares: Any, names: Names, rule: Rule) -> list[Any]:
    label, probability = _most_likely(shares, names)
    abstained = probability < rule.abstain_below
    found = [None if abstained else label, round(probability, 6)]
    return [*found, abstained] if rule.abstains else found


def _many_line(shares: Any, names: Names, rule: Rule, text: str) -> str:
    """The labels that hold, the likeliest first; where none does, the likeliest in brackets."""
    ranked = sorted(zip(names, shares.tolist(), rule.holds(shares), strict=True), key=lambda one: -one[1])
    held = [f"{name} ({share:.3f})" for name, share, holds in ranked if holds]
    return ", ".join(held) or f"no label (the likeliest is {ranked[0][0]}, {ranked[0][1]:.3f})"


def _many_cells(shares: Any, names: Names, rule: Rule) -> list[Any]:
    held = [name for name, holds in zip(names, rule.holds(shares), strict=True) if holds]
    return [held, *(round(float(share), 6) for share in shares)]


def _many_columns(names: Names, rule: Rule) -> Columns:
    return {"prediction": pa.list_(TEXT)} | {f"probability of {name}": NUMBER for name in names}


def _tag(number: int, names: Names) -> str:
    return names[number] if number >= 0 else UNTAGGED


ONE = Telling(_one_line, _one_columns, _one_cells, lambda answers, rule: rule.scaled(answers))
CONTINUED = Telling(
    lambda said, names, rule, text: str(said),
    lambda names, rule: {"prediction": TEXT},
    lambda said, names, rule: [str(said)],
)
TELLINGS: Mapping[str, Telling] = {
    "text": CONTINUED,
    "completion": CONTINUED,
    "chat": CONTINUED,
    "label": ONE,
    "pair": ONE,
    "labels": Telling(_many_line, _many_columns, _many_cells),
    "score": Telling(
        lambda score, names, rule, text: f"{score:.6g}",
        lambda names, rule: {"prediction": NUMBER},
        lambda score, names, rule: [float(f"{score:.6g}")],
    ),
    "tags": Telling(
        lambda tags, names, rule, text: " ".join(
            f"{word}/{_tag(tag, names)}" for word, tag in zip(text.split(), tags, strict=True)
        ),
        lambda names, rule: {"prediction": pa.list_(TEXT)},
        lambda tags, names, rule: [[_tag(tag, names) for tag in tags]],
        between=" ",
    ),
}
