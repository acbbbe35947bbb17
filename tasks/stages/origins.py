"""evaluation's word on what the model comes from: data, checkpoint, licences, contamination, forgetting."""

import json
from collections.abc import Mapping
from typing import Any

from tasks import architectures
from tasks.evaluation.card import Origin
from tasks.params import Params
from tasks.stages.upstream import Entered

DRIFT = "drift.json"


def find(params: Params, entered: Entered, test: str) -> Origin:
    """For the model card. test: digest of the test rows."""
    text, checkpoint = params.sources.text, params.sources.checkpoint
    return Origin(
        base=checkpoint.path,
        base_licence=checkpoint.licence,
        data=text.path,
        data_licence=text.licence,
        languages=params.preparation.languages,
        phases=entered.trained.phases,
        proofs=entered.converted.proofs,
        contamination=contamination(entered.prepared.contaminated),
        forgetting=_forgotten(entered),
        digests={
            "Weights": entered.trained.weights,
            "Base, as it came": entered.converted.source,
            "Base, converted": entered.converted.digest,
            "Rows": entered.prepared.digest,
            "Test rows": test,
        },
        own=own if (own := entered.converted.architecture) in architectures.CLASSES else None,
    )


def terms(params: Params, entered: Entered) -> dict[str, str]:
    """For the page."""
    text, checkpoint = params.sources.text, params.sources.checkpoint
    told = {
        "Data": text.path,
        "Licence of the data": text.licence,
        "Checkpoint": checkpoint.path,
        "Licence of the checkpoint": checkpoint.licence,
        "Contamination": contamination(entered.prepared.contaminated),
    }
    forgotten = _forgotten(entered)
    return told if forgotten is None else {**told, "Forgetting": forgotten}


def contamination(found: Mapping[str, int]) -> str:
    """found: evaluation kept elsewhere -> its rows that the data held."""
    if not found:
        return "not looked for, because sources.evaluations names no evaluation kept elsewhere"
    parts = ", ".join(f"{count:,} of {name}" for name, count in found.items())
    return f"rows of evaluations kept elsewhere that the data held, and that left train: {parts}"


def forgetting(drift: Mapping[str, Any]) -> str:
    """drift: as fine-tuning wrote it, floors (name -> cka, cosine) and loss (before, after; or nothing)."""
    *_, last = drift["floors"]
    likeness = drift["floors"][last]
    told = (
        f"of a general text, what leaves {last} has a linear CKA of {likeness['cka']:.3f} with what left it "
        f"before training, and a cosine of {likeness['cosine']:.3f}; 1 is unchanged"
    )
    if not drift["loss"]:
        return told
    before, after = drift["loss"]["before"], drift["loss"]["after"]
    return f"{told}; its cross-entropy went from {before:.3f} to {after:.3f} nats a token"


def _forgotten(entered: Entered) -> str | None:
    """None of a model that was trained before drift was looked at."""
    path = entered.trained.path / DRIFT
    return forgetting(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
