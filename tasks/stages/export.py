"""A model as a directory that answers without us, once onnxruntime was shown to say what the model says."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from torch import Tensor
from transformers import AutoTokenizer

from tasks import environment, files
from tasks.artifacts import MANIFEST, Evaluation, PreparedText, TrainedModel
from tasks.errors import ArtifactError, InputError, TrainingError
from tasks.evaluation import agreement
from tasks.evaluation.agreement import Agreement, Matrix
from tasks.evaluation.asking import predict
from tasks.evaluation.predictions import Text
from tasks.model import batches, floors, graph, unpadded
from tasks.model.batches import Places, Ragged, Rows
from tasks.progress import track
from tasks.stages import champion, serving
from tasks.stages.champion import Champion
from tasks.stages.serving import MANNER, REGISTERED
from tasks.stages.ways import Manner
from tasks.text.tokens import words
from tasks.tracking import registry
from tasks.tracking.contents import WEIGHTS_FILE

log = logging.getLogger(__name__)
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
EXPORTED = (*predict.FROM_LOGITS, "tags")  # kinds of row
GRAPH, CONFIG, RECORD = "model.onnx", "config.json", "export.json"
GENERAL = Path(__file__).parents[1] / "english.txt"
MOST = 1000  # validation rows, evenly by length: how sums are rounded is no matter of the text
BATCH, ALONE = 32, 16  # rows of a batch, from short to long; rows that are asked by themselves as well
POSITIONS = 16_384  # of a batch, padding included, unless one row has more


@dataclass(frozen=True)
class Source:
    """name: of a version, or of a stage's output. directory: transformers'. project: its validation rows are
    asked."""

    name: str
    directory: Path
    manner: Manner
    project: Path


@dataclass(frozen=True)
class Exported:
    """rows: that both were asked about; tokens: of the shortest and of the longest."""

    source: str
    architecture: str
    rows: int
    tokens: tuple[int, int]
    agreement: Agreement


def export(reference: str | None, target: Path, *, root: Path) -> Exported:
    """Graph, tokenizer, config and manner of the model that `find` finds, as the new directory `target`, with
    a record of what these are and how far onnxruntime agrees.

    Raises ParamsError without regraft[onnx], InputError where `target` exists, TrainingError where the graph
    says something else than the model; nothing is left behind then.
    """
    for library in LIBRARIES:
        environment.demand(library, extra="onnx", wanted="regraft export")
    if os.path.lexists(target):
        raise InputError(f"{target} exists: name a directory that does not, nothing is overwritten")
    source = find(reference, root)
    model = floors.load(source.directory)
    with files.replace_directory(target) as draft:
        tokenizer = _tokenizer(source, model, draft)
        ids, rows = _rows(tokenizer, _texts(source), source.manner, model.config.pad_token_id or 0)
        log.info("tracing %s", type(model).__name__)
        graph.write(model, draft / GRAPH, inputs=list(rows.batch([0], model.device)))
        agreed = _agreement(model, draft / GRAPH, ids, rows, source.manner.kind)
        shortest, longest = min(rows.lengths), max(rows.lengths)
        made = Exported(source.name, type(model).__name__, len(rows), (shortest, longest), agreed)
        shutil.copyfile(source.directory / CONFIG, draft / CONFIG)
        files.write_text(draft / MANNER, files.canonical_json(asdict(source.manner)))
        files.write_text(draft / RECORD, files.canonical_json(_record(made, source, draft)))
    return made


def find(reference: str | None, root: Path) -> Source:
    """models:/NAME@ALIAS, models:/NAME/3, or the directory of a project, None: `root`, for what it has
    fine-tuned last.

    Raises InputError for rows of a kind that is not exported, ArtifactError where nothing is fine-tuned, or
    another model was evaluated.
    """
    if reference and reference.startswith(REGISTERED):
        home, version = registry.find(reference, root)
        known, name = Champion(home, version), f"{REGISTERED}{home.name}/{version.number}"
        manner = _demand_exported(serving.registered(known), name)
        return Source(name, known.directory, manner, root)
    project = root if reference is None else Path(reference)
    trained, evaluated = TrainedModel.load(project), Evaluation.load(project)
    if evaluated.model != trained.digest:
        raise ArtifactError(f"{evaluated.path} is of another model: run `dvc repro evaluation`")
    name = TrainedModel.folder(Path()).as_posix()
    manner = _demand_exported(serving.learned(project), name)
    return Source(name, trained.path / "model", manner, project)


def _demand_exported(manner: Manner, name: str) -> Manner:
    if manner.kind not in EXPORTED:
        raise InputError(
            f"{name}: rows of kind {manner.kind} are answered step by step, which no graph does; models of "
            f"{', '.join(EXPORTED)} are exported"
        )
    return manner


def _tokenizer(source: Source, model: Any, draft: Path) -> Any:
    """As it is read from the files that it leaves in `draft`; by itself it cuts as in training."""
    held = {"config": model.config, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.directory, **held)
    tokenizer.model_max_length = source.manner.max_length
    tokenizer.save_pretrained(draft)
    return AutoTokenizer.from_pretrained(draft, **held)


def _texts(source: Source) -> dict[str, Text]:
    """By id: English of one word up to as many as a row has tokens, and the project's validation rows."""
    longest, general = source.manner.max_length, GENERAL.read_text(encoding="utf-8").split()
    counts = [2**power for power in range(longest.bit_length()) if 2**power < longest]
    found = {}
    for count in (*counts, longest):
        held = (general * (count // len(general) + 1))[:count]
        found[f"{GENERAL.name}[:{count}]"] = _shaped(held, source.manner.kind)
    return found | _validation(source)


def _shaped(held: Sequence[str], kind: str) -> Text:
    """As rows of this kind: words, a text, or one cut in two."""
    if kind == "tags":
        return held
    half = (len(held) + 1) // 2
    return (" ".join(held[:half]), " ".join(held[half:] or held)) if kind == "pair" else " ".join(held)


def _validation(source: Source) -> dict[str, Text]:
    """None where the project, which need not be the model's own, holds no rows of its kind."""
    place, kind = PreparedText.folder(source.project), source.manner.kind
    if not (place / MANIFEST).exists() or PreparedText.load(source.project).kind != kind:
        return {}
    table = parquet.read_table(place / "rows.parquet", columns=["id"], filters=[("split", "=", "validation")])
    ids = table["id"].to_pylist()
    known = dict(zip(ids, champion.prepared_texts(source.project, ids), strict=True))
    rising = sorted(known, key=lambda id: sum(map(len, known[id])))
    return {id: known[id] for id in _spread(rising, MOST)}


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly, the first and the last included."""
    places = np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)
    return [values[place] for place in places]


def _rows(tokenizer: Any, texts: Mapping[str, Text], manner: Manner, pad: int) -> tuple[list[str], Rows]:
    """Their ids, and their tokens as `regraft predict` cuts them; without texts that have none."""
    if manner.kind == "tags":
        split = words.spaced([list(text) for text in texts.values()], tokenizer)
        cut = {"is_split_into_words": True, "truncation": True, "max_length": manner.max_length}
        tokens = {"input_ids": tokenizer(split, **cut)["input_ids"]}
    else:
        tokens = dict(predict.encode(tokenizer, list(texts.values()), max_length=manner.max_length))
    told = [place for place, ids in enumerate(tokens["input_ids"]) if len(ids)]
    columns = {name: Ragged.of(values[place] for place in told) for name, values in tokens.items()}
    rows = Rows(columns["input_ids"], columns.get("token_type_ids"), pad)
    return [list(texts)[place] for place in told], rows


def _agreement(model: Any, path: Path, ids: Sequence[str], rows: Rows, kind: str) -> Agreement:
    """Of the graph, asked in batches of short and long rows and about rows alone, with the model as
    `regraft predict` asks it."""
    quickest, asked = unpadded.quickest(model), graph.asked(path)
    order = np.argsort(rows.lengths, kind="stable").tolist()
    count = -(-len(rows) // max(1, min(BATCH, POSITIONS // max(rows.lengths))))
    many = [order[start::count] for start in range(count)]
    alone = [[place] for place in _spread(order, ALONE)]
    cut = rows.longest_first(champion.BATCH_ROWS, tokens=batches.CACHED)
    ours = dict(_logits(lambda given: quickest(**given).logits, rows, cut, kind, "the model"))
    theirs = list(_logits(asked, rows, [*many, *alone], kind, "onnxruntime"))
    names = [ids[place] for place, _ in theirs[: len(rows)]]
    names += [f"{ids[place]} alone" for place, _ in theirs[len(rows) :]]
    try:
        return agreement.measure(
            kind, names, [ours[place] for place, _ in theirs], [said for _, said in theirs]
        )
    except TrainingError as error:
        raise TrainingError(
            f"onnxruntime does not say what the model says: {error}; nothing is written, install the "
            "versions that constraints.txt names"
        ) from None


def _logits(
    answer: Callable[[Mapping[str, Tensor]], Tensor],
    rows: Rows,
    cut: Sequence[Places],
    kind: str,
    description: str,
) -> Iterator[tuple[int, Matrix]]:
    """Of each place in turn, (answers, outputs): of tags one for each token."""
    lengths, total = rows.lengths, sum(map(len, cut))
    for places in track(cut, total=total, size=len, description=description):
        with torch.inference_mode():
            found = answer(rows.batch(places, torch.device("cpu"))).numpy()
        for place, one in zip(places, found, strict=True):
            yield place, one[: lengths[place]] if kind == "tags" else one[None]


def _record(made: Exported, source: Source, draft: Path) -> dict[str, Any]:
    return {
        **asdict(made),
        "weights": files.digest_file(source.directory / WEIGHTS_FILE),
        "files": {path.name: files.digest_file(path) for path in sorted(draft.iterdir())},
        "packages": {name: metadata.version(name) for name in ("torch", "transformers", *LIBRARIES)},
    }
