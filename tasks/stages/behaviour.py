"""evaluation's behavioural tests: the model is asked about texts that params name, or change."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import polars as pl
from transformers import AutoTokenizer

from tasks import files
from tasks.errors import ParamsError, did_you_mean
from tasks.evaluation import behaviour
from tasks.evaluation.asking import predict
from tasks.evaluation.behaviour import Asked, Checked, Reader, Sureness, Texts
from tasks.evaluation.perturbations import NAMES
from tasks.evaluation.predictions import Array, Predictions, Text
from tasks.model import floors
from tasks.params import BehaviourParams, Direction, EvaluationParams, Expected
from tasks.stages import contest, upstream
from tasks.stages.upstream import Entered
from tasks.text.kinds import KINDS

NAME = "behaviour.json"


def demand_fitting(settings: BehaviourParams, kind: str, labels: Sequence[str]) -> None:
    """Raises ParamsError that lists every test that rows of this kind, with these labels, cannot have."""
    if faults := list(_faults(settings, kind, labels)):
        raise ParamsError("\n".join(faults))


def check(
    settings: EvaluationParams, entered: Entered, model: Predictions, rows: pl.DataFrame, device: str
) -> list[Checked]:
    """Every behavioural test; none for rows of other kinds. model: its answers to `rows`, the test rows as
    preparation wrote them."""
    wanted, kind, labels = settings.behaviour, entered.encoded.kind, entered.encoded.labels
    if kind not in behaviour.KINDS or not (wanted.perturbations or wanted.direction or wanted.expected):
        return []
    texts = list(zip(*(rows[name].to_list() for name in KINDS[kind].compared), strict=True))
    whole = Asked(texts, model, labels, upstream.groups(rows))
    asked = behaviour.sample(whole, rows=wanted.rows, seed=settings.seed)
    reader = _reader(entered, device)
    sureness = Sureness(settings.confidence, settings.resamples, settings.seed)
    found = [
        behaviour.invariance(asked, name, reader, names=wanted.names or NAMES, sureness=sureness)
        for name in wanted.perturbations
    ]
    found += [
        behaviour.direction(asked, one.append, one.label, reader, tolerance=one.tolerance, sureness=sureness)
        for one in wanted.direction
    ]
    if wanted.expected:
        known = [
            ((one.text, one.pair) if one.pair is not None else (one.text,), one.label)
            for one in wanted.expected
        ]
        found.append(behaviour.functionality(known, labels, kind, reader, sureness=sureness))
    return found


def write(draft: Path, found: Sequence[Checked]) -> None:
    files.write_text(draft / NAME, files.canonical_json([asdict(one) for one in found]))


def values(found: Sequence[Checked]) -> dict[str, float]:
    """Share that passed of each test that had rows, for tracking and `dvc metrics diff`."""
    return {
        key: one.passed.value for key, one in zip(behaviour.keys(found), found, strict=True) if one.passed
    }


def _faults(settings: BehaviourParams, kind: str, labels: Sequence[str]) -> Iterator[str]:
    tests: dict[str, Sequence[Direction | Expected]] = {
        "direction": settings.direction,
        "expected": settings.expected,
    }
    for name, entries in tests.items():
        if entries and kind not in behaviour.KINDS:
            fit = ", ".join(behaviour.KINDS)
            yield f"evaluation.behaviour.{name}: only for rows of kind {fit}, not {kind}"
            continue
        for place, entry in enumerate(entries):
            if entry.label not in labels:
                near = did_you_mean(entry.label, labels)
                yield f"evaluation.behaviour.{name}.{place}: no row has the label {entry.label!r}; {near}"
    for place, one in enumerate(settings.expected):
        if (one.pair is not None) != (kind == "pair"):
            told = "needs a pair" if kind == "pair" else f"has a pair, but rows are of kind {kind}"
            yield f"evaluation.behaviour.expected.{place} {told}"


def _reader(entered: Entered, device: str) -> Reader:
    directory, encoded = entered.trained.path / "model", entered.encoded
    model = floors.load(directory, device=device)
    tokenizer = AutoTokenizer.from_pretrained(directory, config=model.config, local_files_only=True)

    def answers(texts: Sequence[Texts]) -> Array:
        found: Array = predict.predict_texts(
            model,
            tokenizer,
            _plain(texts),
            kind=encoded.kind,
            batches=contest.batches(model),
            max_length=encoded.max_length,
        )
        return found

    def tokens(texts: Sequence[Texts]) -> Sequence[Sequence[int]]:
        found = predict.encode(tokenizer, _plain(texts), max_length=encoded.max_length)
        return found["input_ids"]

    return Reader(answers, tokens)


def _plain(texts: Sequence[Texts]) -> list[Text]:
    return [row if len(row) > 1 else row[0] for row in texts]
