"""Adapters that answer side by side on one frozen base: where each comes from, how it takes a text and tells
what it makes of it."""

import json
import os
import re
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoTokenizer

from tasks import files
from tasks import params as parameters
from tasks.artifacts import (
    MANIFEST,
    ConvertedCheckpoint,
    EncodedDataset,
    Evaluation,
    TrainedModel,
    Vocabulary,
)
from tasks.errors import InputError, RegraftError, TrainingError, did_you_mean
from tasks.evaluation import decisions
from tasks.evaluation.asking import predict
from tasks.evaluation.decisions import Decision
from tasks.evaluation.telling import TELLINGS, tempered
from tasks.model import floors
from tasks.model.bank import BASE, About, Bank
from tasks.model.batches import Ragged, Rows
from tasks.serving.messages import Adapter, Answer, NoAdapter, Row
from tasks.stages.champion import Champion
from tasks.text import clean
from tasks.text.kinds import KINDS
from tasks.tracking import registry
from tasks.training.device import choose

REGISTERED, ALIASED = "models:/", re.compile("models:/[^/@]+@")
ADAPTERS, MANNER = "adapters", "manner.json"  # of what `pack` writes
ANYWHERE = ("finetuning.device=auto", "sources.text.path=elsewhere", "sources.checkpoint.path=elsewhere")


@dataclass(frozen=True)
class Manner:
    """How an adapter takes a text, and what its answers are called."""

    kind: str
    labels: tuple[str, ...]
    clean: tuple[str, ...]
    max_length: int
    decision: Decision


@dataclass(eq=False)
class Served:
    """key: what the bank calls it, another one each time that its name is given anew. users: rows on their
    way. retired: no row can ask for it any more."""

    name: str
    key: str
    source: str
    version: str | None
    manner: Manner
    users: int = 0
    retired: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """A row on its way. ids, types: of its tokens; types None where it is no pair, served for the base."""

    served: Served | None
    ids: Sequence[int]
    types: Sequence[int] | None


class Service:
    """Base and tokenizer are those of the project in `root`, whatever it has fine-tuned last.

    room: bytes for adapters in memory; None: no limit. Raises ArtifactError where there is no base yet.
    """

    def __init__(self, root: Path, *, room: int | None = None) -> None:
        self._root, device = root, parameters.load(root / "params.yaml").finetuning.device
        model = floors.load(ConvertedCheckpoint.load(root).path / "model", device=choose(device))
        self._pad = int(model.config.pad_token_id or 0)
        self._typed = getattr(model.config, "type_vocab_size", 0) > 1
        tokenizer = Vocabulary.load(root).path / "tokenizer"
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self._tokens = tokens_digest(tokenizer)
        positions = int(getattr(model.config, "max_position_embeddings", None) or 512)
        self._longest = min(positions, self._tokenizer.model_max_length)
        self._bank, self._keys, self._changed = Bank(model, room=room), count(1), threading.RLock()
        self._cutting = threading.Lock()  # a tokenizer keeps in itself how long rows may be
        self._served: dict[str, Served] = {}

    def adapters(self) -> list[Adapter]:
        """What is served, by name."""
        held = {about.name: about for about in self._bank}
        with self._changed:
            known = [one for one in self._served.values() if one.key in held]
        return [_told(one, held[one.key]) for one in sorted(known, key=lambda one: one.name)]

    def load(self, name: str, source: str) -> Adapter:
        """source: models:/NAME@ALIAS, which `refresh` follows, models:/NAME/3, or the directory of a project
        whose data/finetuning holds an adapter. Who had the name answers until the new one can.

        Raises RegraftError where there is none, or it belongs on another base or tokenizer.
        """
        new, about = self._loaded(name, source)
        with self._changed:
            former, self._served[name] = self._served.get(name), new
            self._retire(former)
        return _told(new, about)

    def unload(self, name: str) -> None:
        """Rows on their way are answered before. Raises NoAdapter."""
        with self._changed:
            self._retire(self._served.pop(self._known(name).name))

    def refresh(self) -> list[str | RegraftError]:
        """Follow the aliases that name another version now. One that cannot be followed goes on as it is."""
        with self._changed:
            followed = [one for one in self._served.values() if ALIASED.match(one.source)]
        self._keep_young()
        return [told for one in followed if (told := self._follow(one))]

    def pack(self, target: Path) -> dict[str, Any]:
        """Base, tokenizer and all that is served as a directory that `Service` takes, and whose ADAPTERS it
        loads. Returns the digests of base and tokenizer, and of each adapter source, version and digest.

        Raises TrainingError for an adapter whose folder is not what was loaded from it.
        """
        for stage, part in ((ConvertedCheckpoint, "model"), (Vocabulary, "tokenizer")):
            own, there = stage.folder(self._root), stage.folder(target)
            shutil.copytree(own / part, there / part)
            shutil.copyfile(own / MANIFEST, there / MANIFEST)
        settings = parameters.load(self._root / "params.yaml")
        files.write_text(target / "params.yaml", parameters.dump(parameters.override(settings, ANYWHERE)))
        with self._changed:
            held, served = {about.name: about for about in self._bank}, sorted(self._served.items())
        place, tokens = target / ADAPTERS, self._tokens
        found = {name: _pack(one, held[one.key], tokens, place / name) for name, one in served}
        return {"base": self._bank.body, "tokenizer": self._tokens, "adapters": found}

    def prepare(self, rows: Sequence[Row]) -> list[Prepared]:
        """Their adapters stay until `release`. Raises NoAdapter, and InputError naming the row at fault."""
        held = self._hold([row.adapter for row in rows])
        try:
            return [self._prepared(*each) for each in zip(range(len(rows)), rows, held, strict=True)]
        except BaseException:
            self._let_go(held)
            raise

    def release(self, prepared: Sequence[Prepared]) -> None:
        self._let_go([row.served for row in prepared])

    def answer(self, prepared: Sequence[Prepared]) -> list[Answer | Exception]:
        """Of each row; where adapters have no room beside one another, one adapter after the other."""
        try:
            return self._answers(prepared)
        except (RegraftError, OSError) as error:
            if len(groups := {row.served for row in prepared}) == 1:
                return [error] * len(prepared)
        found: dict[int, Answer | Exception] = {}
        for one in groups:
            places = [place for place, row in enumerate(prepared) if row.served is one]
            found.update(zip(places, self.answer([prepared[place] for place in places]), strict=True))
        return [found[place] for place in range(len(prepared))]

    def _answers(self, prepared: Sequence[Prepared]) -> list[Answer | Exception]:
        paired = self._typed and any(row.types is not None for row in prepared)
        types = Ragged.of(row.types or [0] * len(row.ids) for row in prepared) if paired else None
        rows = Rows(Ragged.of(row.ids for row in prepared), types, self._pad)
        given = rows.batch(range(len(rows)), self._bank.model.device)
        names = [row.served.key if row.served else BASE for row in prepared]
        found = self._bank.answer(given, names)
        return [_answer(row.served, one) for row, one in zip(prepared, found, strict=True)]

    def _prepared(self, place: int, row: Row, served: Served | None) -> Prepared:
        steps, length = (served.manner.clean, served.manner.max_length) if served else ((), self._longest)
        texts = [clean.text(text, steps) for text in (row.text, row.text_pair) if text is not None]
        if served and (wanted := len(KINDS[served.manner.kind].asked)) != len(texts):
            taken = "pairs" if wanted == 2 else "single texts"
            raise InputError(f"row {place}: {served.name} answers {taken}")
        if not all(text.strip() for text in texts):
            raise InputError(f"row {place}: cleaned, nothing is left of its text")
        asked = texts[0] if len(texts) == 1 else tuple(texts)
        with self._cutting:
            told = predict.encode(self._tokenizer, [asked], max_length=length)
        return Prepared(served, told["input_ids"][0], told.get("token_type_ids", [None])[0])

    def _loaded(self, name: str, source: str) -> tuple[Served, About]:
        version, manner, folder, tokens = self._found(source)
        clean.text("", manner.clean)  # by steps that are known here
        if manner.kind not in predict.FROM_LOGITS:
            known = ", ".join(predict.FROM_LOGITS)
            raise InputError(f"{source}: rows of kind {manner.kind} are not served; those of {known} are")
        if tokens != self._tokens:
            raise InputError(f"{source}: its tokenizer is not the base's: serve it from its own project")
        new = Served(name, f"{name}.{next(self._keys)}", source, version, manner)
        about = self._bank.load(new.key, folder)
        if about.labels != (manner.labels if KINDS[manner.kind].classes else about.labels[:1]):
            self._bank.unload(new.key)
            told, own = ", ".join(manner.labels) or f"a {manner.kind}", ", ".join(about.labels)
            raise InputError(f"{source}: it is said to answer {told}, and its adapter's head answers {own}")
        return new, about

    def _found(self, source: str) -> tuple[str | None, Manner, Path, str]:
        """Version, manner, adapter's folder, digest of the tokenizer."""
        if source.startswith(REGISTERED):
            home, version = registry.find(source, self._root)
            known = Champion(home, version)
            manner = Manner(known.kind, known.labels, known.steps, known.max_length, known.decision)
            return version.number, manner, home.adapter(version), known.tokens
        root = Path(source)
        if (root / MANNER).exists():
            return _unpacked(root)
        if not (folder := TrainedModel.load(root).path / "adapter").is_dir():
            raise InputError(f"{root} learned without an adapter: set finetuning.adapter there and run it")
        return None, _manner(root), folder, tokens_digest(Vocabulary.load(root).path / "tokenizer")

    def _follow(self, one: Served) -> str | RegraftError | None:
        """What there is to tell of it."""
        now = "not to be had"
        try:
            now = f"version {registry.find(one.source, self._root)[1].number} now"
            if now == f"version {one.version} now":
                return None
            new, _ = self._loaded(one.name, one.source)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are followed
            return RegraftError(f"{one.name}: {one.source} is {now}, and {one.version} goes on: {error}")
        with self._changed:
            if self._served.get(one.name) is not one:  # unloaded or replaced meanwhile
                self._retire(new)
                return f"{one.name}: nobody wants {one.source} any more"
            self._served[one.name] = new
            self._retire(one)
        return f"{one.name}: {one.source} is {now}, it was version {one.version}"

    def _keep_young(self) -> None:
        """The folders of downloads: `regraft clean` takes those that were not needed for a while."""
        with self._changed:
            fetched = {one.key for one in self._served.values() if one.source.startswith(REGISTERED)}
        for about in self._bank:
            if about.name in fetched:
                with suppress(OSError):
                    os.utime(about.folder)

    def _known(self, name: str) -> Served:
        if name not in self._served:
            raise NoAdapter(f"no adapter {name!r} is served; {did_you_mean(name, self._served)}")
        return self._served[name]

    def _hold(self, names: Sequence[str | None]) -> list[Served | None]:
        with self._changed:
            found = [None if name is None else self._known(name) for name in names]
            for one in found:
                if one:
                    one.users += 1
        return found

    def _let_go(self, held: Sequence[Served | None]) -> None:
        with self._changed:
            for one in held:
                if one:
                    one.users -= 1
            for one in {one for one in held if one and one.retired and not one.users}:
                self._bank.unload(one.key)

    def _retire(self, one: Served | None) -> None:
        if one:
            one.retired = True
            if not one.users:
                self._bank.unload(one.key)


def _pack(one: Served, about: About, tokens: str, target: Path) -> dict[str, str | None]:
    shutil.copytree(about.folder, target / "adapter")
    if files.digest_tree(target / "adapter") != about.digest:
        raise TrainingError(f"{about.folder} is not what was loaded from it: load it again")
    told = {"version": one.version, "tokens": tokens, **asdict(one.manner)}
    files.write_text(target / MANNER, files.canonical_json(told))
    return {"source": one.source, "version": one.version, "digest": files.digest_tree(target)}


def _unpacked(root: Path) -> tuple[str | None, Manner, Path, str]:
    told = json.loads((root / MANNER).read_text(encoding="utf-8"))
    labels, steps = tuple(told["labels"]), tuple(told["clean"])
    decision = decisions.read(json.dumps(told["decision"]), labels)
    manner = Manner(told["kind"], labels, steps, told["max_length"], decision)
    return told["version"], manner, root / "adapter", told["tokens"]


def tokens_digest(folder: Path) -> str:
    """Of what makes tokens of a text, in a transformers directory."""
    return files.digest_file(folder / "tokenizer.json")


def _manner(root: Path) -> Manner:
    encoded, trained = EncodedDataset.load(root), TrainedModel.load(root)
    steps = parameters.load(root / "params.yaml").preparation.clean if KINDS[encoded.kind].cleaned else ()
    decision = decisions.read(json.dumps(dict(Evaluation.load(root).decision)), trained.labels)
    return Manner(encoded.kind, tuple(trained.labels), tuple(steps), encoded.max_length, decision)


def _answer(served: Served | None, scores: Tensor) -> Answer | Exception:
    """scores: (labels,), or of the base the mean state (width,)."""
    values = scores.float().cpu().numpy()
    if not np.isfinite(values).all():
        who = f"{served.name} ({served.source})" if served else "the base"
        return TrainingError(f"{who} answers what is no number: its weights have diverged, serve others")
    if served is None:
        return Answer(adapter=None, embedding=values.tolist())
    manner = served.manner
    found = tempered(predict.FROM_LOGITS[manner.kind](values[None]), manner.kind, manner.decision)[0]
    prediction = TELLINGS[manner.kind].cells(found, manner.labels, manner.decision)[0]
    told = Answer(adapter=served.name, prediction=prediction)
    if served.version:
        told.version = served.version
    if manner.labels:
        told.probabilities = dict(zip(manner.labels, np.asarray(found).tolist(), strict=True))
    return told


def _told(one: Served, about: About) -> Adapter:
    return Adapter(
        name=one.name,
        source=one.source,
        version=one.version,
        kind=one.manner.kind,
        labels=list(one.manner.labels),
        bytes=about.size,
        resident=about.resident,
    )
