"""What the stages before leave, written directly."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tasks import files, params
from tasks.artifacts import (
    SPLITS,
    ConvertedCheckpoint,
    EncodedDataset,
    Evaluation,
    PreparedText,
    TrainedModel,
    Vocabulary,
)
from tasks.text import kinds


@pytest.fixture
def prepared() -> Callable[..., None]:
    """Writes the artifact of preparation: one file of all splits, in groups of `group` rows."""

    def write(
        root: Path,
        rows: Sequence[Mapping[str, Any]],
        *,
        kind: str = "label",
        labels: Sequence[str] = ("a", "b"),
        group: int = 7,
        keep: Sequence[str] = (),
        contaminated: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        names = ("id", "text", *kinds.KINDS[kind].columns, *keep, "cluster", "split")
        types = dict.fromkeys(names, pa.string()) | dict(kinds.KINDS[kind].columns)
        counts = Counter(row["split"] for row in rows)
        with files.replace_directory(PreparedText.folder(root)) as draft:
            table = pa.Table.from_pylist(list(rows), schema=pa.schema(types))
            parquet.write_table(table, draft / "rows.parquet", row_group_size=group)
            PreparedText.save(
                draft,
                kind=kind,
                labels=labels,
                rows_in=len(rows),
                rows={split: counts[split] for split in SPLITS},
                **{name: {} for name in ("dropped", "quarantined", "changed")},
                contaminated=dict(contaminated),
                repaired=0,
                algorithm="1",
            )

    return write


@pytest.fixture
def encode() -> Callable[..., None]:
    """Writes the artifact of encoding: random rows whose label follows from their tokens."""

    def write(root: Path, labels: Sequence[str], kind: str = "label") -> None:
        chance = np.random.default_rng(0)
        with files.replace_directory(EncodedDataset.folder(root)) as draft:
            for split, count in (("train", 40), ("validation", 12), ("test", 12)):
                rows = [
                    chance.integers(5, 61, size=chance.integers(3, 9)).astype(np.int32) for _ in range(count)
                ]
                columns = {
                    "id": [f"{split}-{n}" for n in range(count)],
                    "input_ids": pa.array(rows, pa.list_(pa.int32())),
                    "label": pa.array([int(row.sum()) % 3 for row in rows], pa.int64()),
                }
                parquet.write_table(pa.table(columns), draft / f"{split}.parquet")
            sizes = {name: {} for name in ("rows", "tokens", "truncated", "lost", "unknown")}
            EncodedDataset.save(draft, kind=kind, labels=labels, max_length=16, **sizes)

    return write


@pytest.fixture
def trainable(
    tmp_path: Path,
    tiny_bert: Callable[..., Any],
    tiny_tokenizer: Callable[[Path], None],
    encode: Callable[..., None],
) -> Path:
    """A root with all that finetuning reads: a tiny converted BERT, 40 rows to train on."""
    tokenizer, model = tmp_path / "tokenizer", tiny_bert()
    tiny_tokenizer(tokenizer)
    with files.replace_directory(Vocabulary.folder(tmp_path)) as draft:
        shutil.move(tokenizer, draft / "tokenizer")
        Vocabulary.save(draft, size=61, kept=61, fresh=0, special={})
    with files.replace_directory(ConvertedCheckpoint.folder(tmp_path)) as draft:
        model.save_pretrained(draft / "model")
        ConvertedCheckpoint.save(
            draft, family="bert", architecture="BertForSequenceClassification", labels=["a", "b", "c"],
            source="", parameters={}, fresh=[], proofs={},
        )  # fmt: skip
    encode(tmp_path, ["a", "b", "c"])
    return tmp_path


TASKS = {"moods": ("bad", "fair", "good"), "news": ("art", "law", "sea", "tax", "war"), "yes": ("no", "yes")}


def _shipped():
    return params.load(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture
def base(tracked, trainable):
    """A project with a base and a tokenizer, and nothing that learned on it."""
    shutil.copytree(trainable / "data", tracked / "data")
    files.write_text(tracked / "params.yaml", params.dump(_shipped()))
    folder = Vocabulary.load(tracked).path / "tokenizer"
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    files.write_text(folder / "tokenizer_config.json", json.dumps(about))
    return tracked


@pytest.fixture
def project(base, tiny_bert, tmp_path):
    """Name -> the root of another project on the same base, and its model with the adapter in it."""

    def make(name, *, kind="label", labels=None, seed=1, decision=None, adapter="lora", overrides=()):
        from tasks.model import adapters
        from tasks.model.adapters import Adapter

        root, labels = tmp_path / name, TASKS[name] if labels is None else labels
        shutil.copytree(base / "data", root / "data")
        files.write_text(root / "params.yaml", params.dump(params.override(_shipped(), list(overrides))))
        model = _model(base, tiny_bert(labels=max(1, len(labels))), labels)
        learned = Adapter(adapter, rank=2)
        adapters.inject(model, learned, (1, 3), seed=seed)
        _shake(model, seed)
        with files.replace_directory(TrainedModel.folder(root)) as draft:
            adapters.save(model, learned, draft / "adapter", base="sha256:1")
            TrainedModel.save(draft, base="", data="", labels=labels, weights="", phases=[])
        with files.replace_directory(EncodedDataset.folder(root)) as draft:
            sizes = {one: {} for one in ("rows", "tokens", "truncated", "lost", "unknown")}
            EncodedDataset.save(draft, kind=kind, labels=labels, max_length=8, **sizes)
        with files.replace_directory(Evaluation.folder(root)) as draft:
            empty = {one: {} for one in ("metrics", "comparisons", "slices", "calibration", "decided")}
            Evaluation.save(draft, model="", test="", labels=labels, rows=0, decision=decision or {}, **empty)
        return root, model

    return make


def _model(base, model, labels):
    """Its body is the base's."""
    from tasks.model import floors

    own = floors.load(ConvertedCheckpoint.load(base).path / "model").state_dict()
    model.load_state_dict(
        {name: value for name, value in own.items() if "classifier" not in name}, strict=False
    )
    model.config.id2label = dict(enumerate(labels or ("LABEL_0",)))
    return model


def _shake(model, seed):
    import torch

    from tasks.model import floors

    generator = torch.Generator().manual_seed(seed)
    stack = floors.floors(model)
    learned = [value for floor in stack for value in floor.adapter.values()]
    with torch.no_grad():
        for value in [*learned, *stack[-1].parameters.values()]:
            value += torch.randn(value.shape, generator=generator) * 0.3


@pytest.fixture
def register(base, tiny_classifier):
    """Model's name, a project -> its adapter as the next version, which becomes champion."""

    from mlflow import MlflowClient

    from tasks.stages import serving
    from tasks.tracking import server
    from tasks.tracking.registry import Registry

    def put(name, root, *, seed=0, without=(), tags=()):
        client = MlflowClient(tracking_uri=server.uri(base))
        known = client.get_experiment_by_name("tests")
        experiment = (
            known.experiment_id
            if known
            else client.create_experiment("tests", str(base / ".regraft" / "mlartifacts"))
        )
        run, trained, encoded = (
            client.create_run(experiment),
            TrainedModel.load(root),
            EncodedDataset.load(root),
        )
        tokens = serving.tokens_digest(Vocabulary.load(root).path / "tokenizer")
        told = {
            "labels": list(trained.labels), "max_length": encoded.max_length, "kind": encoded.kind,
            "clean": ["whitespace"], "tokenizer": tokens, "decision": dict(Evaluation.load(root).decision),
        }  # fmt: skip
        registry = Registry(base, name)
        directory = tiny_classifier(root.parent / f"{name} {seed}", seed=seed)
        version = registry.register(
            directory, run_id=run.info.run_id, max_length=8, kind="label", reading={},
            tags={
                f"regraft.{key}": json.dumps(value) for key, value in told.items() if key not in without
            } | dict(tags),
            adapter=None if "adapter" in without else trained.path / "adapter",
        )  # fmt: skip
        with registry.locked():
            registry.promote(version.number, reason="first", by="ann")
        return version

    return put
