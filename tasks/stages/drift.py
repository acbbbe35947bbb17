"""How unlike the new rows of a table are to the training rows: no stage, but what is asked before retraining.

New is what the last preparation has not seen: by the table's own ids, or else by all that a row says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from tasks import files, references
from tasks.artifacts import ConvertedCheckpoint, PreparedText, Vocabulary
from tasks.drift import measures, report
from tasks.drift.measures import Measure
from tasks.errors import InputError
from tasks.params import Params, TextSource
from tasks.stages import preparation
from tasks.text import copies, gather, identities, kinds, shards
from tasks.text.gather import Gathered
from tasks.text.kinds import KINDS, Kind
from tasks.text.reading import formats

PAGE = "drift.html"
SAMPLE = 5000  # rows of each side, chosen by the hash of their content
EMBEDDED = 500  # of these, that the checkpoint reads: seconds on a CPU
SEEN = ("rows", "drops", "quarantine")


@dataclass(frozen=True)
class Drift:
    """rows: of the table, of which `new` were not there before and `passed` the filters. silent: measure ->
    why it tells nothing."""

    table: str
    rows: int
    new: int
    passed: int
    measures: tuple[Measure, ...]
    silent: Mapping[str, str]

    @property
    def largest(self) -> float:
        """The largest difference that chance does not explain, between 0 and 1."""
        return max((one.excess for one in self.measures), default=0.0)

    def figures(self) -> dict[str, float]:
        """Of each measure its value, what chance makes of as many rows, and its p."""
        found: dict[str, float] = {}
        for one in self.measures:
            name = f"drift.{one.name}"
            found |= {name: one.value, f"{name}.by_chance": one.chance, f"{name}.p": one.p_value}
        return found

    @property
    def headline(self) -> str:
        return report.headline(self.new, self.rows, self.measures)


def compare(params: Params, root: Path, table: Path | None = None) -> Drift:
    """The rows that are new in `table`, or in the text source of `params`, against the training rows in
    data/preparation; writes reports/drift.html.

    A table without the column of answers is compared by its texts alone, all of it.
    Raises ArtifactError where nothing is prepared yet, InputError where there is no such table.
    """
    prepared, source = PreparedText.load(root), params.sources.text
    if table is None:
        path = references.locate_text(source.path, root=root, revision=source.revision)
    else:
        path, source = table, _layout_of(table, source)
    name, kind = source.path if table is None else table.name, KINDS[source.kind]
    with TemporaryDirectory(prefix="regraft-") as work:
        gathered = gather.gather(
            path,
            preparation.layout(source),
            preparation.shard_handling(source, params.preparation, _forgotten(root)),
            into=Path(work),
            rows=params.preparation.shard_rows,
            engine=params.preparation.engine,
            workers=params.preparation.workers,
        )
        unseen = _unseen(gathered, prepared, own=source.id is not None)
        passed = np.intersect1d(gathered.numbers, unseen)
        new = _rows(gathered, passed, kind)
    found = _drift(new, _trained(prepared, kind), kind, root, params)
    drift = Drift(name, gathered.rows_in, len(unseen), len(passed), *found)
    files.write_text(root / "reports" / PAGE, _page(drift))
    return drift


def track(drift: Drift, params: Params, root: Path) -> None:
    """Tell MLflow what was found and the page, in a run below the pipeline's that has these sources.

    The same look is told once; where MLflow does not answer, it waits to be sent.
    """
    from tasks.tracking import measured  # late: seconds

    about = {"table": drift.table, "rows": drift.rows, "new": drift.new, "passed": drift.passed}
    silent = {f"silent.{name}": why for name, why in drift.silent.items()}
    measured.tell("drift", {**about, **silent}, drift.figures(), root / "reports" / PAGE, params, root)


def _layout_of(table: Path, source: TextSource) -> TextSource:
    """As the source is read; of texts alone where the table does not have all its columns."""
    if not table.exists():
        raise InputError(f"no such table: {table}")
    kind = KINDS[source.kind]
    if not copies.is_table(table.name) or kind.text is None:
        return source
    there = formats.columns(table, preparation.layout(source))
    if all(source.columns.get(name, name) in there for name in kind.wanted()):
        ours = source.id if source.id in there else None
        return source.model_copy(update={"id": ours, "split": None, "keep": ()})
    return _texts_alone(source)


def _texts_alone(source: TextSource) -> TextSource:
    """`source` as rows of kind text."""
    own = KINDS[source.kind].text or "text"
    columns = {"text": source.columns.get(own, own)}
    changes = {"kind": "text", "columns": columns, "id": None, "split": None, "keep": ()}
    return source.model_copy(update=changes)


def _forgotten(root: Path) -> frozenset[str]:
    return preparation.read_forgotten(root / preparation.FORGOTTEN)


def _unseen(gathered: Gathered, prepared: PreparedText, *, own: bool) -> NDArray[np.int64]:
    """Places of the rows that are in no table of preparation."""
    tables = [pl.scan_parquet(prepared.path / f"{name}.parquet").select("id") for name in SEEN]
    known = pl.concat(tables).unique().collect()["id"]
    names = gathered.ids
    if not own:  # a second copy of a row is no news
        known = known.str.replace(r"-\d+$", "")
        names = pl.Series([identities.stem(content) for content in gathered.content.tolist()])
    return (~names.is_in(known.implode())).arg_true().to_numpy().astype(np.int64)


def _rows(gathered: Gathered, places: NDArray[np.int64], kind: Kind) -> pa.Table:
    """At most SAMPLE of the rows at `places`, those with the smallest hashes, cleaned."""
    taken = places[np.argsort(gathered.content[places], kind="stable")[:SAMPLE]]
    return pa.concat_tables(_parts(gathered, np.sort(taken), ["text", *kind.columns]))


def _parts(gathered: Gathered, taken: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
    for number, file in enumerate(gathered.files):
        start, end = gathered.starts[number : number + 2]
        inside = taken[(taken >= start) & (taken < end)] - start
        yield shards.read(file).select(columns).take(pa.array(inside))


def _trained(prepared: PreparedText, kind: Kind) -> pa.Table:
    """At most SAMPLE training rows: they are sorted by a hash of their content."""
    rows = pl.scan_parquet(prepared.path / "rows.parquet").filter(pl.col("split") == "train")
    found = rows.select("text", *kind.columns).head(SAMPLE).collect()
    return found.to_arrow()


def _drift(
    new: pa.Table, trained: pa.Table, kind: Kind, root: Path, params: Params
) -> tuple[tuple[Measure, ...], Mapping[str, str]]:
    if few := measures.too_few(len(new), len(trained)):
        return (), {"all": few}
    ours, theirs = (kinds.compared(table, kind).to_list() for table in (new, trained))
    found: list[Measure | None] = [measures.lengths(ours, theirs), measures.words(ours, theirs)]
    if kind.classes:
        found.append(measures.classes(*(_classes(table, kind) for table in (new, trained))))
    if "score" in kind.columns:
        found.append(measures.numbers("scores", "", *(_scores(table) for table in (new, trained))))
    silent = {} if found[1] else {"words": "texts without words"}
    states = _states([new, trained], kind, root, params)
    if isinstance(states, str):
        silent["states"] = states
    else:
        found.append(measures.states(*states))
    return tuple(one for one in found if one), silent


def _classes(table: pa.Table, kind: Kind) -> list[str]:
    return [name.replace(kinds.JOINT, " + ") for name in kinds.classes(table, kind)]


def _scores(table: pa.Table) -> list[float]:
    return [float(score) for score in table["score"].to_pylist()]


def _states(
    tables: Sequence[pa.Table], kind: Kind, root: Path, params: Params
) -> list[NDArray[np.float32]] | str:
    """Mean last states (rows, width) that the converted checkpoint has of at most EMBEDDED rows of each
    table; or why there are none."""
    from tasks.model import floors, frozen  # late: seconds, and a table of few rows needs neither
    from tasks.model.boundary import Cache
    from tasks.training import device

    folder = ConvertedCheckpoint.folder(root) / "model"
    if not folder.exists() or not Vocabulary.folder(root).exists():
        return "no checkpoint is converted yet"
    with (
        device.taken(params.finetuning.device, patience=device.PATIENCE) as (where,),
        TemporaryDirectory(prefix="regraft-") as home,
    ):
        model, embedded = floors.load(folder, device=where), []
        if model.config.is_encoder_decoder:
            return "an encoder-decoder has no one state of a text"
        still = frozen.Frozen(model, Cache(Path(home), "float32", 2**40))
        for name, table in zip(("new rows", "training rows"), tables, strict=True):
            rows = _tokens(table.slice(0, EMBEDDED), kind, root, params)
            kept = still.gather(rows, files.digest_json([name]), [frozen.MEAN], about=name)
            embedded.append(np.array(frozen.pooled(kept[frozen.MEAN])))
    return embedded


def _tokens(table: pa.Table, kind: Kind, root: Path, params: Params) -> Any:
    from tasks.model.batches import Ragged, Rows
    from tasks.text.tokens import vocabulary

    tokenizer = vocabulary.load(Vocabulary.folder(root) / "tokenizer")
    texts = [table[name].to_pylist() for name in kind.compared]
    found = tokenizer(*texts, truncation=True, max_length=params.encoding.max_length)
    types = found.get("token_type_ids")
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Rows(Ragged.of(found["input_ids"]), None if types is None else Ragged.of(types), pad, mean=True)


def _page(drift: Drift) -> str:
    return report.render(
        report.Facts(
            table=drift.table,
            rows=drift.rows,
            new=drift.new,
            passed=drift.passed,
            measures=drift.measures,
            silent=drift.silent,
        )
    )
