"""A lease on a registered model, held across machines: of all that ask for it, one has it at a time.

MLflow moves an alias whatever it was before, but it lets a name be registered only once. The lease `N` on a
model is therefore a registered model `NAME.lock.N`: who creates it holds it, as long as it keeps beating. It
is deleted when it is given back, and the model's tag `regraft.lease` then says that the numbers up to `N` are
used up. The lease of a process that died is superseded by the next number.
"""

import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import getLogger
from threading import Event, Thread

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.errors import TrackingError
from tasks.tracking.server import asking

TERM = 60.0  # seconds without a beat after which a lease is free; a beat is sent four times a term
PAUSE = 5.0  # seconds between two looks at a lease that another holds, at most
RETURNED = "regraft.lease"
BEAT, HOLDER, SECONDS = "regraft.beat", "regraft.holder", "regraft.seconds"
ABOUT = "Held while a promotion decides; deleted when it is given back. An abandoned one is passed over."
log = getLogger(__name__)


@dataclass(frozen=True)
class _Seen:
    """A lease as the registry shows it."""

    number: int
    tags: Mapping[str, str]

    @property
    def beat(self) -> tuple[int, str]:
        return self.number, self.tags.get(BEAT, "")

    @property
    def term(self) -> float:
        return float(self.tags.get(SECONDS, TERM))


class Lease:
    """One that this process holds, or held until another took it for dead."""

    def __init__(self, client: MlflowClient, model: str, number: int, term: float) -> None:
        self._client, self._model, self.number, self._term = client, model, number, term

    def demand(self) -> None:
        """Raises TrackingError where the lease is no longer ours, or the server does not say so."""
        if not self._ours():
            raise TrackingError(
                f"{self._model}: another promotion took the lease {self.number} over, after {self._term:g} s "
                "without a sign of life from this one; run it again"
            )

    def _ours(self) -> bool:
        """The beat comes first: whoever takes the lease over looks at it afterwards."""
        with asking(self._client.tracking_uri):
            self.beat()
            top = _top(self._client, self._model)
        return top is not None and top.number == self.number

    def beat(self) -> None:
        """Nothing where the lease is gone: `demand` says so."""
        try:
            self._client.set_registered_model_tag(_name(self._model, self.number), BEAT, uuid.uuid4().hex)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def keep(self, ended: Event) -> None:
        """Beat until `ended`; a beat that fails is made up for by the next, or the lease runs out."""
        while not ended.wait(self._term / 4):
            with suppress(MlflowException):
                self.beat()

    def give_back(self) -> None:
        """The tag first: after it nobody can hold a lease of this number again."""
        if not self._ours():
            return  # whoever took it over clears up
        with asking(self._client.tracking_uri):
            self._client.set_registered_model_tag(self._model, RETURNED, str(self.number))
            for lease in _all(self._client, self._model):
                if lease.number <= self.number:
                    _delete(self._client, self._model, lease.number)


@contextmanager
def held(
    client: MlflowClient, model: str, holder: str, *, wait: float, term: float = TERM
) -> Iterator[Lease]:
    """The lease on the registered model `model`, which must exist, for as long as the body takes.

    Raises TrackingError where others hold it for `wait` seconds.
    """
    lease, ended = _wait(client, model, holder, wait, term), Event()
    beating = Thread(target=lease.keep, args=(ended,), daemon=True)
    try:
        beating.start()
        yield lease
    finally:
        ended.set()
        beating.join()
        try:
            lease.give_back()
        except TrackingError as error:
            log.warning("the lease on %s runs out by itself in %g s: %s", model, term, error)


def _wait(client: MlflowClient, model: str, holder: str, wait: float, term: float) -> Lease:
    """What another holds is watched by our own clock: clocks of two machines need not agree."""
    since = begun = time.monotonic()
    seen: _Seen | None = None
    while time.monotonic() - begun < wait:
        with asking(client.tracking_uri):
            now = _top(client, model)
            if (now and now.beat) != (seen and seen.beat):
                seen, since = now, time.monotonic()
            free = now is None or time.monotonic() - since > now.term
            if free and (number := _take(client, model, holder, now, term)):
                return Lease(client, model, number, term)
        waited = time.monotonic() - begun  # who has waited for long asks seldom: there may be many
        time.sleep(random.uniform(0.25, 1) * min(PAUSE, term / 4, 0.5 + waited / 4))
    told = f"by {seen.tags.get(HOLDER, 'somebody')}" if seen else "by others in turn"
    raise TrackingError(f"{model}: the lease is held {told} for {wait:g} s; try again later")


def _take(client: MlflowClient, model: str, holder: str, dead: _Seen | None, term: float) -> int | None:
    """Number of the lease that is ours now; None where another was quicker, or `dead` is not dead.

    Two looks after creating it, because whoever held the lease beats first and looks then: one of us sees the
    other.
    """
    number = (dead.number if dead else _returned(client, model)) + 1
    if not _created(client, _name(model, number), holder, term):
        return None
    ours = _top(client, model)
    if ours and ours.number == number and (dead is None or _beat(client, model, dead.number) == dead.beat):
        return number
    _delete(client, model, number)
    return None


def _created(client: MlflowClient, name: str, holder: str, term: float) -> bool:
    token = uuid.uuid4().hex
    try:
        client.create_registered_model(name, {BEAT: token, HOLDER: holder, SECONDS: f"{term:g}"}, ABOUT)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return _ours(client, name, token)  # a request whose answer was lost is sent again
    return True


def _ours(client: MlflowClient, name: str, token: str) -> bool:
    with suppress(MlflowException):
        return bool(client.get_registered_model(name).tags.get(BEAT) == token)
    return False


def _beat(client: MlflowClient, model: str, number: int) -> tuple[int, str] | None:
    return next((lease.beat for lease in _all(client, model) if lease.number == number), None)


def _top(client: MlflowClient, model: str) -> _Seen | None:
    """The lease that counts; those below it were superseded, those given back are being deleted."""
    returned = _returned(client, model)
    counting = [lease for lease in _all(client, model) if lease.number > returned]
    return max(counting, key=lambda lease: lease.number, default=None)


def _all(client: MlflowClient, model: str) -> list[_Seen]:
    prefix = _name(model, "")
    found = client.search_registered_models(f"name LIKE '{prefix}%'", max_results=1000)
    numbers = ((entry, entry.name.removeprefix(prefix)) for entry in found)
    return [_Seen(int(number), dict(entry.tags)) for entry, number in numbers if number.isdecimal()]


def _returned(client: MlflowClient, model: str) -> int:
    return int(client.get_registered_model(model).tags.get(RETURNED, 0))


def _delete(client: MlflowClient, model: str, number: int) -> None:
    with suppress(MlflowException):  # gone, or it stays behind and is passed over
        client.delete_registered_model(_name(model, number))


def _name(model: str, number: object) -> str:
    return f"{model}.lock.{number}"
