"""conversion: a pretrained checkpoint in; a model for our kind of rows, its every tensor explained, out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from tasks import architectures, files, references
from tasks.artifacts import ConvertedCheckpoint, PreparedText, Sources, Vocabulary
from tasks.errors import ArtifactError, DataError
from tasks.params import ConversionParams, Params
from tasks.stages import Track
from tasks.weights import (
    alignment,
    behaviour,
    families,
    picture,
    place,
    proof,
    purposes,
    report,
    roundtrip,
    skeleton,
)
from tasks.weights.alignment import Alignment
from tasks.weights.formats import Checkpoint, open_checkpoint
from tasks.weights.plan import Plan, plan


def run(params: Params, root: Path, track: Track) -> ConvertedCheckpoint:
    listing = Sources.folder(root) / "checkpoint.json"
    source = _open(listing, root, params.sources.checkpoint.revision)
    theirs = source.config.get("model_type")
    family = families.find(theirs and architectures.body_type(theirs), family=params.conversion.family)
    kind, pooling = params.sources.text.kind, params.conversion.pooling
    head = purposes.choose(kind, family, pooling=pooling)
    purpose = purposes.find(kind, pooling=pooling)
    labels = read_labels(PreparedText.folder(root) / "labels.json") if purpose.named else ()
    config = skeleton.describe(source.config, head, purpose, labels)
    vocabulary = Vocabulary.load(root)
    words = _aligned(vocabulary, source, family, config)
    config.update(alignment.fields(words, config, vocabulary.special))
    padding = alignment.padding(config, vocabulary.special) if family.heads[head].last else None
    config.pad_token_id = config.pad_token_id if padding is None else padding
    made = _plan(source, family, head, config, purpose, words, params.conversion)
    about = references.read_listing(listing)
    behaviour.demand(set(params.conversion.verify) - {"similarity"}, skeleton.architecture(config))
    facts = {
        "reference": about["reference"],
        "source": files.digest_json(about["files"]),
        "family": family.name,
        "architecture": skeleton.architecture(config),
        "labels": labels,
    }
    if padding is not None:
        facts["padding"] = f"token {padding}: the head reads the last token of a text that is not this one"
    with files.replace_directory(ConvertedCheckpoint.folder(root)) as draft:
        proofs = _write(made, source, draft, config, words, facts, params.conversion, vocabulary.path)
    page = report.Facts(
        **facts,
        licence=about["licence"],
        dtype=made.dtype,
        rows=made.rows(),
        proofs=proofs,
        picture=None if words.same else picture.draw(words),
    )
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
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise DataError(f"{path} must name at least two labels, each once, not {labels}")
    return tuple(labels)


def _open(listing: Path, root: Path, revision: str) -> Checkpoint:
    """The checkpoint that the sources stage saw, unchanged since."""
    if not listing.is_file():
        raise ArtifactError(f"{listing} is missing: run `dvc repro sources` first")
    directory = references.locate(references.read_listing(listing)["reference"], root=root, revision=revision)
    source = open_checkpoint(directory)
    references.check(directory, listing)
    return source


def _aligned(
    vocabulary: Vocabulary, source: Checkpoint, family: families.Family, config: PretrainedConfig
) -> Alignment:
    """Raises CheckpointError where tokenizer, config.json and embedding table do not belong together."""
    shapes = [entry.shape for name, entry in source.entries.items() if family.embeds(name)]
    before, width = next((s for s in shapes if len(s) == 2), (config.vocab_size, config.hidden_size))
    words = alignment.read(vocabulary.path / "alignment.parquet", before=before, width=width)
    text = (vocabulary.path / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8")
    longest = json.loads(text)["model_max_length"]
    alignment.check(words, config, vocabulary.special, longest=longest, behind=family.behind_pad)
    return words


def _plan(
    source: Checkpoint,
    family: families.Family,
    head: str,
    config: PretrainedConfig,
    purpose: purposes.Purpose,
    words: Alignment,
    settings: ConversionParams,
) -> Plan:
    model = skeleton.empty(config)
    tied = skeleton.tied(model, source.entries)
    table = family.rules(
        head,
        source.config,
        new=purpose.new.format(config.num_labels),
        replaced=skeleton.replaced(source.config, config, purpose),
        tied=tied,
        words=words.op,
        reason=words.reason,
    )
    targets = skeleton.targets(model, tied)
    return plan(source.entries, table, targets, seed=settings.seed, deviation=settings.deviation)


def _write(
    plan: Plan,
    source: Checkpoint,
    draft: Path,
    config: PretrainedConfig,
    words: Alignment,
    facts: Mapping[str, Any],
    settings: ConversionParams,
    vocabulary: Path,
) -> dict[str, str]:
    """Fill `draft`; returns what the proofs found. Whatever is raised here leaves the former output alone."""
    metadata = {"source": facts["source"], "family": facts["family"], "plan": plan.digest()}
    place.write(plan, draft / "model", skeleton.serialise(config, plan.dtype), metadata=metadata)
    both = None if words.same else words.pairs
    proofs = proof.verify(
        plan,
        source,
        draft / "model",
        tolerance=settings.tolerance,
        words=both,
        levels=settings.verify,
        folder=vocabulary / "tokenizer",
    )
    more, digests = roundtrip.prove(plan, draft / "model", settings.verify)
    proofs |= more
    if levels := {*settings.verify} & {*behaviour.CAUSAL}:
        judge = behaviour.prepare(levels, plan, facts["architecture"], folder=vocabulary / "tokenizer")
        proofs |= judge(draft / "model")
    described = {**facts, "seed": plan.seed, "deviation": plan.deviation, "parameters": plan.parameters()}
    described |= {"proofs": proofs} | ({"digests": digests} if digests else {})
    if not words.same:
        described["vocabulary"] = words.counts
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
