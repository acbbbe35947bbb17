"""The model registry: one version per weights, an alias that says which is champion, a history of its moves.

The alias never moves without a line in the history, and always under a lease that holds across machines.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from tasks import files
from tasks.errors import InputError, TrackingError, did_you_mean
from tasks.tracking import history, lease, server
from tasks.tracking.history import Move

ALIAS = "champion"
WEIGHTS = "regraft.weights"
WEIGHTS_FILE = "model.safetensors"
WAIT = 900.0  # seconds for another promotion, which may have to run a model


@dataclass(frozen=True)
class Version:
    number: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def weights(self) -> str:
        return self.tags.get(WEIGHTS, "")


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
        """The version that the alias names; None only where the registry says that there is none."""
        found = self._registered()
        number = found.aliases.get(ALIAS) if found else None
        return self.version(str(number)) if number is not None else None

    def must_have_champion(self) -> Version:
        """Raises InputError where there is none."""
        if (found := self.champion()) is None:
            raise InputError(f"{self.name} has no champion yet: `regraft run` makes one, if the gate lets it")
        return found

    def candidate(self, weights: str) -> Version | None:
        """The version that holds these weights, by digest."""
        return next((version for version in self.versions() if version.weights == weights), None)

    def version(self, number: str) -> Version:
        with server.asking(self._uri):
            return _version(self._client.get_model_version(self.name, number))

    def versions(self) -> list[Version]:
        with server.asking(self._uri):
            found = self._client.search_model_versions(f"name = '{self.name}'")
        return [_version(entry) for entry in found]

    def register(
        self, directory: Path, *, run_id: str, max_length: int, kind: str, tags: Mapping[str, str]
    ) -> Version:
        """A new version from a transformers directory, unless its weights already have one.

        The model is logged below `run_id` in MLflow's transformers flavor, with exactly the weights file of
        `directory`, and answers rows of `kind`, cut to `max_length` tokens as in training.
        """
        weights = files.digest_file(directory / WEIGHTS_FILE)
        if known := self.candidate(weights):
            return known
        tags = {**tags, WEIGHTS: weights, "regraft.run": run_id}
        with server.asking(self._uri):
            model = self._logged(directory, run_id, weights, max_length, kind)
            self._ensure()
            made = self._client.create_model_version(
                self.name, model.artifact_location, run_id, tags, model_id=model.model_id
            )
        return _version(made)

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
            named = Path(folder) / _predictions_name(version, test)
            shutil.copyfile(path, named)
            self._client.log_artifact(version.run_id, str(named), "predictions")
            self._client.set_model_version_tag(self.name, version.number, _kept(test), named.name)

    def keeps_predictions(self, version: Version, *, test: str) -> bool:
        return _kept(test) in version.tags

    def predictions(self, version: Version, folder: Path, *, test: str) -> Path | None:
        """What `keep_predictions` stored for these test rows, as a file in `folder`; None if nothing was."""
        if not self.keeps_predictions(version, test=test):
            return None
        name = version.tags[_kept(test)]
        with server.asking(self._uri):
            found = self._client.download_artifacts(version.run_id, f"predictions/{name}", str(folder))
        return Path(found)

    def judged(self, version: Version, *, test: str) -> int:
        """Count `version` among those judged on the test rows of digest `test`; how many these are by now.

        Call it under `locked`.
        """
        found = self._registered()
        known = found.tags.get(_judged(test), "").split() if found else []
        if version.number not in known:
            known = [*known, version.number]
            with server.asking(self._uri):
                self._client.set_registered_model_tag(self.name, _judged(test), " ".join(known))
        return len(known)

    def history(self) -> list[Move]:
        found = self._registered()
        return history.read(found.tags) if found else []

    def rolled_back(self) -> set[str]:
        """The versions that a person took the alias from, and that nobody promoted again since."""
        return history.rolled_back(self.history())

    def promote(self, number: str, *, reason: str, by: str) -> None:
        """Make `number` champion. Call it under `locked`."""
        self._move(Move(number, _now(), by, reason, "promote"))

    def rollback(self, *, to: str | None, reason: str, by: str) -> tuple[str, str]:
        """Make the former champion, or version `to`, champion again: (version before, version after).

        Takes the lock itself. Raises InputError where there is no such version or nothing to go back to.
        """
        if not self._registered():
            raise InputError(f"{self.name} has no champion: there is nothing to roll back")
        with self.locked():
            now = self.champion()
            if now is None:
                raise InputError(f"{self.name} has no champion: there is nothing to roll back")
            target = to or history.former(self.history(), now.number)
            self._check_target(target, now.number)
            self._move(Move(str(target), _now(), by, reason, "rollback"))
        return now.number, str(target)

    def download(self, version: Version) -> Path:
        """A transformers directory with the version's model and tokenizer, kept in .regraft/champions.

        Raises TrackingError where the weights are not those that were registered.
        """
        target = self._root / ".regraft" / "champions" / version.weights.removeprefix("sha256:")[:16]
        with server.lock(self._uri, f"download-{target.name}", wait=WAIT):
            return self._download(version, target)

    def _download(self, version: Version, target: Path) -> Path:
        if not (target / WEIGHTS_FILE).exists():
            with files.replace_directory(target) as draft:
                self._fetch(version, draft)
        if (found := files.digest_file(target / WEIGHTS_FILE)) != version.weights:
            shutil.rmtree(target)
            raise TrackingError(
                f"{self.name} version {version.number}: the stored weights are {found}, registered were "
                f"{version.weights or 'none'}; its artifacts were altered, roll back to another version"
            )
        return target

    def _fetch(self, version: Version, draft: Path) -> None:
        with server.asking(self._uri), tempfile.TemporaryDirectory() as folder:
            source = self._client.get_model_version_download_uri(self.name, version.number)
            try:
                found = Path(mlflow.artifacts.download_artifacts(source, None, None, folder, self._uri))
                shutil.copytree(found / "model", draft, dirs_exist_ok=True)
                shutil.copytree(found / "components" / "tokenizer", draft, dirs_exist_ok=True)
                (draft / WEIGHTS_FILE).stat()
            except FileNotFoundError as error:
                raise TrackingError(
                    f"{self.name} version {version.number} is not whole in {source}: {error}"
                ) from error

    def _check_target(self, target: str | None, now: str) -> None:
        if target is None:
            raise InputError(
                f"{self.name} version {now} is the first champion: there is nothing to go back to"
            )
        if target == now:
            raise InputError(f"{self.name} version {now} is the champion already")
        known = [version.number for version in self.versions()]
        if target not in known:
            raise InputError(f"{self.name} has no version {target}; {did_you_mean(target, known)}")

    def _move(self, move: Move) -> None:
        """The line first, so that there is no move without one; what other hands did gets its line too."""
        if self._lease is None:
            raise RuntimeError("an alias moves under `locked` alone")
        known, now = self._rewritten(), self.champion()
        found = [] if now is None or (known and known[-1].version == now.number) else [_found(now, move.at)]
        self._lease.demand()
        with server.asking(self._uri):
            for name, line in history.write([*found, move], after=len(known)).items():
                self._client.set_registered_model_tag(self.name, name, line)
            self._client.set_registered_model_alias(self.name, ALIAS, move.version)
        self._lease.demand()

    def _rewritten(self) -> list[Move]:
        """The history, of which no line stands in the one tag of old any more."""
        moves, model = self.history(), self._registered()
        if model is not None and history.FORMER in model.tags:
            with server.asking(self._uri):
                for name, line in history.write(moves).items():
                    self._client.set_registered_model_tag(self.name, name, line)
                self._client.delete_registered_model_tag(self.name, history.FORMER)
        return moves

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

    def _logged(self, directory: Path, run_id: str, weights: str, max_length: int, kind: str) -> Any:
        """The complete MLflow model of these weights, logged now or when a registration got no further."""
        experiment = self._client.get_run(run_id).info.experiment_id
        query = f"tags.`{WEIGHTS}` = '{weights}'"
        for found in self._client.search_logged_models([experiment], query):
            if found.status == "READY":
                return found
        made = self._client.create_logged_model(experiment, self.name, run_id, tags={WEIGHTS: weights})
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            from tasks.tracking import flavor  # heavy, and a registered model needs it no more

            about = Model(run_id=run_id, model_id=made.model_id)
            flavor.save(directory, target, about, max_length=max_length, kind=kind)
            self._client.log_model_artifacts(made.model_id, str(target))
        self._client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
        return self._client.finalize_logged_model(made.model_id, "READY")


def _kept(test: str) -> str:
    return f"regraft.predictions.{test.removeprefix('sha256:')[:16]}"


def _judged(test: str) -> str:
    return f"regraft.judged.{test.removeprefix('sha256:')[:16]}"


def _predictions_name(version: Version, test: str) -> str:
    """Two versions may share a run, where a stage was run again with another result."""
    return f"version-{version.number}-{test.removeprefix('sha256:')[:32]}.parquet"


def _version(entry: Any) -> Version:
    return Version(str(entry.version), str(entry.run_id), dict(entry.tags))


def _found(now: Version, at: str) -> Move:
    return Move(now.number, at, "unknown", "the alias was found here: it was moved by other hands", "found")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
