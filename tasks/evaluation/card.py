"""The model card, in the Hugging Face Hub's form: what one must know who has the model and not the project.

Sections after Mitchell et al. 2019 (Model Cards for Model Reporting).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from tasks.evaluation.figures.metrics import Interval
from tasks.evaluation.gate.checks import decimal, sentence
from tasks.evaluation.predictions import MODEL
from tasks.evaluation.report import Facts, decision_sentence, subset_sentence

LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "gpl-3.0", "lgpl-3.0", "openrail", "unlicense",
)  # fmt: skip
HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
TASKS = {"tags": "token-classification", "text": "text-generation", "completion": "text-generation",
         "chat": "text-generation"}  # fmt: skip
LIMITS = (
    "The figures hold for rows like these test rows; for other texts, people or times measure anew.",
    "A behavioural test that passes shows that one change does no harm, not that none does.",
    "Duplicates are told by words: a paraphrase of a test row may be among the training rows.",
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the model was made of and by; digests: of what, in words -> digest. own: the name of its class,
    where that is none of transformers'."""

    base: str
    base_licence: str
    data: str
    data_licence: str
    languages: Sequence[str]
    phases: Sequence[Mapping[str, Any]]  # as fine-tuning's manifest has them
    proofs: Mapping[str, str]
    contamination: str
    forgetting: str | None
    digests: Mapping[str, str]
    own: str | None = None


def render(facts: Facts, origin: Origin) -> str:
    """The text of README.md: the same for the same facts."""
    about = _about(facts, origin)
    return str(ModelCard(f"---\n{about.to_yaml()}\n---\n\n" + "\n".join(_lines(facts, origin)))) + "\n"


def _about(facts: Facts, origin: Origin) -> ModelCardData:
    licence = origin.base_licence.lower()
    known = licence in LICENCES
    return ModelCardData(
        license=licence if known else "other",
        license_name=None if known else origin.base_licence,
        base_model=_name(origin.base),
        datasets=[_name(origin.data)],
        language=list(origin.languages) or None,
        metrics=list(facts.figures[MODEL]),
        library_name="mlflow" if origin.own else "transformers",
        pipeline_tag=TASKS.get(facts.answers.kind, "text-classification"),
        tags=["regraft"],
    )


def _name(path: str) -> str:
    """Without the folders of one machine."""
    return path if path.startswith("package:") or HUB.fullmatch(path) else Path(path).name


def _lines(facts: Facts, origin: Origin) -> Iterator[str]:
    base, data = _name(origin.base), _name(origin.data)
    yield f"# {base}, fine-tuned on {data}\n"
    told = f"{_listed(facts.labels)}. " if facts.labels else ""
    if origin.own:
        yield f"Of class {origin.own}: MLflow loads it, by code beside it; plain transformers does not."
    made = "regraft" if origin.own else "transformers"
    yield f"A {made} model of rows of kind `{facts.answers.kind}`. {'Labels: ' if told else ''}{told}"
    yield f"Base: {base}, licence {origin.base_licence}. Data: {data}, licence {origin.data_licence}.\n"
    yield "## Training\n"
    used = ", ".join(f"{split} {count:,}" for split, count in facts.rows.items())
    yield f"Rows: {used}. {subset_sentence(facts.subset)}\n"
    yield from _table(("phase", "learned", "steps", "parameters"), _phases(origin.phases))
    yield "## Figures\n"
    rows, share = len(facts.answers.ids), f"{100 * facts.confidence:g} %"
    yield f"On {rows:,} test rows, each with its {share} bootstrap interval.\n"
    metrics = list(facts.figures[MODEL])
    yield from _table(
        ("", *metrics),
        [(name, *(_interval(found[one]) for one in metrics)) for name, found in facts.figures.items()],
    )
    yield from (f"- {sentence(name, found)}" for name, found in facts.comparisons.items())
    if decision := decision_sentence(facts):
        yield f"\n{decision}"
    yield from _parts(facts)
    yield "\n## Limits\n"
    yield from (f"- {limit}" for limit in LIMITS)
    yield f"- Contamination: {origin.contamination}."
    if origin.forgetting:
        yield f"- Forgetting: {origin.forgetting}."
    yield "\n## Where it comes from\n"
    yield from (f"- {what}: `{digest}`" for what, digest in origin.digests.items())
    yield from (f"- Conversion, {level}: {found}" for level, found in origin.proofs.items())


def _parts(facts: Facts) -> Iterator[str]:
    """Slices and behaviour, where there are any."""
    measured = [one for one in facts.slices if one.figures]
    if measured:
        yield "\n## Slices\n"
        names = list(measured[0].figures)
        lines = [(one.name, f"{one.rows:,}", *map(_interval, one.figures.values())) for one in measured]
        yield from _table(("slice", "rows", *names), lines)
    if facts.behaviour:
        yield "\n## Behaviour\n"
        tested = [(t.name, t.type, f"{t.rows:,}", _interval(t.passed)) for t in facts.behaviour if t.passed]
        yield from _table(("test", "type", "rows", "passed"), tested)


def _phases(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (one["name"], _listed(one["floors"]), f"{one['steps']:,}", f"{one['parameters']:,}") for one in phases
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _interval(found: Interval) -> str:
    return f"{decimal(found.value)} ({decimal(found.low)} – {decimal(found.high)})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
