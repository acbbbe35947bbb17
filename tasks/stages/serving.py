"""Adapters that answer side by side on one frozen base: where each comes from, and how long it stays."""

import json
import os
import re
import shutil
import threading
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

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
from tasks.evaluation.predictions import Text
from tasks.model import floors
from tasks.model.bank import About, Bank
from tasks.serving.messages import Adapter, Answer, NoAdapter, Row
from tasks.stages import ways
from tasks.stages.champion import Champion
from tasks.stages.ways import Manner, Prepared, Served
from tasks.text import clean
from tasks.text.kinds import KINDS
from tasks.tracking import registry
from tasks.training.device import choose

REGISTERED, ALIASED = "models:/", re.compile("models:/[^/@]+@")
ADAPTERS, MANNER = "adapters", "manner.json"  # of what `pack` and `describe` write
ANYWHERE = ("finetuning.device=auto", "sources.text.path=elsewhere", "sources.checkpoint.path=elsewhere")


@dataclass(frozen=True)
class Source:
    """Where an adapter comes from. version: of a registered model. folder: what `adapters.save` wrote.
    tokens: digest of what makes tokens of a text."""

    version: str | None
    manner: Manner
    folder: Path
    tokens: str


class Service:
    """Base and tokenizer are those of the project in `root`, whatever it has fine-tuned last.

    room: bytes for adapters in memory; None: no limit. Raises ArtifactError where there is no base yet.
    """

    def __init__(self, root: Path, *, room: int | None = None) -> None:
        self._root, device = root, parameters.load(root / "params.yaml").finetuning.device
        model = floors.load(ConvertedCheckpoint.load(root).path / "model", device=choose(device))
        self._bank, self._keys, self._changed = Bank(model, room=room), count(1), threading.RLock()
        folder = Vocabulary.load(root).path / "tokenizer"
        self._tokens = tokens_digest(folder)
        self._way = ways.way(self._bank, AutoTokenizer.from_pretrained(folder, local_files_only=True))
        self._cutting = threading.Lock()  # a tokenizer keeps in itself how long rows may be
        self._served: dict[str, Served] = {}

    def adapters(self) -> list[Adapter]:
        """What is served, by name."""
        held = {about.name: about for about in self._bank}
        with self._changed:
            known = [one for one in self._served.values() if one.key in held]
        return [_told(one, held[one.key]) for one in sorted(known, key=lambda one: one.name)]

    def load(self, name: str, source: str) -> Adapter:
        """source: models:/NAME@ALIAS, which `refresh` follows, models:/NAME/3, the directory of a project
        whose data/finetuning holds an adapter, or one that `describe` made a source. Who had the name answers
        until the new one can.

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

    def alike(self, prepared: Prepared) -> Hashable:
        return prepared.alike

    def release(self, prepared: Sequence[Prepared]) -> None:
        self._let_go([row.served for row in prepared])

    def answer(self, prepared: Sequence[Prepared]) -> list[Answer | Exception]:
        """Of each row; where adapters have no room beside one another, one adapter after the other."""
        try:
            return self._way.answers(prepared)
        except (RegraftError, OSError) as error:
            if len(groups := {row.served for row in prepared}) == 1:
                return [error] * len(prepared)
        found: dict[int, Answer | Exception] = {}
        for one in groups:
            places = [place for place, row in enumerate(prepared) if row.served is one]
            found.update(zip(places, self.answer([prepared[place] for place in places]), strict=True))
        return [found[place] for place in range(len(prepared))]

    def _prepared(self, place: int, row: Row, served: Served | None) -> Prepared:
        try:
            asked = _cleaned(row, served)
            with self._cutting:
                return self._way.take(asked, row, served)
        except InputError as error:
            raise InputError(f"row {place}: {error}") from None

    def _loaded(self, name: str, source: str) -> tuple[Served, About]:
        found = find(source, self._root)
        demand(source, found, self._tokens, self._way.kinds, done="served on this base")
        new = Served(name, f"{name}.{next(self._keys)}", source, found.version, found.manner)
        about = self._bank.load(new.key, found.folder)
        try:
            self._way.demand(source, found.manner, about)
        except InputError:
            self._bank.unload(new.key)
            raise
        return new, about

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


def _cleaned(row: Row, served: Served | None) -> Text:
    steps = served.manner.clean if served else ()
    texts = tuple(clean.text(text, steps) for text in (row.text, row.text_pair) if text is not None)
    if served and (wanted := len(KINDS[served.manner.kind].asked)) != len(texts):
        raise InputError(f"{served.name} answers {'pairs' if wanted == 2 else 'single texts'}")
    if not all(text.strip() for text in texts):
        raise InputError("cleaned, nothing is left of its text")
    return texts[0] if len(texts) == 1 else texts


def find(source: str, root: Path) -> Source:
    """What `Service.load` takes; a registered version is looked up in the MLflow of `root`.

    Raises RegraftError where there is no adapter.
    """
    if source.startswith(REGISTERED):
        home, version = registry.find(source, root)
        known = Champion(home, version)
        return Source(version.number, registered(known), home.adapter(version), known.tokens)
    place = Path(source)
    if (place / MANNER).exists():
        if not (place / "adapter").is_dir():
            raise InputError(f"{place} is a model that `regraft export` wrote, without an adapter")
        return described(place)
    if not (folder := TrainedModel.load(place).path / "adapter").is_dir():
        raise InputError(f"{place} learned without an adapter: set finetuning.adapter there and run it")
    return Source(None, learned(place), folder, tokens_digest(Vocabulary.load(place).path / "tokenizer"))


def demand(source: str, found: Source, tokens: str, kinds: Sequence[str], *, done: str) -> None:
    """Raises InputError for rows of a kind that is none of `kinds`, and unless its tokenizer has the digest
    `tokens`; ParamsError for a step of cleaning that is not known here. done: what is not, of other kinds."""
    manner = found.manner
    clean.text("", manner.clean)
    if manner.kind not in kinds:
        known = ", ".join(kinds)
        raise InputError(f"{source}: rows of kind {manner.kind} are not {done}; those of {known} are")
    if found.tokens != tokens:
        raise InputError(f"{source}: its tokenizer is not the base's: serve it from its own project")


def describe(adapter: Source) -> None:
    """Make the directory above the adapter's folder, which is called `adapter`, a source by itself."""
    told = {"version": adapter.version, "tokens": adapter.tokens, **asdict(adapter.manner)}
    files.write_text(adapter.folder.parent / MANNER, files.canonical_json(told))


def described(root: Path) -> Source:
    """What `describe` has made of `root`."""
    told = json.loads((root / MANNER).read_text(encoding="utf-8"))
    labels, steps = tuple(told["labels"]), tuple(told["clean"])
    decision = decisions.read(json.dumps(told["decision"]), labels)
    manner = Manner(told["kind"], labels, steps, told["max_length"], decision)
    return Source(told["version"], manner, root / "adapter", told["tokens"])


def _pack(one: Served, about: About, tokens: str, target: Path) -> dict[str, str | None]:
    shutil.copytree(about.folder, target / "adapter")
    if files.digest_tree(target / "adapter") != about.digest:
        raise TrainingError(f"{about.folder} is not what was loaded from it: load it again")
    describe(Source(one.version, one.manner, target / "adapter", tokens))
    return {"source": one.source, "version": one.version, "digest": files.digest_tree(target)}


def tokens_digest(folder: Path) -> str:
    """Of what makes tokens of a text, in a transformers directory."""
    return files.digest_file(folder / "tokenizer.json")


def registered(known: Champion) -> Manner:
    """Of a version, as its tags say."""
    return Manner(known.kind, known.labels, known.steps, known.max_length, known.decision)


def learned(root: Path) -> Manner:
    """Of what the project in `root` has fine-tuned last."""
    encoded, trained = EncodedDataset.load(root), TrainedModel.load(root)
    steps = parameters.load(root / "params.yaml").preparation.clean if KINDS[encoded.kind].cleaned else ()
    decision = decisions.read(json.dumps(dict(Evaluation.load(root).decision)), trained.labels)
    return Manner(encoded.kind, tuple(trained.labels), tuple(steps), encoded.max_length, decision)


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
