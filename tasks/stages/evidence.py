"""What the gate is shown: answers of candidate and champion to the same rows, slices, proofs, speed, size."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts import ConvertedCheckpoint, Evaluation, PreparedText, TrainedModel
from tasks.errors import ArtifactError, InputError, RegraftError
from tasks.evaluation import predictions, slices
from tasks.evaluation.asking import sequences
from tasks.evaluation.gate.checks import CHAMPION, Evidence
from tasks.evaluation.predictions import HEAD, MODEL, Predictions, Text
from tasks.params import Params
from tasks.stages.champion import Champion, prepared_texts
from tasks.tracking.registry import Registry, Version

TIMED = 256  # texts that are answered to measure the time
TURNS = 3


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
        named = self.params.promotion.gate.must_beat
        return tuple(name for name in self.answers if name not in (MODEL, HEAD)) if named == "auto" else named


def open_case(params: Params, root: Path) -> Case:
    """Raises ArtifactError where what evaluation left is not about this model or these rows."""
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


def gather(case: Case, candidate: Version, champion: Version | None) -> Evidence:
    """What cannot be had is left out, with its reason; the candidate counts as judged from now on."""
    known: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for name, look in _looks(case, candidate, champion).items():
        try:
            known[name] = look()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is promoted that is not known
            faults[name] = told(error)
    return Evidence(
        candidate=case.answers[MODEL],
        baselines={name: found for name, found in case.answers.items() if name != MODEL},
        labels=case.evaluation.labels,
        size=sum(path.stat().st_size for path in (case.trained.path / "model").rglob("*") if path.is_file()),
        judgements=case.registry.judged(candidate, test=case.evaluation.test),
        faults=faults,
        **known,
    )


def _looks(case: Case, candidate: Version, champion: Version | None) -> dict[str, Callable[[], Any]]:
    """Field of the evidence -> how it is had: only of what the gate asks for."""
    gate = case.params.promotion.gate
    looks: dict[str, Callable[[], Any]] = {
        "groups": partial(_groups, case),
        "proofs": partial(_proofs, case),
    }
    if gate.maximum_ece is not None:
        looks["ece"] = partial(_ece, case.evaluation)
    if champion is None:
        return looks
    looks[CHAMPION] = partial(_champions_answers, case, champion)
    if gate.slices is not None:
        path = case.evaluation.path / "slices.parquet"
        looks["slices"] = partial(slices.read, path, case.answers[MODEL].ids)
    if gate.maximum_latency_ratio is not None:
        looks["latency_ratio"] = partial(_latency_ratio, case, candidate, champion)
    return looks


def told(error: Exception) -> str:
    """Our sentences need no name of a class before them."""
    known = isinstance(error, RegraftError | OSError | ValueError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _groups(case: Case) -> NDArray[np.int64] | None:
    from tasks.stages import upstream  # torch, seconds, which a verdict that stands does not need

    return upstream.groups_of(PreparedText.load(case.root), case.answers[MODEL].ids)


def _proofs(case: Case) -> Mapping[str, str]:
    """What conversion proved of the checkpoint that the candidate learned from."""
    converted = ConvertedCheckpoint.load(case.root)
    if converted.digest != case.trained.base:
        raise ArtifactError(
            f"{converted.path} is not the checkpoint that the model was trained from: run `dvc repro`"
        )
    return converted.proofs


def _ece(evaluation: Evaluation) -> float:
    """At the temperature that the model is served with."""
    if "after" not in evaluation.calibration:
        raise ArtifactError(
            f"{evaluation.path} tells no calibration error: rows whose answers are no probabilities have none"
        )
    return float(evaluation.calibration["after"]["ece"]["value"])


def _champions_answers(case: Case, version: Version) -> Predictions:
    """To the candidate's test rows, kept or made now; in the order of the candidate's labels."""
    champion = Champion(case.registry, version, case.params.finetuning.device)
    try:
        answers = _kept(case, champion) or _asked(case, champion)
    except Exception as error:  # also memory that is out, a model that other hands have made
        raise ArtifactError(
            f"champion version {version.number} cannot be asked about these test rows: {told(error)}"
        ) from error
    return replace(answers, contestant=CHAMPION)


def _kept(case: Case, champion: Champion) -> Predictions | None:
    """What it answered to the same test rows before, if it knows the same labels in the same order."""
    test = case.evaluation.test
    kept = case.registry.keeps_predictions(champion.version, test=test)
    if not kept or champion.labels != case.evaluation.labels:
        return None
    with tempfile.TemporaryDirectory() as folder:
        found = case.registry.predictions(champion.version, Path(folder), test=test)
        return predictions.read(found)[MODEL] if found else None


def _asked(case: Case, champion: Champion) -> Predictions:
    with _device(case):
        answers = champion.answers_to_test(case.answers[MODEL], case.evaluation.labels, root=case.root)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        predictions.write(path, [answers])
        case.registry.keep_predictions(champion.version, path, test=case.evaluation.test)
    return answers


def _latency_ratio(case: Case, candidate: Version, champion: Version) -> float:
    """Candidate and champion answer the same texts in turn; the first turn warms up and does not count."""
    if case.answers[MODEL].kind in sequences.STARTS:
        raise InputError("the time to go on with a text depends on what is said: it is not compared")
    device = case.params.finetuning.device
    texts = prepared_texts(case.root, case.answers[MODEL].ids[:TIMED])
    both = [Champion(case.registry, version, device) for version in (candidate, champion)]
    with _device(case):
        turns = [[_seconds(one, texts) for one in both] for _ in range(TURNS + 1)]
    return median(ours / theirs for ours, theirs in turns[1:])


def _device(case: Case) -> AbstractContextManager[tuple[str, ...]]:
    from tasks.training import device  # late: a plain promotion needs no torch

    return device.taken(case.params.finetuning.device, patience=device.PATIENCE)


def _seconds(asked: Champion, texts: Sequence[Text]) -> float:
    begun = time.perf_counter()
    asked.answers(texts)
    return time.perf_counter() - begun
