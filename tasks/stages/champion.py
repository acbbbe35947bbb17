"""A registered version that answers: texts for `regraft predict`, a candidate's test rows for the gate."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from pydantic import TypeAdapter, ValidationError

from tasks import files
from tasks.artifacts import EncodedDataset, PreparedText, TrainedModel
from tasks.errors import ArtifactError, InputError, did_you_mean
from tasks.evaluation import decisions, predictions
from tasks.evaluation.asking import sequences
from tasks.evaluation.decisions import Decision
from tasks.evaluation.predictions import MODEL, Array, Predictions, Text
from tasks.params import Params
from tasks.text import clean
from tasks.text.kinds import KINDS
from tasks.tracking.registry import Registry, Version

BATCH_ROWS = 64  # per forward pass
T = TypeVar("T")


@dataclass(frozen=True)
class Champion:
    """What registration said of a version is read from its tags: raises InputError for one that was
    registered by other hands."""

    registry: Registry
    version: Version
    device: str = "auto"

    @property
    def kind(self) -> str:
        found = self._told("kind", str) if "regraft.kind" in self.version.tags else "label"
        if found not in KINDS:
            raise InputError(
                f"version {self.version.number} answers rows of kind {found!r}; {did_you_mean(found, KINDS)}"
            )
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        return self._told("labels", tuple[str, ...])

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return self._told("max_length", int)

    @property
    def tokens(self) -> str:
        """Digest of what makes tokens of a text, of a version whose adapter can be served."""
        return self._told("tokenizer", str)

    def _told(self, name: str, kind: type[T]) -> T:
        """What the tag regraft.NAME says, which must be of this type."""
        tag = f"regraft.{name}"
        if tag not in self.version.tags:
            raise InputError(
                f"version {self.version.number} has no tag {tag}: it was not registered by regraft"
            )
        try:
            return TypeAdapter(kind).validate_json(self.version.tags[tag])
        except ValidationError as error:
            raise self._unusable(tag, error.errors()[0]["msg"]) from None

    def _unusable(self, tag: str, why: object) -> InputError:
        return InputError(f"the tag {tag} of version {self.version.number} says nothing usable: {why}")

    @property
    def decision(self) -> Decision:
        """As evaluation has chosen it on validation rows.

        Raises InputError for one that does not fit the labels.
        """
        try:
            return decisions.read(self.version.tags.get("regraft.decision", "{}"), self.labels)
        except ValueError as error:
            raise self._unusable("regraft.decision", error) from None

    @cached_property
    def directory(self) -> Path:
        return self.registry.download(self.version)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        # Heavy, and needed by neither a rollback nor a plain promotion.
        from transformers import AutoTokenizer

        from tasks.model import floors, unpadded
        from tasks.training.device import choose

        model = floors.load(self.directory, device=choose(self.device))
        about = model.config  # transformers would warn that it knows no class of ours
        tokenizer = AutoTokenizer.from_pretrained(self.directory, config=about, local_files_only=True)
        return unpadded.quickest(model), tokenizer

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """Of cleaning."""
        return self._told("clean", tuple[str, ...]) if KINDS[self.kind].cleaned else ()

    def cleaned(self, text: str) -> str:
        """As the rows that it learned from."""
        return clean.text(text, self.steps)

    def demand(self, *, pairs: bool) -> None:
        """Raises InputError where it learned from pairs and is asked about single texts, or the other way."""
        if (len(KINDS[self.kind].asked) == 2) != pairs:
            both = "a context and its question" if self.kind == "answer" else "pairs of texts"
            wanted, given = ("single texts", "pairs") if pairs else (both, "single ones")
            raise InputError(f"the champion answers {wanted}, not {given}")

    def answers(self, texts: Sequence[Text]) -> Array:
        """To texts as they are, or pairs of them: as `predictions.FORMS` says, or how each goes on."""
        length, (model, tokenizer) = self.max_length, self.loaded
        from tasks.evaluation.asking import continuing, predict
        from tasks.model import batches
        from tasks.text.tokens import words

        if self.kind in sequences.STARTS:
            said = continuing.continuations(model, tokenizer, [str(text) for text in texts], kind=self.kind)
            return np.array(said, dtype=object)
        cut = batches.suited(model, BATCH_ROWS)
        if self.kind == "answer":
            return self._answers_of(texts, cut)
        if self.kind in continuing.WRITTEN:
            return self._written(texts, cut)
        asked: Sequence[Text] = texts
        if self.kind == "tags":
            split = [text.split() if isinstance(text, str) else list(text) for text in texts]
            asked = words.spaced(split, tokenizer)  # as they were encoded
        found: Array = predict.predict_texts(
            model, tokenizer, asked, kind=self.kind, batches=cut, max_length=length
        )
        return found

    def _answers_of(self, texts: Sequence[Text], cut: Any) -> Array:
        """texts: contexts with their questions."""
        from tasks.evaluation.asking import predict, written
        from tasks.text.tokens import windows

        model, tokenizer = self.loaded
        none: dict[str, list[Any]] = {"text": [], "answer_start": []}
        rows = [
            {"id": str(number), "text": text, "question": question, "answers": none}
            for number, (text, question) in enumerate(texts)
        ]
        table = pa.Table.from_pylist(rows)
        unset = self.version.tags.get("regraft.stride", "null") == "null"
        stride = None if unset else self._told("stride", int)
        encoded = pa.table(windows.encode(table, tokenizer, self.max_length, stride))
        asked, _ = written.answered(encoded, {str(row["id"]): row for row in rows})
        return predict.spans(model, asked.tokens, asked.sources, ids=asked.ids, batches=cut)

    def _written(self, texts: Sequence[Text], cut: Any) -> Array:
        from tasks.evaluation.asking import continuing, predict

        (model, tokenizer), length = self.loaded, self.max_length
        writer = continuing.Writer(predict.wording(tokenizer, masked=False).decode, length)
        asked = tokenizer([str(text) for text in texts], truncation=True, max_length=length)
        rows = {"input_ids": asked["input_ids"]}
        return continuing.translations(model, rows, writer=writer, batches=cut)

    def answers_to_test(self, ours: Predictions, labels: Sequence[str], *, root: Path) -> Predictions:
        """To the test rows that the candidate of `root` has answered as `ours`, in its order of `labels`."""
        if self.kind != ours.kind:
            raise InputError(
                f"it learned from rows of kind {self.kind}, the test rows are of kind {ours.kind}"
            )
        if ours.kind in sequences.STARTS:
            return self._foreseen(ours, root)
        order = self._order(labels)
        found = _in_order(self.answers(prepared_texts(root, ours.ids)), order, ours.kind)
        return Predictions(MODEL, ours.ids, ours.actual, found, ours.kind)

    def _foreseen(self, ours: Predictions, root: Path) -> Predictions:
        """What a language model makes of the test rows as they are encoded.

        Raises InputError where it cuts texts into other tokens.
        """
        if _vocabulary(self.directory) != _vocabulary(TrainedModel.folder(root) / "model"):
            raise InputError("its tokenizer is another, so that the encoded rows mean nothing to it")
        from tasks.evaluation.asking import predict
        from tasks.model import batches

        model, tokenizer = self.loaded
        wording = predict.wording(tokenizer, masked=not model.can_generate())
        rows, _ = sequences.read(EncodedDataset.folder(root) / "test.parquet", ours.kind, wording)
        cut = batches.suited(model, predict.affordable(model, rows.tokens, BATCH_ROWS))
        found = predict.likelihoods(model, rows.tokens, ids=rows.ids, batches=cut)
        return Predictions(MODEL, rows.ids, rows.actual, found, ours.kind)

    def _order(self, labels: Sequence[str]) -> list[int]:
        """Columns of the answers in the order of `labels`; InputError where the names differ."""
        if sorted(self.labels) != sorted(labels):
            raise InputError(f"it answers {', '.join(self.labels)}; the test rows have {', '.join(labels)}")
        return [self.labels.index(label) for label in labels]


def current(params: Params, root: Path) -> Champion:
    """The champion of now. Raises InputError where there is none."""
    registry = Registry(root, params.promotion.model)
    return Champion(registry, registry.must_have_champion(), params.finetuning.device)


def _vocabulary(directory: Path) -> str:
    return files.digest_file(directory / "tokenizer.json")


def _in_order(found: Array, order: Sequence[int], kind: str) -> Array:
    """Columns of probabilities, or numbers of tags (those of words that were not asked left out)."""
    if kind == "tags":
        ours = np.argsort(order)
        return predictions.ragged(ours[row[row >= 0]] for row in found)
    return np.ascontiguousarray(found[:, order]) if order else found


def prepared_texts(root: Path, ids: Sequence[str]) -> list[Text]:
    """Of these rows; both of a pair."""
    prepared = PreparedText.load(root)
    columns = ["tokens"] if prepared.kind == "tags" else list(KINDS[prepared.kind].asked)
    table = parquet.read_table(prepared.path / "rows.parquet", columns=["id", *columns])
    found = zip(*(table[name].to_pylist() for name in columns), strict=True)
    texts: list[Text] = [row[0] if len(row) == 1 else row for row in found]
    known = dict(zip(table["id"].to_pylist(), texts, strict=True))
    if missing := [row for row in ids if row not in known]:
        raise ArtifactError(
            f"{prepared.path / 'rows.parquet'} lacks {len(missing):,} of {len(ids):,} test rows (first: "
            f"{missing[0]}): run `dvc repro`"
        )
    return [known[row] for row in ids]
