"""What the stages before leave, written directly."""

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

from tasks import files
from tasks.artifacts import SPLITS, ConvertedCheckpoint, EncodedDataset, PreparedText, Vocabulary
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
