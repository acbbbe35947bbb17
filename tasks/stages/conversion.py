"""conversion: a pretrained checkpoint and our labels in; a classifier whose every tensor is explained out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as compute
import pyarrow.parquet as parquet
from transformers import PretrainedConfig

from tasks import files, references
from tasks.artifacts import ConvertedCheckpoint, PreparedText, Sources, Vocabulary
from tasks.errors import ArtifactError, CheckpointError, DataError, PlanError
from tasks.params import ConversionParams, Params
from tasks.stages import Track
from tasks.weights import families, place, proof, report, rules, skeleton
from tasks.weights.formats import Checkpoint, open_checkpoint


def run(params: Params, root: Path, track: Track) -> ConvertedCheckpoint:
    listing = Sources.folder(root) / "checkpoint.json"
    source = _open(listing, root, params.sources.checkpoint.revision)
    family = families.find(source.config["model_type"], family=params.conversion.family)
    labels = read_labels(PreparedText.folder(root) / "labels.json")
    config = skeleton.classifier_config(source.config, labels)
    words = Vocabulary.load(root)
    require_rows(words.size, config.vocab_size)
    require_alignment(words.path / "alignment.parquet")
    plan = _plan(source, family, config, labels, params.conversion)
    about = references.read_listing(listing)
    facts = {
        "reference": about["reference"],
        "source": files.digest_json(about["files"]),
        "family": family.name,
        "architecture": skeleton.architecture(config),
        "labels": labels,
    }
    with files.replace_directory(ConvertedCheckpoint.folder(root)) as draft:
        proofs = _write(plan, source, draft, config, facts, params.conversion.tolerance)
    page = report.Facts(**facts, licence=about["licence"], dtype=plan.dtype, rows=plan.rows(), proofs=proofs)
    return _publish(ConvertedCheckpoint.load(root), page, root / "reports" / "conversion.html", track)


def read_labels(path: Path) -> tuple[str, ...]:
    """The label names in order.

    Raises ArtifactError where the file is missing, DataError where it is no list of different names.
    """
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run `dvc repro preparation` first") from None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(f"{path} must be a JSON list of label names")
    if not labels:
        raise DataError(
            "rows of this kind (sources.text.kind) have no classes, and only heads that classify can be "
            "made yet"
        )
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise DataError(f"{path} must name at least two labels, each once, not {labels}")
    return tuple(labels)


def require_rows(size: int, rows: int) -> None:
    """Raises CheckpointError where a token of the vocabulary would have no embedding."""
    if size > rows:
        raise CheckpointError(
            f"the vocabulary's token ids reach up to {size - 1:,}, so it needs {size:,} embedding rows; the "
            f"checkpoint has {rows:,}: take the tokenizer that belongs to this checkpoint"
        )


def require_alignment(path: Path) -> None:
    """Embedding tables are copied whole. Raises PlanError where a token's row is not that of the same id."""
    table = parquet.read_table(path, columns=["id", "token", "source_id"])
    same = compute.fill_null(compute.equal(table["id"], table["source_id"]), False)
    if moved := table.filter(compute.invert(same)).to_pylist():
        raise PlanError(
            f"{len(moved):,} tokens of the vocabulary do not stand where the checkpoint's embeddings do, the "
            f"first {moved[0]['token']!r} with id {moved[0]['id']}: conversion cannot extend embedding "
            "tables yet, so set vocabulary.tokenizer to checkpoint and leave vocabulary.add_tokens empty"
        )


def _open(listing: Path, root: Path, revision: str) -> Checkpoint:
    """The checkpoint that the sources stage saw, unchanged since."""
    if not listing.is_file():
        raise ArtifactError(f"{listing} is missing: run `dvc repro sources` first")
    directory = references.locate(references.read_listing(listing)["reference"], root=root, revision=revision)
    source = open_checkpoint(directory)
    references.check(directory, listing)
    return source


def _plan(
    source: Checkpoint,
    family: families.Family,
    config: PretrainedConfig,
    labels: tuple[str, ...],
    settings: ConversionParams,
) -> rules.Plan:
    keep_head = skeleton.source_labels(source.config) == labels
    table = family.rules(labels=len(labels), keep_head=keep_head)
    targets = skeleton.targets(config)
    return rules.plan(source.entries, table, targets, seed=settings.seed, deviation=settings.deviation)


def _write(
    plan: rules.Plan,
    source: Checkpoint,
    draft: Path,
    config: PretrainedConfig,
    facts: Mapping[str, Any],
    tolerance: float,
) -> dict[str, str]:
    """Fill `draft`; returns what the proofs found. Whatever is raised here leaves the former output alone."""
    metadata = {"source": facts["source"], "family": facts["family"], "plan": plan.digest()}
    place.write(plan, draft / "model", skeleton.serialise(config, plan.dtype), metadata=metadata)
    proofs = proof.verify(plan, source, draft / "model", tolerance=tolerance)
    described = {**facts, "seed": plan.seed, "deviation": plan.deviation, "parameters": plan.parameters()}
    files.write_text(draft / "plan.json", files.canonical_json({**described, "rows": plan.rows()}))
    ConvertedCheckpoint.save(
        draft,
        family=facts["family"],
        architecture=facts["architecture"],
        labels=facts["labels"],
        source=facts["source"],
        parameters=plan.parameters(),
        fresh=plan.fresh(),
        proofs=proofs,
    )
    return proofs


def _publish(
    record: ConvertedCheckpoint, page: report.Facts, target: Path, track: Track
) -> ConvertedCheckpoint:
    files.write_text(target, report.render(page))
    track.metrics(record.figures())
    track.file(target)
    return record
