"""The nouns that travel between stages: frozen records; their tensors and tables stay on disk.

An artifact is a directory `data/<stage>` with a `manifest.json`; a record is that manifest in memory.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from tasks import files
from tasks.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT = 1  # of manifests; another number where a field no longer means what it did
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A stage's output. `digest` covers every file of `path` and every field of the manifest."""

    stage: ClassVar[str]
    path: Path
    digest: str

    @classmethod
    def folder(cls, root: Path) -> Path:
        return root / "data" / cls.stage

    @classmethod
    def save(cls, draft: Path, **values: Any) -> None:
        """Write the manifest into `draft`, last of all files: its presence means the rest is complete."""
        known = {field.name for field in fields(cls)} - {"path", "digest"}
        if values.keys() != known:
            raise TypeError(f"{cls.__name__} takes {sorted(known)}, not {sorted(values)}")
        body = json.loads(files.canonical_json(values))
        digest = files.digest_json({"files": files.digest_tree(draft, without=MANIFEST), "fields": body})
        text = files.canonical_json({"record": cls.__name__, "format": FORMAT, "digest": digest, **body})
        files.write_text(draft / MANIFEST, text)

    @classmethod
    def load(cls, root: Path) -> Self:
        """The record of `root`'s stage output.

        Raises ArtifactError where the stage has not run or the manifest is of another kind.
        """
        folder = cls.folder(root)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"{folder} holds no manifest: run `dvc repro {cls.stage}` first") from None
        _demand_known(cls, folder / MANIFEST, manifest)
        return cls(path=folder, **{name: _frozen(value) for name, value in manifest.items()})

    def figures(self) -> Mapping[str, float]:
        """The manifest's numbers under flat names, for tracking."""
        return dict(_numbers("", {k: v for k, v in asdict(self).items() if k not in ("path", "digest")}))


@dataclass(frozen=True, kw_only=True)
class Sources(Artifact):
    """What came from outside, by content: `text.json` and `checkpoint.json` list files with digests."""

    stage = "sources"
    text: str  # digest of the list of files
    checkpoint: str  # digest of the checkpoint's files


@dataclass(frozen=True, kw_only=True)
class PreparedText(Artifact):
    """`rows.parquet` (id, text, the kind's own columns, those that come along, cluster, split), sorted by a
    hash of their content;
    `drops.parquet` (id, step, reason, detail, text, duplicate_of, similarity);
    `quarantine.parquet` (id, stage, reason, detail, file, line, raw); `labels.json` (the names in order)."""

    stage = "preparation"
    kind: str  # of row
    labels: tuple[str, ...]  # none where the kind has no classes
    rows_in: int
    rows: Mapping[str, int]  # split -> rows kept
    dropped: Mapping[str, int]  # reason -> rows
    quarantined: Mapping[str, int]  # reason -> rows
    changed: Mapping[str, int]  # cleaning step -> rows it changed
    repaired: int  # rows with bytes replaced by U+FFFD
    contaminated: Mapping[str, int]  # evaluation kept elsewhere -> its rows that our data hold
    algorithm: str  # of the signatures; another version finds other candidates


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Artifact):
    """`tokenizer/` (a transformers directory), `alignment.parquet` (id, token, origin, source_id, pieces).

    Origin is kept, matched, added or trained; source_id the row of the checkpoint's embedding table, or null;
    pieces, where it is null, the ids that the checkpoint's own tokenizer cuts the token's text into.
    """

    stage = "vocabulary"
    size: int  # rows the embedding table must have at least: highest token id + 1
    kept: int  # tokens with a row of the checkpoint's table
    fresh: int  # tokens without
    special: Mapping[str, int]  # role -> token id


@dataclass(frozen=True, kw_only=True)
class ConvertedCheckpoint(Artifact):
    """`model/` (config.json, model.safetensors), `plan.json` (one row per target and per unused tensor)."""

    stage = "conversion"
    family: str
    architecture: str
    labels: tuple[str, ...]
    source: str  # digest of the source checkpoint
    parameters: Mapping[str, int]  # action -> parameters
    fresh: tuple[str, ...]  # tensors that were initialised, not copied
    proofs: Mapping[str, str]  # level -> what it found


@dataclass(frozen=True, kw_only=True)
class EncodedDataset(Artifact):
    """`train|validation|test.parquet`: id, input_ids (ragged list of int32) and the kind's own columns, such
    as label (int64). Packed rows have no id; the windows of one question share theirs."""

    stage = "encoding"
    kind: str
    labels: tuple[str, ...]
    max_length: int
    rows: Mapping[str, int]  # split -> rows of its file: of kind answer, windows
    tokens: Mapping[str, int]
    truncated: Mapping[str, int]  # split -> rows that lost tokens
    lost: Mapping[str, int]  # split -> tokens cut off
    unknown: Mapping[str, int]  # split -> tokens that the vocabulary does not know


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Artifact):
    """`model/` (a complete transformers directory with its tokenizer), `steps.csv`, `validation.csv` and
    `changes.csv` (one line per optimizer step, epoch, and look at how far each floor has moved), `drift.json`
    (what the model made of a general text before and after); with an
    adapter `adapter/`; and, if the schedule begins with the head alone, `head.safetensors` as it stood after
    that and `frozen.npy`, mean-pooled features (rows, width) float32 of the training rows under the untouched
    body."""

    stage = "finetuning"
    base: str  # digest of the ConvertedCheckpoint
    data: str  # digest of the EncodedDataset
    labels: tuple[str, ...]
    weights: str  # digest of model/model.safetensors
    phases: tuple[Mapping[str, Any], ...]  # name, steps, parameters trained, validation figures


@dataclass(frozen=True, kw_only=True)
class Evaluation(Artifact):
    """`predictions.parquet`: contestant, id, label, probabilities and logits (lists of float32, in label
    order; no logits of baselines); `validation.parquet`, the same of the model's answers to validation rows,
    where something is chosen by them; `slices.parquet`: id, and of each slice whether the row is in it;
    `behaviour.json`: behavioural tests; `prompting.json`: among what k_shot chose, where it competed;
    `suspects.csv`: rows whose label may be wrong; `README.md`: the model card."""

    stage = "evaluation"
    model: str  # digest of the TrainedModel
    test: str  # digest of the test rows (ids and labels)
    labels: tuple[str, ...]
    rows: int
    metrics: Mapping[str, Mapping[str, Any]]  # contestant -> metric -> {value, low, high}
    comparisons: Mapping[str, Mapping[str, Any]]  # baseline -> paired test of the model against it
    slices: Mapping[str, Mapping[str, Any]]  # slice -> told, rows, the model's metrics; none if too small
    calibration: Mapping[str, Any]  # rows of validation, metrics before and after; none without logits
    decision: Mapping[str, Any]  # temperature, abstain_below, thresholds, chosen on validation rows
    decided: Mapping[str, Mapping[str, float]]  # what the decision comes to on test rows


@dataclass(frozen=True, kw_only=True)
class Promotion(Artifact):
    """`verdict.json`: what the gate decided and why."""

    stage = "promotion"
    model: str
    version: str
    alias_moved: bool
    outcome: str  # promote | hold | reject
    reasons: tuple[str, ...]


def _demand_known(record: type[Artifact], path: Path, manifest: dict[str, Any]) -> None:
    """Take record and format off `manifest`; ArtifactError where another version of regraft wrote it."""
    kind, number = manifest.pop("record", None), manifest.pop("format", None)
    if kind != record.__name__:
        raise ArtifactError(f"{path} is not a {record.__name__}: run `dvc repro -f {record.stage}`")
    known = {field.name for field in fields(record)} - {"path"}
    faults = [f"its format is {number}, not {FORMAT}"] if number != FORMAT else []
    faults += [f"it lacks {name}" for name in sorted(known - manifest.keys())]
    faults += [f"{name} is unknown" for name in sorted(manifest.keys() - known)]
    if faults:
        raise ArtifactError(
            f"{path} is of another version of regraft ({'; '.join(faults)}): run "
            f"`dvc repro -f {record.stage}`, or use that version"
        )


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _numbers(prefix: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, bool | str) or value is None:
        return []
    if isinstance(value, int | float):
        return [(prefix, float(value))]
    items = value.items() if isinstance(value, dict) else ((str(i), item) for i, item in enumerate(value))
    return [pair for key, item in items for pair in _numbers(f"{prefix}.{key}" if prefix else key, item)]
