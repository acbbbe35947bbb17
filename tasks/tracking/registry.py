"""The model registry: one version per weights, an alias that says which is champion, a history of its moves.

The alias never moves without a line in the history, and always under a lease that holds across machines.
"""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from tasks import files
from tasks.errors import InputError, TrackingError, did_you_mean
from tasks.tracking import contents, history, lease, origins, runs, server, spool
from tasks.tracking.contents import ADAPTER, WEIGHTS, WEIGHTS_FILE
from tasks.tracking.history import Move
from tasks.tracking.origins import Origin

ALIAS = "champion"
MODEL = "regraft.model"  # tag of a version: its logged model, which MLflow's databases do not keep
CHAMPION = "regraft.champion"  # tag: the version that the last finished move made champion
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[\w.-]+)|/(?P<number>\d+))")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
WAIT = 900.0  # seconds for another promotion, which may have to run a model


@dataclass(frozen=True)
class Version:
    number: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def weights(self) -> str:
        return self.tags.get(WEIGHTS, "")

    @property
    def model_id(self) -> str:
        """Of the logged model; empty of a version that other hands registered."""
        return self.tags.get(MODEL, "")

    def reads(self, reading: Mapping[str, str]) -> bool:
        """Whether it takes rows, and calls its answers, as these tags say; one that it lacks says nothing."""
        return all(self.tags.get(name, value) == value for name, value in reading.items())


class Registry:
    """The versions of one registered model. Any method raises TrackingError where MLflow does not answer."""

    def __init__(self, root: Path, name: str) -> None:
        self._client, self.name, self._root = server.connect(root), name, root
        self._uri: str = self._client.tracking_uri
        self._lease: lease.Lease | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold off every other promotion of this model, on any machine: read, decide and move are one act.

        Processes of one machine queue at a file, so that one of them asks the server for the lease.
        Raises TrackingError where it is not to be had.
        """
        self._ensure()
        with server.lock(self._uri, f"promotion-{self.name}", wait=WAIT):
            holder = f"process {os.getpid()} on {platform.node()}"
            with lease.held(self._client, self.name, holder, wait=WAIT) as self._lease:
                try:
                    yield
                finally:
                    self._lease = None

    def champion(self) -> Version | None:
        """The version that the alias names; None only where there never was one.

        Raises TrackingError where there was: MLflow deletes an alias with the version that it names.
        """
        number, tags = self._state()
        if number is None and (lost := tags.get(CHAMPION)):
            raise TrackingError(
                f"{self.name}: version {lost} was champion, and other hands deleted it or took its alias "
                "away; `regraft rollback`, or with --to VERSION, names another"
            )
        return self.version(number) if number is not None else None

    def must_have_champion(self) -> Version:
        """Raises InputError where there is none."""
        if (found := self.champion()) is None:
            raise InputError(f"{self.name} has no champion yet: `regraft run` makes one, if the gate lets it")
        return found

    def aliased(self, alias: str) -> Version:
        """Raises InputError where no version has it."""
        if alias == ALIAS:
            return self.must_have_champion()
        known = dict(found.aliases) if (found := self._registered()) else {}
        if alias not in known:
            raise InputError(f"{self.name} has no alias {alias!r}; {did_you_mean(alias, known)}")
        return self.version(str(known[alias]))

    def candidate(self, weights: str, reading: Mapping[str, str]) -> Version | None:
        """The version that holds these weights, by digest, and reads rows as the tags `reading` say."""
        alike = (version for version in self.versions() if version.weights == weights)
        return next((version for version in alike if version.reads(reading)), None)

    def version(self, number: str) -> Version:
        with server.asking(self._uri):
            return _version(self._client.get_model_version(self.name, number))

    def versions(self) -> list[Version]:
        with server.asking(self._uri):
            found = self._client.search_model_versions(f"name = '{self.name}'")
        return [_version(entry) for entry in found]

    def register(
        self,
        directory: Path,
        *,
        run_id: str,
        max_length: int,
        kind: str,
        stride: int | None = None,
        reading: Mapping[str, str],
        tags: Mapping[str, str],
        card: Path | None = None,
        adapter: Path | None = None,
    ) -> Version:
        """A new version from a transformers directory, unless one has its weights and reads rows alike.

        The model is logged below `run_id` in MLflow's transformers flavor, with exactly the weights file of
        `directory`, and answers rows of `kind`, cut to `max_length` tokens as in training, or to windows of
        as many that share `stride`. Its `card` stands beside its weights, and the `adapter` that they learned
        in, which is had without them (`adapter`).
        """
        weights = files.digest_file(directory / WEIGHTS_FILE)
        if known := self.candidate(weights, reading):
            return known
        tags = {**tags, **reading, WEIGHTS: weights, "regraft.run": run_id, **origins.tags(self._root)}
        if adapter is not None:
            tags |= {ADAPTER: files.digest_tree(adapter)}
        with server.asking(self._uri):
            model = contents.log(
                self._client,
                self.name,
                directory,
                run_id,
                weights,
                max_length=max_length,
                kind=kind,
                stride=stride,
                card=card,
                adapter=adapter,
            )
            self._ensure()
            made = self._client.create_model_version(
                self.name,
                model.artifact_location,
                run_id,
                {**tags, MODEL: model.model_id},
                model_id=model.model_id,
            )
        return _version(made)

    def register_bundle(self, save: Callable[[Path, Any], None], *, tags: Mapping[str, str]) -> str:
        """What `save` writes (to a directory, as an mlflow.models.Model) as a version, unless one has its tag
        regraft.bundle; the number. Nobody judges it, and no alias moves.

        Raises InputError where a version of this name is another model.
        """
        known = self.versions()
        if others := [one.number for one in known if contents.BUNDLE not in one.tags]:
            raise InputError(
                f"{self.name} version {others[0]} is no bundle: choose a name that only bundles have"
            )
        alike = [one for one in known if one.tags[contents.BUNDLE] == tags[contents.BUNDLE]]
        if alike:
            return alike[0].number
        with server.asking(self._uri):
            made = contents.log_bundle(self._client, self.name, save)
            self._ensure()
            found = self._client.create_model_version(
                self.name, made.artifact_location, made.source_run_id, dict(tags), model_id=made.model_id
            )
        return str(found.version)

    def origin(self, version: Version) -> Origin:
        """Raises InputError where `version` does not say what it was made from."""
        with server.asking(self._uri):
            name = f"{self.name} version {version.number}"
            return origins.read(self._client, name, version.run_id, version.tags)

    def committed_since(self, version: Version) -> dict[str, str]:
        """What to note of a version that was made with uncommitted changes, where a commit now holds them."""
        now = origins.tags(self._root)
        kept = version.tags.get(origins.COMMIT) and not version.tags.get(origins.CHANGED)
        same = version.tags.get(origins.DIGESTS) == now[origins.DIGESTS]
        return now if same and not kept and now[origins.COMMIT] and not now[origins.CHANGED] else {}

    def note(self, version: Version, tags: Mapping[str, str], *, description: str | None = None) -> None:
        """Set the tags that differ, and if given the text that the registry page shows."""
        with server.asking(self._uri):
            for name, value in sorted(tags.items() - version.tags.items()):
                self._client.set_model_version_tag(self.name, version.number, name, value)
            if description is not None:
                self._client.update_model_version(self.name, version.number, description)

    def keep_predictions(self, version: Version, path: Path, *, test: str) -> None:
        """Store what `version` answered on the test rows of digest `test`, to pair a later candidate with."""
        with server.asking(self._uri), tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / contents.predictions_name(version.number, test)
            shutil.copyfile(path, named)
            self._client.log_artifact(version.run_id, str(named), "predictions")
            self._client.set_model_version_tag(self.name, version.number, contents.kept(test), named.name)

    def keeps_predictions(self, version: Version, *, test: str) -> bool:
        return contents.kept(test) in version.tags

    def predictions(self, version: Version, folder: Path, *, test: str) -> Path | None:
        """What `keep_predictions` stored for these test rows, as a file in `folder`; None if nothing was."""
        if not self.keeps_predictions(version, test=test):
            return None
        name = version.tags[contents.kept(test)]
        with server.asking(self._uri):
            found = self._client.download_artifacts(version.run_id, f"predictions/{name}", str(folder))
        return Path(found)

    def judged(self, version: Version, *, test: str) -> int:
        """Count `version` among those judged on the test rows of digest `test`; how many these are by now.

        Call it under `locked`.
        """
        lists = contents.judged(self._state()[1], test)
        known = {number for numbers in lists.values() for number in numbers}
        if version.number not in known:
            with server.asking(self._uri):
                self._client.set_registered_model_tag(self.name, *contents.one_more(lists, version.number))
        return len(known | {version.number})

    def history(self) -> list[Move]:
        return history.read(self._state()[1])

    def rolled_back(self) -> set[str]:
        """The versions that a person took the alias from, and that nobody promoted again since."""
        return history.rolled_back(self._settled())

    def promote(self, number: str, *, reason: str, by: str) -> None:
        """Make `number` champion. Call it under `locked`.

        Raises TrackingError where what a stage told has not reached MLflow yet.
        """
        runs.send_waiting(self._client, self._root)
        if degraded := spool.told(self._root):
            raise TrackingError(f"{degraded}; nothing is promoted before that")
        self._move(Move(number, _now(), by, reason, "promote"))

    def rollback(self, *, to: str | None, reason: str, by: str) -> tuple[str, str]:
        """Make the former champion, or version `to`, champion again: (version before, version after).

        Takes the lock itself. Raises InputError where there is no such version or nothing to go back to.
        """
        if self._last_named() is None:
            raise InputError(f"{self.name} has no champion: there is nothing to roll back")
        with self.locked():
            now = str(self._last_named())
            target = to or history.former(self._settled(), now)
            self._check_target(target, now)
            self._move(Move(str(target), _now(), by, reason, "rollback"))
        return now, str(target)

    def download(self, version: Version) -> Path:
        """A transformers directory with the version's model and tokenizer, kept in .regraft/champions.

        Raises TrackingError where the weights are not those that were registered.
        """
        target = self._kept(version.number, version.weights)  # others of the same may have other labels
        with server.lock(self._uri, f"download-{target.name}", wait=WAIT), server.asking(self._uri):
            contents.fetch_once(self._client, self.name, version.number, version.weights, target)
        return target

    def adapter(self, version: Version) -> Path:
        """The folder of the adapter that the version learned in, kept in .regraft/champions.

        Raises InputError where it has none, TrackingError where it is not the one that was registered.
        """
        if not (digest := version.tags.get(ADAPTER)):
            raise InputError(
                f"{self.name} version {version.number} holds no adapter: set finetuning.adapter, run and "
                "promote it"
            )
        target = self._kept(f"{version.number}-adapter", digest)
        with server.lock(self._uri, f"download-{target.name}", wait=WAIT), server.asking(self._uri):
            contents.fetch_adapter(self._client, self.name, version.number, digest, target)
        return target

    def _kept(self, part: str, digest: str) -> Path:
        """Where it is kept. Raises TrackingError for a tag that is no digest: others may lead away."""
        if digest and not DIGEST.fullmatch(digest):
            raise TrackingError(f"{self.name}: {digest[:80]!r} is no digest; other hands have set the tag")
        return self._root / ".regraft" / "champions" / f"{self.name}-{part}-{digest[7:23]}"

    def _check_target(self, target: str | None, now: str) -> None:
        if target is None:
            raise InputError(f"{self.name} version {now} is the first champion: there is no former one")
        if target == self._state()[0]:
            raise InputError(f"{self.name} version {now} is the champion already")
        known = [version.number for version in self.versions()]
        if target not in known:
            raise InputError(f"{self.name} has no version {target}; {did_you_mean(target, known)}")

    def _move(self, move: Move) -> None:
        """The line first, so that there is no move without one; what became of the last gets its line too."""
        if self._lease is None:
            raise RuntimeError("an alias moves under `locked` alone")
        now, tags = self._rewritten()
        known = history.read(tags)
        lines = [*history.settled(known, now, tags.get(CHAMPION), move.at)[len(known) :], move]
        self._lease.demand()
        with server.asking(self._uri):
            for name, line in history.write(lines, after=len(known)).items():
                self._client.set_registered_model_tag(self.name, name, line)
            self._client.set_registered_model_alias(self.name, ALIAS, move.version)
            self._client.set_registered_model_tag(self.name, CHAMPION, move.version)
        self._lease.demand()

    def _settled(self) -> list[Move]:
        now, tags = self._state()
        return history.settled(history.read(tags), now, tags.get(CHAMPION), _now())

    def _state(self) -> tuple[str | None, Mapping[str, str]]:
        """The version that the alias names, and the registered model's tags."""
        if not (found := self._registered()):
            return None, {}
        number = found.aliases.get(ALIAS)
        return (None if number is None else str(number)), found.tags

    def _last_named(self) -> str | None:
        """The version that the alias names or, where it is gone, that it was moved to last."""
        number, tags = self._state()
        return number or tags.get(CHAMPION)

    def _rewritten(self) -> tuple[str | None, Mapping[str, str]]:
        """The same as `_state`, and no line of the history stands in the one tag of old any more."""
        now, tags = self._state()
        if history.FORMER not in tags:
            return now, tags
        lines = history.write(history.read(tags))
        with server.asking(self._uri):
            for name, line in lines.items():
                self._client.set_registered_model_tag(self.name, name, line)
            self._client.delete_registered_model_tag(self.name, history.FORMER)
        return now, {**{name: tag for name, tag in tags.items() if name != history.FORMER}, **lines}

    def _ensure(self) -> None:
        """The registered model, without a version if it is new."""
        if not self._registered():
            with server.asking(self._uri):
                try:
                    self._client.create_registered_model(self.name)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another was quicker
                        raise

    def _registered(self) -> Any | None:
        with server.asking(self._uri):
            try:
                return self._client.get_registered_model(self.name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise  # anything else must not look like "no champion"


def find(reference: str, root: Path) -> tuple[Registry, Version]:
    """models:/NAME@ALIAS or models:/NAME/3. Raises InputError for anything else, and where there is none."""
    if not (found := REFERENCE.fullmatch(reference)):
        raise InputError(f"{reference}: write models:/NAME@champion or models:/NAME/3")
    registry, number = Registry(root, found["name"]), found["number"]
    return registry, registry.version(number) if number else registry.aliased(found["alias"])


def _version(entry: Any) -> Version:
    return Version(str(entry.version), str(entry.run_id), dict(entry.tags))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
