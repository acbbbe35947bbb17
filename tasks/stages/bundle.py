"""Adapters of several tasks on one base as one MLflow model: a column names the adapter that answers a row.

`mlflow models serve` needs no server of ours then. The model brings our modules: no index has a package of
ours to name as a requirement.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from tasks import files
from tasks.errors import InputError, did_you_mean
from tasks.serving.messages import Answer, Row
from tasks.stages.serving import ADAPTERS, Service
from tasks.text.kinds import KINDS
from tasks.tracking import flavor
from tasks.tracking.contents import BUNDLE
from tasks.tracking.flavor import TASKS
from tasks.tracking.registry import Registry

ROWS = 64  # at once


class Answering:
    """What `register` has stored, in the directory `root`. Its `predict` is MLflow's."""

    def __init__(self, root: Path) -> None:
        self._service = Service(root)
        self._names = sorted(folder.name for folder in (root / ADAPTERS).iterdir())
        for name in self._names:
            self._service.load(name, str(root / ADAPTERS / name))

    def predict(self, data: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """data: a row a text, columns `text`, `adapter` (where there are several) and, for adapters that
        learned from pairs, `text_pair`. Returns `adapter`, `version` of the registered model that it came
        from, `prediction` (a label; labels or a number as JSON; nothing where it abstains) and
        `probabilities` as JSON.

        Raises InputError that names the first row at fault.
        """
        rows = [self._row(place, one) for place, one in enumerate(data.to_dict("records"))]
        return pd.DataFrame(list(self._answers(rows)), columns=flavor.TOLD, dtype=object)

    def _row(self, place: int, given: Mapping[Any, Any]) -> Row:
        known = {name: value for name, value in given.items() if isinstance(value, str)}
        name = known.get("adapter") or (self._names[0] if len(self._names) == 1 else None)
        if name is None:
            raise InputError(f"row {place} names no adapter; {did_you_mean('', self._names)}")
        text, pair = known.get("text", ""), known.get("text_pair")
        return Row.model_construct(text=text, text_pair=pair, adapter=name)  # longer than a request's may be

    def _answers(self, rows: Sequence[Row]) -> Iterator[tuple[str | None, ...]]:
        prepared = self._service.prepare(rows)
        try:
            for start in range(0, len(prepared), ROWS):
                for found in self._service.answer(prepared[start : start + ROWS]):
                    if isinstance(found, Exception):
                        raise found
                    yield _told(found)
        finally:
            self._service.release(prepared)


def register(service: Service, root: Path, name: str) -> str:
    """What `service` serves as a version of the registered model `name`, in the MLflow of `root`; its number,
    that of a version where the same adapters under the same names on the same base, answered by the same
    packages, are registered already.

    Raises InputError where nothing is served, and for a name that other models have.
    """
    if not (held := service.adapters()):
        raise InputError("no adapter is served: a bundle is made of one at least")
    with TemporaryDirectory() as folder:
        packed = Path(folder) / "packed"
        told = service.pack(packed)
        tags = {"regraft.adapters": json.dumps(told["adapters"]), BUNDLE: _digest(told)}
        pair = {"text_pair": flavor.EXAMPLE[1]} if len(KINDS[held[0].kind].asked) == 2 else {}
        example = pd.DataFrame([{"text": flavor.EXAMPLE[0], "adapter": held[0].name, **pair}])
        save = partial(flavor.save_bundle, packed, example=example, loader=__name__)
        return Registry(root, name).register_bundle(save, tags=tags)


def _digest(told: Mapping[str, Any]) -> str:
    """Of what answers, wherever it came from."""
    digests = {name: one["digest"] for name, one in told["adapters"].items()}
    ours = [files.digest_file(path) for path in sorted(TASKS.rglob("*.py"))]
    return files.digest_json(
        [told["base"], told["tokenizer"], digests, ours, flavor.requirements(flavor.BUNDLED)]
    )


def _load_pyfunc(path: str) -> Answering:
    """MLflow's way in."""
    return Answering(Path(path))


def _told(found: Answer) -> tuple[str | None, ...]:
    said, shares = found.prediction, found.probabilities
    prediction = said if said is None or isinstance(said, str) else json.dumps(said)
    return found.adapter, found.version, prediction, None if shares is None else json.dumps(shares)
