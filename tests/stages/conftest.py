"""What the stages before leave, written directly."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tasks import files
from tasks.artifacts import SPLITS, PreparedText
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
    ) -> None:
        names = ("id", "text", *kinds.KINDS[kind].columns, "cluster", "split")
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
                **{name: {} for name in ("dropped", "quarantined", "changed", "contaminated")},
                repaired=0,
                algorithm="1",
            )

    return write
