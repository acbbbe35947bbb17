"""evaluation: what the fine-tuned model is worth on test rows, against what needs less work."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tasks import files
from tasks.artifacts import SPLITS, Evaluation
from tasks.errors import ArtifactError, ParamsError
from tasks.evaluation import (
    baselines,
    card,
    confusions,
    judging,
    k_shot,
    pictures,
    predictions,
    report,
    routing,
    slices,
    trust,
)
from tasks.evaluation.behaviour import Checked
from tasks.evaluation.exhibits import EXHIBITS, MEASURES
from tasks.evaluation.figures.metrics import Interval
from tasks.evaluation.pictures import Picture
from tasks.evaluation.predictions import HEAD, MODEL, Array, Predictions
from tasks.evaluation.slices import Measured, Slice
from tasks.evaluation.trust import Trust
from tasks.params import EvaluationParams, Params
from tasks.stages import Track, behaviour, contest, judgement, origins, prompting, upstream
from tasks.stages.contest import Answers, Contest
from tasks.stages.judgement import Judged
from tasks.stages.prompting import Prompting
from tasks.stages.upstream import Entered
from tasks.training import device

RELIABILITY = ("confidence", "accuracy", "rows")
TIMINGS = "evaluation-timings.json"
ROUTING = "routing.csv"  # of a mixture alone
DESCRIPTIONS = {
    HEAD: "the new head trained, everything below it frozen",
    MODEL: "fine-tuned, phase by phase",
}


def run(params: Params, root: Path, track: Track) -> Evaluation:
    settings, kind = params.evaluation, params.sources.text.kind
    measured = judging.find(kind).chosen(settings.metrics)
    contestants = baselines.chosen(kind, settings.baselines)
    _demand_fitting(settings, kind)
    entered = Entered.load(root)
    entered.demand_one_kind(kind)
    prompting.demand(contestants, entered.converted)
    behaviour.demand_fitting(settings.behaviour, kind, entered.encoded.labels)
    splits = {split: entered.read(split) for split in SPLITS}
    rows, labels = upstream.table(entered.prepared, splits["test"]), entered.encoded.labels
    kept = params.sources.text.keep
    parts = slices.cut(rows, labels, settings.slices, kept)  # before any work: an expression may be wrong
    with device.taken(params.finetuning.device, patience=device.PATIENCE) as (where,):
        words = Prompting(settings, entered, splits, where) if k_shot.NAME in contestants else None
        asked = Contest(kind, contestants, labels, where, upstream.writer(entered), words)
        answers = contest.hold(asked, entered, splits)
        checked = behaviour.check(settings, entered, answers.test[MODEL], rows, where)
    judged = judgement.judge(answers, measured, labels, parts, rows, settings)
    texts = dict(zip(splits["test"].rows.ids, splits["test"].texts, strict=True))
    page = _page(params, entered, answers, judged, texts, checked)
    described = card.render(page, origins.find(params, entered, page.test))
    _write(root, entered, answers, judged, parts, checked, described)
    files.write_text(root / "reports" / "evaluation.html", report.render(page))
    _tell(track, judged, answers, root, checked)
    return Evaluation.load(root)


def _demand_fitting(settings: EvaluationParams, kind: str) -> None:
    """Raises ParamsError for a decision that rows of this kind do not know."""
    faults = []
    if settings.abstain and kind not in ("label", "pair"):
        faults.append(f"evaluation.abstain: only rows of kind label and pair have a confidence, not {kind}")
    if settings.threshold != "half" and kind != "labels":
        faults.append(f"evaluation.threshold: only rows of kind labels have thresholds, not {kind}")
    if faults:
        raise ParamsError("\n".join(faults))


def _write(
    root: Path,
    entered: Entered,
    answers: Answers,
    judged: Judged,
    parts: Sequence[Slice],
    checked: Sequence[Checked],
    described: str,
) -> None:
    model = answers.test[MODEL]
    with files.replace_directory(Evaluation.folder(root)) as draft:
        predictions.write(draft / "predictions.parquet", list(answers.test.values()))
        if answers.validation:
            predictions.write(draft / "validation.parquet", [answers.validation])
        slices.write(draft / "slices.parquet", model.ids, {one.name: one.mask for one in parts})
        behaviour.write(draft, checked)
        if answers.prompting:
            files.write_text(draft / "prompting.json", files.canonical_json(answers.prompting.record()))
        files.write_text(draft / "README.md", described)
        _write_plots(draft, model, judged, entered.encoded.labels)
        Evaluation.save(
            draft,
            model=entered.trained.digest,
            test=predictions.digest_rows(model.ids, model.actual),
            labels=entered.encoded.labels,
            rows=len(model.ids),
            metrics={c: _plain(found) for c, found in judged.figures.items()},
            comparisons={name: asdict(found) for name, found in judged.comparisons.items()},
            slices={one.name: _slice(one) for one in judged.slices},
            **_trusted(judged.trust),
        )
    files.write_text(root / "reports" / "metrics.json", files.canonical_json(_values(judged, checked)))
    took = _timings(answers)
    files.write_text(root / "reports" / TIMINGS, files.canonical_json(took))


def _plain(figures: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(found) for name, found in figures.items()}


def _slice(found: Measured) -> dict[str, Any]:
    return {"told": found.told, "rows": found.rows, "metrics": _plain(found.figures)}


def _trusted(found: Trust | None) -> dict[str, Any]:
    if found is None:
        return {"calibration": {}, "decision": {}, "decided": {}}
    before, after = _plain(found.before), _plain(found.after)
    return {
        "calibration": {"rows": found.rows, "before": before, "after": after},
        "decision": asdict(found.decision),
        "decided": _plain(found.decided),
    }


def _values(judged: Judged, checked: Sequence[Checked]) -> dict[str, dict[str, Any]]:
    """For `dvc metrics diff`: contestants, and what else is told of the model."""
    values: dict[str, dict[str, Any]] = {name: _bare(found) for name, found in judged.figures.items()}
    values["slices"] = {one.name: _bare(one.figures) for one in judged.slices if one.figures}
    if found := judged.trust:
        values["calibration"] = {"temperature": found.decision.temperature, **_bare(found.after)}
        values["decision"] = _bare(found.decided)
    values["behaviour"] = behaviour.values(checked)
    if judged.routes:
        values["routing"] = judged.routes.values
    return values


def _bare(figures: Mapping[str, Interval]) -> dict[str, float]:
    return {name: found.value for name, found in figures.items()}


def _timings(answers: Answers) -> dict[str, dict[str, float]]:
    """They depend on the machine, and are kept out of everything that has a digest."""
    rows = len(answers.test[MODEL].ids)
    return {
        name: {"seconds": seconds, "rows_per_second": rows / max(seconds, 1e-9)}
        for name, seconds in answers.seconds.items()
    }


def _write_plots(draft: Path, model: Predictions, judged: Judged, labels: Sequence[str]) -> None:
    """For DVC's plots; without a row where rows of this kind have nothing to draw."""
    pairs, found = EXHIBITS[model.kind].pairs, judged.trust
    classes = [
        (f"{name}: {measure}", name, measure, rows, one.value, one.low, one.high)
        for name, rows, figures in judged.classes or ()
        for measure, one in zip(MEASURES, figures, strict=True)
    ]
    header = ("figure", "class", "measure", "rows", "value", "low", "high")
    _write_table(draft / "classes.csv", header, classes)
    _write_table(draft / "confusion.csv", ("actual", "predicted"), pairs(model, labels) if pairs else ())
    _write_table(draft / "suspects.csv", confusions.COLUMNS, confusions.lines(model, labels))
    bins = trust.reliability(model, found) if found else {}
    lines = [
        (when, *line)
        for when, table in bins.items()
        for line in zip(*(table[name].tolist() for name in RELIABILITY), strict=True)
    ]
    _write_table(draft / "reliability.csv", ("when", *RELIABILITY), lines)
    curve = trust.curve(model, found) if found else ((), ())
    _write_table(draft / "coverage.csv", ("coverage", "accuracy"), zip(*curve, strict=True))
    if judged.routes:
        _write_table(draft / ROUTING, routing.COLUMNS, judged.routes.lines())


def _write_table(target: Path, header: Sequence[str], lines: Iterable[Iterable[Any]]) -> None:
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)


def _page(
    params: Params,
    entered: Entered,
    answers: Answers,
    judged: Judged,
    texts: Mapping[str, str],
    checked: Sequence[Checked],
) -> report.Facts:
    settings, labels = params.evaluation, entered.encoded.labels
    contestants = baselines.chosen(answers.test[MODEL].kind, settings.baselines)
    return report.Facts(
        labels=labels,
        figures=judged.figures,
        descriptions={name: found.description for name, found in contestants.items()} | DESCRIPTIONS,
        comparisons=judged.comparisons,
        confidence=settings.confidence,
        answers=answers.test[MODEL],
        texts=texts,
        pictures=_pictures(answers.test, judged, labels, entered.trained.path, settings.confidence),
        classes=judged.classes,
        sources=origins.terms(params, entered),
        rows={split: entered.encoded.rows[split] for split in SPLITS},
        subset=params.preparation.subset.model_dump(),
        test=predictions.digest_rows(answers.test[MODEL].ids, answers.test[MODEL].actual),
        groups=judged.groups,
        slices=judged.slices,
        smallest=settings.smallest_slice,
        trust=judged.trust,
        wanted=settings.abstain.accuracy if settings.abstain else None,
        behaviour=checked,
        prompting=answers.prompting,
        routes=judged.routes,
    )


def _pictures(
    answers: Mapping[str, Predictions],
    judged: Judged,
    labels: Sequence[str],
    trained: Path,
    confidence: float,
) -> list[Picture]:
    losses, phases = _losses(trained / "steps.csv")
    figures, model = judged.figures, answers[MODEL]
    return [
        Picture(
            "Contestants",
            "Dots are test figures, bars their intervals.",
            pictures.contestants(figures),
            wide=True,
        ),
        Picture(
            "Learning curve",
            "Each optimizer step and its running mean.",
            pictures.learning_curve(losses, phases),
        ),
        *_changes(trained / "changes.svg"),
        *([judged.classes.picture(confidence)] if judged.classes else ()),
        *EXHIBITS[model.kind].pictures(answers, labels),
        *(trust.pictures(model, judged.trust) if judged.trust else ()),
        *(judged.routes.pictures() if judged.routes else ()),
    ]


def _changes(drawn: Path) -> Iterator[Picture]:
    """Of a training that drew them."""
    if drawn.exists():
        told = "How far each floor moved from where it began, of its size; hatched where it was frozen."
        yield Picture("Changes of the floors", told, drawn.read_text(encoding="utf-8"))


def _losses(steps: Path) -> tuple[Array, list[str]]:
    """Loss (steps,) and phase of every optimizer step. Raises ArtifactError where there is none."""
    with steps.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ArtifactError(f"{steps} has no steps: run `dvc repro -f finetuning`")
    return np.array([float(row["loss"]) for row in rows]), [row["phase"] for row in rows]


def _tell(track: Track, judged: Judged, answers: Answers, root: Path, checked: Sequence[Checked]) -> None:
    values = {name: _bare(found) for name, found in judged.figures.items()}
    named = {f"test.{c}.{m}": v for c, found in values.items() if c != MODEL for m, v in found.items()}
    named |= {f"test.{m}": v for m, v in values[MODEL].items()}
    for one in judged.slices:
        named |= {f"slice.{one.name}.{m}": v for m, v in _bare(one.figures).items()}
    if found := judged.trust:
        named |= {f"calibrated.{m}": v for m, v in _bare(found.after).items()}
        named |= {f"decided.{m}": v for m, v in _bare(found.decided).items()}
    named |= {f"behaviour.{name}": share for name, share in behaviour.values(checked).items()}
    if judged.routes:
        named |= {f"routing.{name}": value for name, value in judged.routes.values.items()}
        track.file(Evaluation.folder(root) / ROUTING)
    for name, took in _timings(answers).items():
        named |= {f"evaluation.{name}.{figure}": value for figure, value in took.items()}
    track.metrics(named)
    for path in TOLD:
        track.file(root / path)


TOLD = (
    "reports/evaluation.html",
    "reports/metrics.json",
    "data/evaluation/classes.csv",
    "data/evaluation/confusion.csv",
    "data/evaluation/reliability.csv",
    "data/evaluation/coverage.csv",
    "data/evaluation/suspects.csv",
    "data/evaluation/README.md",
)
